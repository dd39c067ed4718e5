"""Property: docs/environment.md has every environment variable that is read, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

from ffnskip_cpp import _core

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
READ = re.compile(
    r"""(?:getenv\(|environ(?:\.get\(|\.setdefault\(|\[))["']([A-Z_]+)["']"""  # C++, Python
    r"""|"([A-Z_]+)" in os\.environ|\$\{([A-Z_]+):-"""  # and shell
)
SOURCES = {".cpp", ".h", ".py", ".sh"}
FOLDERS = ["cpp", "python", "tools", "tests", ".ci"]


def variables_read() -> set[str]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES]
    names = {
        name for path in files for found in READ.findall(path.read_text(encoding="utf-8")) for name in found if name
    }
    return names | {_core.environment_name(name) for name, _, _ in _core.options()}


def test_every_variable_is_on_the_page():
    assert {name for name in variables_read() if f"`{name}`" not in PAGE} == set()


def test_no_variable_of_ours_is_on_the_page_that_nothing_reads():
    assert set(re.findall(r"`(FFNSKIP_[A-Z_]+)`", PAGE)) <= variables_read()
