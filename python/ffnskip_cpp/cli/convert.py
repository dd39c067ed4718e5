"""`ffnskip convert`: a Hugging Face checkpoint as one GGUF file."""

from __future__ import annotations

import argparse

from ..conversion.conversion import FAMILIES, OUTTYPES, convert

__all__ = ["add_arguments", "run"]

INTERRUPTED = "nothing was written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    parser.add_argument("model_dir", metavar="DIR", help="Hugging Face checkpoint directory")
    parser.add_argument("-o", "--output", metavar="OUT.gguf", required=True, help="file to write")
    parser.add_argument("--outtype", default="f16", help=f"{', '.join(OUTTYPES)} (default: %(default)s)")
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read .bin weights too, which are pickles; PyTorch opens them as plain weights only",
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "example:\n  ffnskip convert ./Llama-3.2-1B -o llama-3.2-1b-f16.gguf --outtype f16\n\n"
        "architectures:\n  " + "\n  ".join(FAMILIES)
    )


def run(args: argparse.Namespace) -> int:
    out = convert(
        args.model_dir,
        args.output,
        args.outtype,
        allow_pickle=args.allow_pickle,
        progress=not args.no_progress,
    )
    if out.is_file():  # into a pipe goes the model alone
        print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0
