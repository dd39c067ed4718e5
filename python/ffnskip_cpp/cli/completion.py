"""`ffnskip completion`: what the Tab key offers after `ffnskip`, by argcomplete, which asks this program itself."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from .arguments import explain

__all__ = ["add_arguments", "complete", "run"]

HELP = """\
Needs argcomplete (pip install argcomplete). One of the last two lines goes into the file that the shell reads when it
starts.

examples:
  ffnskip completion bash
  ffnskip completion zsh
  ffnskip completion fish

  eval "$(ffnskip completion bash)"         # in ~/.bashrc; likewise zsh in ~/.zshrc
  ffnskip completion fish | source          # in ~/.config/fish/config.fish"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="shell to print the code for")
    explain(parser, HELP)


def run(args: argparse.Namespace) -> int:
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError as error:
        raise ImportError("completion needs argcomplete: pip install argcomplete") from error
    print(shellcode(["ffnskip"], shell=args.shell))
    return 0


def complete(parser_of: Callable[[str | None], argparse.ArgumentParser]) -> None:
    """Answers the shell, and ends the program."""
    import argcomplete

    words = os.environ.get("COMP_LINE", "").split()
    argcomplete.autocomplete(parser_of(words[1] if len(words) > 1 else None))
