"""The `ffnskip` command: `ffnskip COMMAND --help` tells what each of its commands does."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NoReturn

from ..errors import ArgumentError
from .arguments import UsageError, take_devices, take_model

__all__ = ["main"]

# Command: its module, which has add_arguments(parser), run(args) -> exit status and, where it helps, INTERRUPTED, what
# becomes of the work of an interrupted one; and one line of help.
COMMANDS = {
    "try": ("try_model", "say whether skipping is worth it for a model, in about two minutes"),
    "calibrate": ("calibrate", "find out what to skip in a model, and write its profile"),
    "run": ("run", "run a llama.cpp program with skipping"),
    "serve": ("serve", "serve a model to OpenAI's clients, and a page that shows what each token skipped"),
    "bench": ("bench", "measure how much faster skipping makes generation"),
    "eval": ("eval", "measure what skipping costs on tasks, the paper's and others"),
    "report": ("report", "write the paper's tables and figures, and more, from what eval measured"),
    "analyze": ("analyze", "draw what skipping finds, costs and saves in a model"),
    "judge": ("judge", "have the texts of evaluated runs graded by another model"),
    "inspect": ("inspect", "show the FFN blocks of a model and what skipping them saves"),
    "profile": ("profile", "show or change the skip profile of a model, or put it into the model file"),
    "convert": ("convert", "convert a Hugging Face checkpoint to GGUF"),
    "quantize": ("quantize", "write a GGUF file with its matrices in another type"),
    "channels": ("channels", "write a model's weights by input channel into a file, for policy channels to map"),
    "completion": ("completion", "print what makes the Tab key complete commands and options in a shell"),
}

PRESSED_AGAIN = 0.02  # seconds


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
    args, more = parser.parse_known_args(argv)
    if more:
        _refuse(parser, args, more)
    if args.version:
        _print_versions()
        return 0
    if args.command is None:
        parser.error(f"give a command: {', '.join(COMMANDS)}")
    take_model(args)
    take_devices(args)
    status: int = _load(COMMANDS[args.command][0]).run(args)
    return status


def _refuse(parser: argparse.ArgumentParser, args: argparse.Namespace, more: Sequence[str]) -> NoReturn:
    """What is left over: words behind the model, or what is no option."""
    if getattr(args, "model", None) is not None and not any(word.startswith("-") for word in more):
        raise UsageError(f"takes one {args.model_metavar or 'model'}; given are {' and '.join((args.model, *more))}")
    if args.command is None:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    raise UsageError(f"unrecognized arguments: {' '.join(more)}")


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
            with _interrupts_kept():
                return _run(argv, command)
        finally:
            if sys.stdout is not None:  # None: the shell closed it
                sys.stdout.flush()
    except KeyboardInterrupt:
        module = f"{__name__}.{COMMANDS[command][0]}" if command in COMMANDS else ""
        hint = getattr(sys.modules.get(module), "INTERRUPTED", None)  # it may have been interrupted while it loaded
        print(f"{prog}: interrupted" + (f"; {hint}" if hint else ""), file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader has gone, as `head` does
        _drop_stdout()
        return 128 + signal.SIGPIPE
    except UsageError as error:
        print(f"{prog}: {error}; {prog} --help says what there is", file=sys.stderr)
        return 2
    except ArgumentError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"{prog}: {_worded(error)}", file=sys.stderr)
        _drop_stdout()
        return 1


def _worded(error: Exception) -> str:
    """Those of the operating system as ours are, in place of "[Errno 2] No such file or directory: 'name'"."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    why = "no such file" if error.errno == errno.ENOENT else error.strerror[0].lower() + error.strerror[1:]
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return why if name is None else f"{name}: {why}"


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Ctrl-C in a callback of llama.cpp's, such as its log's, would be printed and forgotten, as no exception gets
    through that: it is pressed once more a little later."""
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        again = threading.Timer(PRESSED_AGAIN, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _drop_stdout() -> None:
    """What is left in the buffer must not raise once more when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
