"""`ffnskip quantize`: a GGUF file with its matrices in another type."""

from __future__ import annotations

import argparse
import json

from ..gguf_file.quantization import quantize
from .arguments import UsageError, add_progress, explain

__all__ = ["add_arguments", "run"]

INTERRUPTED = "nothing was written"

HELP = """\
The three words may be given as options too: -m IN.gguf, -o OUT.gguf. The other options are those of llama.cpp's
llama-quantize.

examples:
  ffnskip quantize model-f16.gguf model-q4_k_m.gguf q4_k_m
  ffnskip quantize model-f16.gguf q4_k_m -o model-q4_k_m.gguf
  ffnskip quantize model-f16.gguf model-q2_k.gguf q2_k --imatrix model-imatrix.gguf"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, metavar, text in (
        ("src", "IN.gguf", "model to quantise; the first part, if it is split"),
        ("dst", "OUT.gguf", "model file to write"),
        ("type", "TYPE", "type of its matrices: q4_0, q4_k_m, q5_k_m, q6_k, q8_0, ...; a wrong name lists all"),
    ):
        parser.add_argument(name, metavar=metavar, help=text).required = False
    parser.add_argument("-m", "--model", metavar="IN.gguf", help="the model, in place of the first word")
    parser.add_argument("-o", "--output", metavar="OUT.gguf", help="the file to write, in place of its word")
    parser.add_argument("--imatrix", metavar="FILE", help="importance matrix, a GGUF file as llama-imatrix writes it")
    parser.add_argument(
        "--allow-requantize", action="store_true", help="from quantised matrices too; worse than from F16"
    )
    parser.add_argument("--leave-output-tensor", action="store_true", help="keep the output matrix in the type it has")
    parser.add_argument("--pure", action="store_true", help="every matrix in TYPE itself, none in a larger one")
    parser.add_argument("--output-tensor-type", metavar="TYPE", help="type of the output matrix: q8_0, say")
    parser.add_argument("--token-embedding-type", metavar="TYPE", help="type of the token embeddings: q8_0, say")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads (default: all processors)")
    add_progress(parser)
    parser.add_argument("--json", action="store_true", help="print path, type and size of the file as JSON")
    explain(parser, HELP)


def run(args: argparse.Namespace) -> int:
    src, dst, type_name = _three(args)
    written = quantize(
        src,
        dst,
        type_name,
        allow_requantize=args.allow_requantize,
        imatrix=args.imatrix,
        leave_output_tensor=args.leave_output_tensor,
        pure=args.pure,
        output_tensor_type=args.output_tensor_type,
        token_embedding_type=args.token_embedding_type,
        n_threads=args.threads,
        progress=args.progress,
    )
    if written.path.is_file():  # into a pipe goes the model alone
        print(json.dumps(written.as_dict(), indent=2) if args.json else repr(written))
    return 0


def _three(args: argparse.Namespace) -> tuple[str, str, str]:
    """IN, OUT and TYPE: the words in this order, without those that an option gives."""
    words = [word for word in (args.src, args.dst, args.type) if word is not None]
    wanted = {"IN.gguf": args.model, "OUT.gguf": args.output, "TYPE": None}
    missing = [name for name, given in wanted.items() if given is None]
    if len(words) != len(missing):
        options = [option for option, value in (("-m", args.model), ("-o", args.output)) if value is not None]
        besides = f" besides {' and '.join(options)}" if options else ""
        raise UsageError(f"give {' '.join(missing)}{besides}; got {' '.join(words) or 'none of them'}")
    given = dict(zip(missing, words))
    src, dst, type_name = (given.get(name) or value for name, value in wanted.items())
    return src, dst, type_name
