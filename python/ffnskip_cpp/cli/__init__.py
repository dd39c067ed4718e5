"""The `ffnskip` command: `ffnskip COMMAND --help` tells what each of its commands does."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

from .arguments import UsageError, take_model

__all__ = ["main"]

# Command: its module, which has add_arguments(parser), run(args) -> exit status and, where it helps, INTERRUPTED, what
# becomes of the work of an interrupted one; and one line of help.
COMMANDS = {
    "try": ("try_model", "say whether skipping is worth it for a model, in about two minutes"),
    "calibrate": ("calibrate", "find out what to skip in a model, and write its profile"),
    "run": ("run", "run a llama.cpp program with skipping"),
    "bench": ("bench", "measure how much faster skipping makes generation"),
    "analyze": ("analyze", "draw what skipping finds, costs and saves in a model"),
    "inspect": ("inspect", "show the FFN blocks of a model and what skipping them saves"),
    "profile": ("profile", "show or change the skip profile of a model, or put it into the model file"),
    "convert": ("convert", "convert a Hugging Face checkpoint to GGUF"),
    "quantize": ("quantize", "write a GGUF file with its matrices in another type"),
    "completion": ("completion", "print what makes the Tab key complete commands and options in a shell"),
}


def _parser(command: str | None) -> argparse.ArgumentParser:
    """`command` alone gets its options, as only then is its module imported."""
    parser = argparse.ArgumentParser(
        prog="ffnskip",
        description="Input-adaptive feed-forward skipping (FFN-SkipLLM) for llama.cpp.",
        epilog="examples:\n  ffnskip try model.gguf\n  ffnskip calibrate model.gguf --text text.txt --skip-ratio 0.25\n"
        "  ffnskip bench --shape llama2-7b --skip-ratio 0.3,0.5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the versions of ffnskip and llama.cpp")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == command:
            _load(module).add_arguments(sub)
    return parser


def _load(module: str) -> ModuleType:
    return importlib.import_module(f".{module}", __name__)


def _print_versions() -> None:
    import llama_cpp

    from .. import __version__

    print(f"ffnskip {__version__} (llama-cpp-python {llama_cpp.__version__})")


def _run(argv: Sequence[str], command: str | None) -> int:
    if "_ARGCOMPLETE" in os.environ:  # a shell asks, on the Tab key
        _load("completion").complete(_parser)
    parser = _parser(command)
    args = parser.parse_args(argv)
    if args.version:
        _print_versions()
        return 0
    if args.command is None:
        parser.error(f"give a command: {', '.join(COMMANDS)}")
    take_model(args)
    status: int = _load(COMMANDS[args.command][0]).run(args)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        Its exit status: 0; 1 where it failed, 2 where the options are wrong (SystemExit(2) if argparse sees it), both
        with one line on stderr; 130 where it was interrupted; 141 where nobody reads its output any more.
    """
    argv = sys.argv[1:] if argv is None else argv
    command = next((word for word in argv if not word.startswith("-")), None)
    prog = f"ffnskip {command}" if command in COMMANDS else "ffnskip"
    try:
        try:
            return _run(argv, command)
        finally:
            if sys.stdout is not None:  # None: the shell closed it
                sys.stdout.flush()
    except KeyboardInterrupt:
        hint = getattr(_load(COMMANDS[command][0]), "INTERRUPTED", None) if command in COMMANDS else None
        print(f"{prog}: interrupted" + (f"; {hint}" if hint else ""), file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader has gone, as `head` does
        _drop_stdout()
        return 128 + signal.SIGPIPE
    except UsageError as error:
        print(f"{prog}: {error}; {prog} --help says what there is", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        _drop_stdout()
        return 1


def _drop_stdout() -> None:
    """What is left in the buffer must not raise once more when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
