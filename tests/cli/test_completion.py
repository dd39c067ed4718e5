"""The Tab key offers commands, options and their values."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("argcomplete")

FFNSKIP = Path(sys.executable).with_name("ffnskip")
PRESS_TAB = r"""
eval "$(ffnskip completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
read -ra COMP_WORDS <<< "$1"
_python_argcomplete ffnskip "${COMP_WORDS[-1]}" ""
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(not FFNSKIP.exists(), reason="the command is not installed")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ffnskip qu", ["quantize"]),
        ("ffnskip bench --shape tiny --no-w", ["--no-warmup"]),
        ("ffnskip bench --format js", ["json", "jsonl"]),
        ("ffnskip profile st", ["strip"]),
        ("ffnskip run --skip-r", ["--skip-ratio"]),
    ],
)
def test_bash_is_offered_what_there_is(line, offered):
    environment = {**os.environ, "PATH": f"{FFNSKIP.parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-c", PRESS_TAB, "bash", line], env=environment, capture_output=True, text=True, timeout=120
    )
    assert [word.strip() for word in result.stdout.splitlines()] == offered, result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_is_taken_by_the_shell(shell, tmp_path):
    command = [sys.executable, "-m", "ffnskip_cpp", "completion", shell]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "ffnskip" in code
    if shutil.which(shell):
        (tmp_path / "code").write_text(code)
        subprocess.run([shell, "-n", tmp_path / "code"], check=True)
