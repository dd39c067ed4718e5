"""The `ffnskip` command: help, versions and endings; what the commands do is tested with their modules."""

from __future__ import annotations

import errno
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import llama_cpp
import pytest

from ffnskip_cpp import __version__, cli, demo_model
from ffnskip_cpp.cli.arguments import take_model
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


ACTIONS = ("show", "set", "embed", "strip")


@pytest.mark.parametrize("command", [*cli.COMMANDS, *(f"profile {action}" for action in ACTIONS)])
def test_help_of_each_command_has_worked_examples_that_parse(command, capsys):
    words = command.split()
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--help"])
    assert end.value.code == 0
    examples = re.search(r"^examples?:\n((?:  ffnskip .*\n)+)", capsys.readouterr().out, re.M)
    assert examples, "no examples"
    for line in examples.group(1).splitlines():
        _, *arguments = shlex.split(line.partition(" | ")[0], comments=True)
        assert arguments[: len(words)] == words
        take_model(cli._parser(words[0]).parse_args(arguments))


@pytest.mark.parametrize(
    "command", [c for c in cli.COMMANDS if c not in ("run", "profile", "completion", "judge", "report")]
)
def test_every_command_takes_its_model_by_place_or_by_option(command):
    parser = cli._parser(command)
    needed = {"calibrate": ["--text", "t"], "analyze": ["--text", "t", "-o", "d"], "convert": ["-o", "m.gguf"]}
    needed["eval"] = ["--task", "choice", "-o", "d"]
    for words in (["a.gguf"], ["-m", "a.gguf"], ["--model", "a.gguf"]):
        args = parser.parse_args([command, *words, *needed.get(command, [])])
        take_model(args)
        assert "a.gguf" in (args.model, getattr(args, "src", None))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "give a command"),
        (["no-such-command"], "invalid choice"),
        (["bench"], "give one of the two: a model, or --shape NAME"),
        (["bench", "--shape", "a", "-m", "b"], "give one of the two"),
        (["inspect"], "required: MODEL.gguf"),
        (["inspect", "a", "-m", "b"], "two models: a and b"),
        (["inspect", "a", "b"], "takes one MODEL.gguf; given are a and b"),
        (["bench", "a", "b"], "takes one model; given are a and b"),
        (["profile", "show", "a", "b"], "takes one FILE; given are a and b"),
        (["inspect", "a", "--jsn"], "unrecognized arguments: --jsn"),
        (["inspect", "--jsn", "a"], "unrecognized arguments: --jsn"),
        (["quantize", "a", "q4_0"], "give IN.gguf OUT.gguf TYPE; got a q4_0"),
        (["quantize", "a", "b", "q4_0", "-o", "c"], "give IN.gguf TYPE besides -o; got a b q4_0"),
        (["quantize", "-m", "a", "a", "b", "q4_0"], "give OUT.gguf TYPE besides -m; got a b q4_0"),
        (["quantize"], "give IN.gguf OUT.gguf TYPE; got none of them"),
    ],
)
def test_bad_usage_exits_with_2(arguments, why, capsys):
    try:
        status = cli.main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2 and why in capsys.readouterr().err


@pytest.mark.parametrize("command", [["convert", "missing", "-o", "out.gguf"], ["quantize", "missing", "out", "q8_0"]])
def test_missing_input_is_refused_in_one_line(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"ffnskip {command[0]}: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"), "a.txt: no such file"),
        (PermissionError(errno.EACCES, "Permission denied", b"a.txt"), "a.txt: permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", Path("a")), "a: is a directory"),
        (OSError(errno.EIO, "Input/output error"), "input/output error"),
        (OSError("a.txt: of our own"), "a.txt: of our own"),
    ],
)
def test_errors_of_the_system_read_as_ours(error, line, monkeypatch, capsys):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("ffnskip_cpp.cli.inspect.inspect", fails)
    assert cli.main(["inspect", "model.gguf"]) == 1
    assert capsys.readouterr().err == f"ffnskip inspect: {line}\n"


@pytest.mark.parametrize("command", ["calibrate", "try", "analyze"])
def test_a_text_that_is_missing_is_named_alike(command, capsys, tmp_path):
    words = ["-o", str(tmp_path / "out")] if command == "analyze" else []
    assert cli.main([command, demo_model(), "--text", "nofile", *words]) == 1
    assert capsys.readouterr().err == f"ffnskip {command}: nofile: no such file\n"


@pytest.mark.parametrize(
    "words",
    ["IN OUT q8_0", "IN q8_0 -o OUT", "-o OUT IN q8_0", "-m IN OUT q8_0", "q8_0 -m IN -o OUT", "IN OUT --pure q8_0"],
)
def test_quantize_writes_a_file(words, capsys, tmp_path):
    source, out = write_llama(tmp_path / "f32.gguf", n_layer=4), tmp_path / "q8_0.gguf"
    names = {"IN": str(source), "OUT": str(out)}
    assert cli.main(["quantize", *(names.get(word, word) for word in words.split()), "--no-progress"]) == 0
    assert out.stat().st_size < source.stat().st_size / 2
    assert capsys.readouterr().out == f"{out}: {out.stat().st_size / 1e6:.1f} MB\n"


def test_interrupt_ends_quietly_with_130(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ffnskip_cpp.cli.bench.bench", interrupted)
    assert cli.main(["bench", "--shape", "llama2-7b"]) == 130
    assert capsys.readouterr() == ("", "ffnskip bench: interrupted\n")


def test_interrupt_in_a_callback_of_llama_cpp_is_not_forgotten(monkeypatch, capsys):
    """As C calls it, which passes no exception on."""

    @llama_cpp.llama_log_callback
    def pressed(*_):
        raise KeyboardInterrupt

    def works(*_, **__):
        pressed(2, b"loading", None)
        time.sleep(10)

    monkeypatch.setattr("ffnskip_cpp.cli.inspect.inspect", works)
    began = time.monotonic()
    assert cli.main(["inspect", "model.gguf"]) == 130
    assert time.monotonic() - began < 9
    assert capsys.readouterr() == ("", "ffnskip inspect: interrupted\n")


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
