"""`ffnskip channels`: a model's weights by input channel, in a file."""

from __future__ import annotations

import argparse
import json

from ..channels.channels import write_channels
from .arguments import add_model, add_progress, explain

__all__ = ["add_arguments", "run"]

INTERRUPTED = "nothing was written"

HELP = """\
Policy channels needs a copy of the model's matrices in another order. It is made in memory when a model is loaded, or
written once by this command: the file is found beside the model, checked, and mapped, which takes no time and no memory
but the system's cache of files. Write it anew when the model's file has changed.

examples:
  ffnskip channels model.gguf
  ffnskip channels model.gguf --tensors all -o /fast/disk/model.channels.gguf"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "model whose weights to write by channel")
    parser.add_argument(
        "-o", "--output", metavar="OUT.gguf", help="file to write (default: MODEL.channels.gguf beside the model)"
    )
    parser.add_argument(
        "--tensors",
        choices=("ffn", "all"),
        default="ffn",
        help="matrices to write: of the FFN (default), or all that channels can be left out of",
    )
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads (default: all processors)")
    add_progress(parser)
    parser.add_argument("--json", action="store_true", help="print path, matrices and size of the file as JSON")
    explain(parser, HELP)


def run(args: argparse.Namespace) -> int:
    written = write_channels(
        args.model, args.output, tensors=args.tensors, n_threads=args.threads, progress=args.progress
    )
    if written.path.is_file():  # into a pipe goes the file alone
        print(json.dumps(written.as_dict(), indent=2) if args.json else repr(written))
    return 0
