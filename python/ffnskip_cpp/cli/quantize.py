"""`ffnskip quantize`: a GGUF file with its matrices in another type."""

from __future__ import annotations

import argparse

from ..gguf_file.quantization import quantize

__all__ = ["add_arguments", "run"]

INTERRUPTED = "nothing was written"

HELP = """\
The options are those of llama.cpp's llama-quantize.

example:
  ffnskip quantize model-f16.gguf model-q4_k_m.gguf q4_k_m
  ffnskip quantize model-f16.gguf model-q2_k.gguf q2_k --imatrix model-imatrix.gguf"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    parser.add_argument("src", metavar="IN.gguf", help="model to quantise; the first part, if it is split")
    parser.add_argument("dst", metavar="OUT.gguf", help="file to write")
    parser.add_argument("type", metavar="TYPE", help="q4_0, q4_k_m, q5_k_m, q6_k, q8_0, ...; a wrong name lists all")
    parser.add_argument("--imatrix", metavar="FILE", help="importance matrix, as llama-imatrix writes it")
    parser.add_argument(
        "--allow-requantize", action="store_true", help="from quantised matrices too; worse than from F16"
    )
    parser.add_argument("--leave-output-tensor", action="store_true", help="keep the output matrix as it is")
    parser.add_argument("--pure", action="store_true", help="every matrix in TYPE itself, none in a larger one")
    parser.add_argument("--output-tensor-type", metavar="TYPE", help="type of the output matrix: q8_0, say")
    parser.add_argument("--token-embedding-type", metavar="TYPE", help="type of the token embeddings")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: all processors)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP


def run(args: argparse.Namespace) -> int:
    out = quantize(
        args.src,
        args.dst,
        args.type,
        allow_requantize=args.allow_requantize,
        imatrix=args.imatrix,
        leave_output_tensor=args.leave_output_tensor,
        pure=args.pure,
        output_tensor_type=args.output_tensor_type,
        token_embedding_type=args.token_embedding_type,
        threads=args.threads,
        progress=not args.no_progress,
    )
    if out.is_file():  # into a pipe goes the model alone
        print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0
