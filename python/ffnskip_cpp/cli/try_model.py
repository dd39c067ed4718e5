"""`ffnskip try`: what skipping costs a model and what it saves, on this machine, in about two minutes."""

from __future__ import annotations

import argparse
import json
import sys
import time

from ..trial.work import SECONDS, Work
from .arguments import list_of

__all__ = ["add_arguments", "run"]

HELP = """\
Dense and skipping, in one process: speed, token by token in turn; KL divergence, perplexity and same top token on text;
two texts side by side; and one line that says whether it is worth it, next to a smaller quantisation of the same model.
Tried are the model's skip profile, or else the FFN blocks that a quick search finds; and the paper's values.

Nothing is written but temporary files. Interrupted, it prints what was measured.

example:
  ffnskip try model.gguf"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    parser.add_argument("model", metavar="MODEL.gguf", help="model to try; the first part, if it is split")
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        help="text to measure on, plain in UTF-8 or .jsonl (default: what the dense model writes itself)",
    )
    parser.add_argument(
        "--skip-ratio",
        type=list_of(float),
        metavar="R,...",
        help="shares of the FFN blocks to skip (default: the profile's, or 0.1,0.25)",
    )
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="of the texts side by side")
    parser.add_argument(
        "--time", type=float, default=SECONDS, metavar="SECONDS", help="about what it may take (default: %(default)g)"
    )
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: all processors")
    parser.add_argument("-ngl", "--n-gpu-layers", type=int, default=-1, metavar="N", help="layers on the GPU; -1: all")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a page")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP


def run(args: argparse.Namespace) -> int:
    """Do what parsed `args` ask; 0 on success, 2 with one line on stderr otherwise, 130 when interrupted."""
    start = time.monotonic()

    def progress(what: str) -> None:
        print(f"ffnskip try: {time.monotonic() - start:.0f} s: {what}", file=sys.stderr, flush=True)

    status = 0
    try:
        work = Work(
            args.model,
            text=args.text,
            skip_ratios=args.skip_ratio,
            prompt=args.prompt,
            seconds=args.time,
            n_threads=args.threads,
            n_gpu_layers=args.n_gpu_layers,
            progress=progress,
        )
        try:
            work.run()
        except KeyboardInterrupt:
            print("ffnskip try: interrupted", file=sys.stderr)
            status = 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"ffnskip try: {error}", file=sys.stderr)
        return 2
    if work.has_begun:
        print(json.dumps(work.trial.as_dict(), indent=2) if args.json else work.trial)
    return status
