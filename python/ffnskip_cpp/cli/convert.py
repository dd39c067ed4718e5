"""`ffnskip convert`: a Hugging Face checkpoint as one GGUF file."""

from __future__ import annotations

import argparse

from ..conversion.conversion import FAMILIES, OUTTYPES, convert
from .arguments import add_model, add_progress, explain

__all__ = ["add_arguments", "run"]

INTERRUPTED = "nothing was written"

HELP = """\
examples:
  ffnskip convert ./Llama-3.2-1B -o llama-3.2-1b-f16.gguf
  ffnskip convert ./Llama-3.2-1B -o llama-3.2-1b-q8_0.gguf --outtype q8_0

architectures (in config.json of the checkpoint):
  """ + "\n  ".join(FAMILIES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "folder of a Hugging Face checkpoint: config.json, weights, tokenizer", metavar="DIR")
    parser.add_argument("-o", "--output", metavar="OUT.gguf", required=True, help="model file to write")
    parser.add_argument(
        "--outtype",
        default="f16",
        metavar="TYPE",
        help=f"type of its matrices: {', '.join(OUTTYPES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read weights in .bin files too, which are pickles; PyTorch opens them as plain weights only",
    )
    add_progress(parser)
    explain(parser, HELP)


def run(args: argparse.Namespace) -> int:
    written = convert(args.model, args.output, args.outtype, allow_pickle=args.allow_pickle, progress=args.progress)
    if written.path.is_file():  # into a pipe goes the model alone
        print(repr(written))
    return 0
