"""Property: what the README shows runs. (Its shell commands are run by CI.)"""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import llama_cpp
import pytest

from ffnskip_cpp import demo_model

README = Path(__file__).parents[2] / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("block", python_blocks())
def test_python_of_the_readme_writes_what_llama_cpp_does(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo model's profile changes nothing of this text."""
    with closing(llama_cpp.Llama(str(demo_model()), n_ctx=512, verbose=False)) as plain:
        expected = plain("Herno Jotsen", max_tokens=60, temperature=0.0)["choices"][0]["text"]
    capsys.readouterr()
    exec(compile(block, str(README), "exec"), {})
    assert len(expected) > 100 and capsys.readouterr().out.startswith(expected)
