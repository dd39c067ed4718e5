"""The `ffnskip` command: help, versions and endings; what the commands do is tested with their modules."""

from __future__ import annotations

import signal
import subprocess
import sys

import llama_cpp
import pytest

from ffnskip_cpp import __version__, cli
from support.tiny_models import write_llama


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "ffnskip_cpp", *arguments], text=True, **options)


def test_version_names_ffnskip_and_llama_cpp(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ffnskip {__version__} (llama-cpp-python {llama_cpp.__version__})\n"


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n    {command}" in out for command in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_each_command_has_a_worked_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"example:\n  ffnskip {command} " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["bench"], ["bench", "--shape", "a", "-m", "b"]])
def test_bad_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ffnskip")


@pytest.mark.parametrize("command", [["convert", "missing", "-o", "out.gguf"], ["quantize", "missing", "out", "q8_0"]])
def test_missing_input_is_refused_in_one_line(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"ffnskip {command[0]}: ") and err.count("\n") == 1


def test_quantize_writes_a_file(capsys, tmp_path):
    source = write_llama(tmp_path / "f32.gguf", n_layer=4)
    assert cli.main(["quantize", str(source), str(tmp_path / "q8_0.gguf"), "q8_0", "--no-progress"]) == 0
    assert (tmp_path / "q8_0.gguf").stat().st_size < source.stat().st_size / 2


def test_interrupt_ends_quietly_with_130(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ffnskip_cpp.cli.bench.bench", interrupted)
    assert cli.main(["bench", "--shape", "llama2-7b"]) == 130
    assert capsys.readouterr() == ("", "ffnskip bench: interrupted\n")


def test_no_command_is_imported_before_it_is_asked_for():
    code = """
import sys
from ffnskip_cpp import cli
cli.main(["--version"])
loaded = [m for m in cli.COMMANDS.values() if f"ffnskip_cpp.cli.{m[0]}" in sys.modules]
sys.exit(str(loaded) if loaded else 0)
"""
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("arguments", [["--version"], ["bench", "--help"]])
def test_reader_that_has_gone_ends_the_command_quietly(arguments):
    child = subprocess.Popen(
        [sys.executable, "-m", "ffnskip_cpp", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert err == b""
    assert child.wait() in (0, 128 + signal.SIGPIPE)  # argparse itself takes no notice of a reader that has gone


def test_closed_stdout_is_no_error():
    command = f'"{sys.executable}" -m ffnskip_cpp --version >&-'
    result = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_full_disk_is_reported_in_one_line():
    with open("/dev/full", "w") as full:
        result = run("--version", stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr.startswith("ffnskip: ") and result.stderr.count("\n") == 1
