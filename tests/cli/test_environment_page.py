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
READ_BY_OTHERS = {"CMAKE_ARGS", "CMAKE_PREFIX_PATH", "CUDAARCHS", "CUDACXX", "PIP_FIND_LINKS"}  # CMake, nvcc, pip
FOLDERS = ["cpp", "python", "tools", "tests", ".ci"]


def variables_read() -> set[str]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES]
    names = {
        name for path in files for found in READ.findall(path.read_text(encoding="utf-8")) for name in found if name
    }
    return names | {_core.environment_name(name) for name, _, _ in _core.options()}


def test_every_variable_is_on_the_page():
    assert {name for name in variables_read() if f"`{name}`" not in PAGE} == set()


def test_every_row_of_the_page_is_of_a_variable_that_is_read():
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE, re.M)
    names = [name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)]
    assert set(names) - variables_read() - READ_BY_OTHERS == set()
    assert len(names) == len(set(names))
