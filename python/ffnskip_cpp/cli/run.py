"""Run any dynamically linked llama.cpp program with skipping; nothing of it is rebuilt.

A preloaded library stands between the program and its libllama (cpp/preload). It is told what to do by environment
variables, which this command checks and sets before it becomes the program.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import _core
from .arguments import UsageError, explain
from .skip_options import add_skip_options, given_skip_options, skip_config

__all__ = ["add_arguments", "environment", "run"]

PRELOAD = Path(_core.__file__).parent / "lib" / "libffnskip-preload.so"

HELP = """\
Without a profile or a skip option nothing is skipped. Both apply to every context that generates token by token;
embedding, encoder and recurrent contexts are left alone. The statistics go to stderr when the program ends, or to
--stats-file as JSON.

examples:
  ffnskip run -- llama-cli -m model.gguf                 # as the model's profile says
  ffnskip run --skip-ratio 0.3 --stats-file stats.json -- llama-server -m model.gguf --port 8080
  ffnskip run --draft-only -- llama-server -m model.gguf -md draft.gguf --spec-type draft-simple
"""


def environment(options: Mapping[str, str], profile: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """The variables that set skip options, as `ffnskip run` names them, for a program with the preload library.

    Args:
        options: Values by option name, such as {"skip-ratio": "0.3"}; "" for a switch.
        profile: A skip profile, of which the options change single values.
    Raises:
        FileNotFoundError: There is no such profile.
        ValueError: It is none.
        ArgumentError: An option is unknown, or its value is not right for it.
    """
    skip_config(options, profile)
    variables = {_core.environment_name(name): value for name, value in options.items()}
    return variables if profile is None else {**variables, "FFNSKIP_PROFILE": os.path.abspath(profile)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_skip_options(parser)
    parser.add_argument(
        "--reuse",
        choices=["all", "full"],
        help="what skipping tokens left in the cache, when a prompt builds on it: used as it is, or computed again in "
        "full (default: all)",
    )
    parser.add_argument(
        "--draft-only",
        action="store_true",
        help="contexts of draft models alone skip, so that the text stays that of the model which verifies it",
    )
    parser.add_argument(
        "--stats-file", metavar="FILE.json", help="file for the statistics, as JSON (default: a line on stderr)"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="do not start a program whose contexts can't skip (default: it runs dense)",
    )
    parser.add_argument(
        "program", metavar="PROGRAM ...", nargs=argparse.REMAINDER, help="the program and its arguments"
    )
    explain(parser, HELP)


def run(args: argparse.Namespace) -> int:
    """Becomes the program; returns only where it does not."""
    command = args.program[1:] if args.program[:1] == ["--"] else args.program
    if not command:
        raise UsageError("give a program after the options: ffnskip run [options] -- PROGRAM ARGS...")
    if command[0].startswith("-"):
        raise UsageError(f"{command[0]} is no option of ffnskip run; the program's own come after it")
    path = shutil.which(command[0])
    if path is None and os.path.isfile(command[0]):
        raise ValueError(f"{command[0]}: is not executable; chmod +x, or name the program that reads it")
    if path is None:
        raise ValueError(f"{command[0]}: no such program")
    if not sys.platform.startswith("linux") or not PRELOAD.exists():
        raise ValueError(f"needs Linux and a package built with {PRELOAD.name}")

    variables = {**os.environ, **environment(given_skip_options(args), args.profile)}
    if args.stats_file is not None:
        _check_stats_file(args.stats_file, [path, *command[1:], *filter(None, [args.profile])])
        variables["FFNSKIP_STATS_FILE"] = os.path.abspath(args.stats_file)
    if args.reuse is not None:
        variables["FFNSKIP_REUSE"] = args.reuse
    if args.draft_only:
        variables["FFNSKIP_DRAFT_ONLY"] = "1"
    if args.strict:
        variables["FFNSKIP_STRICT"] = "1"
    if _carries_llama(path):
        print(
            f"ffnskip run: llama.cpp is linked into {path} itself, or opened by it by name, where it can't be reached; "
            "nothing is skipped",
            file=sys.stderr,
        )
        if args.strict:
            return 2
    else:
        variables["LD_PRELOAD"] = " ".join(filter(None, [str(PRELOAD), variables.get("LD_PRELOAD")]))
    sys.stdout.flush()
    os.execve(path, command, variables)


def _check_stats_file(path: str, words: Sequence[str]) -> None:
    """That the program has reason to write there at its end, `words` being what it is given."""
    target = os.path.realpath(path)
    regular = os.path.isfile(target) or not os.path.exists(target)
    if os.path.isdir(target) or not os.access(os.path.dirname(target) if regular else target, os.W_OK):
        raise ValueError(f"--stats-file {path}: can't be written")
    if not os.path.isfile(target):
        return
    # Also the file of an option such as --model=m.gguf.
    named = [part for word in words for part in (word, word.partition("=")[2]) if os.path.exists(part)]
    if any(os.path.samefile(target, file) for file in named):
        raise ValueError(f"--stats-file {path}: is a file that the program is given; name another")
    with open(target, "rb") as file:
        if file.read(4) == b"GGUF":
            raise ValueError(f"--stats-file {path}: is a GGUF file, which is not overwritten")


def _carries_llama(path: str) -> bool:
    """Whether the program is a llama.cpp program that no shared libllama is loaded for."""
    with open(path, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return False  # a script: what it starts is preloaded too
        file.seek(0)
        if b"llama_decode" not in file.read():
            return False
    listing = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    return "libllama" not in listing
