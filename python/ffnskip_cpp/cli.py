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

__all__ = ["main"]

# Command: its module, which has add_arguments(parser) and run(args) -> exit status; and one line of help.
COMMANDS = {
    "convert": ("convert_hf_to_gguf", "convert a Hugging Face checkpoint to GGUF"),
    "quantize": ("quantize", "write a GGUF file with its matrices in another type"),
    "inspect": ("inspect_model", "show the FFN blocks of a model and what skipping them saves"),
    "profile": ("profile_command", "show or change the skip profile of a model, or put it into the model file"),
    "run": ("run_program", "run a llama.cpp program with skipping"),
    "try": ("try_command", "say whether skipping is worth it for a model, in about two minutes"),
    "calibrate": ("calibrate_command", "find out what to skip in a model, and write its profile"),
    "bench": ("bench", "measure how much faster skipping makes generation"),
    "analyze": ("analyze", "draw what skipping finds, costs and saves in a model"),
}


def _parser(command: str | None) -> argparse.ArgumentParser:
    """`command` alone gets its options, as only then is its module imported."""
    parser = argparse.ArgumentParser(
        prog="ffnskip",
        description="Input-adaptive feed-forward skipping (FFN-SkipLLM) for llama.cpp.",
        epilog="example:\n  ffnskip bench --shape llama2-7b --skip-ratio 0.3,0.5",
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
    return importlib.import_module(f"{__package__}.{module}")


def _print_versions() -> None:
    import llama_cpp

    from . import __version__

    print(f"ffnskip {__version__} (llama-cpp-python {llama_cpp.__version__})")


def _run(argv: Sequence[str]) -> int:
    command = next((word for word in argv if not word.startswith("-")), None)
    parser = _parser(command)
    args = parser.parse_args(argv)
    if args.version:
        _print_versions()
        return 0
    if args.command is None:
        parser.error(f"give a command: {', '.join(COMMANDS)}")
    return _load(COMMANDS[args.command][0]).run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status. Bad usage ends in SystemExit(2), as argparse does it."""
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            if sys.stdout is not None:  # None: the shell closed it
                sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader has gone, as `head` does
        _drop_stdout()
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        print(f"ffnskip: {error}", file=sys.stderr)
        _drop_stdout()
        return 2


def _drop_stdout() -> None:
    """What is left in the buffer must not raise once more when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
