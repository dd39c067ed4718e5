"""`ffnskip try`: what skipping costs a model and what it saves, on this machine, in about two minutes."""

from __future__ import annotations

import argparse
import json

from ..trial.trial import Trial
from ..trial.work import SECONDS, SEED, SKIP_RATIOS, TrialInterrupted, try_model
from .arguments import add_model, add_progress, add_seed, add_text, add_threads, explain, list_of

__all__ = ["add_arguments", "run"]

HELP = """\
Dense and skipping, in one process: speed, token by token in turn; KL divergence, perplexity and same top token on text;
two texts side by side; and one line that says whether it is worth it, next to a smaller quantisation of the same model.
Tried are the model's skip profile, or else the FFN blocks that a quick search finds; the paper's values; and channels,
which need neither.

Nothing is written but temporary files. Interrupted, it prints what was measured.

examples:
  ffnskip try model.gguf
  ffnskip try model.gguf --text chats.jsonl --skip-ratio 0.05,0.1    # on text of yours, other ratios
  ffnskip try model.gguf --time 600 -t 4 --json                      # more exactly; for a program"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    add_model(parser, "model to try")
    add_text(parser, "text to measure on, plain in UTF-8 or .jsonl (default: what the dense model writes itself)")
    parser.add_argument(
        "--skip-ratio",
        type=list_of(float),
        metavar="R,...",
        help="shares to skip, of FFN blocks and by channels of their weight bytes (default: the profile's, or "
        f"{','.join(map(str, SKIP_RATIOS))}, by channels a third)",
    )
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="prompt of the texts side by side")
    parser.add_argument(
        "--time", type=float, default=SECONDS, metavar="SECONDS", help="about what it may take (default: %(default)g)"
    )
    add_seed(parser, "seed of what the dense model writes", default=SEED)
    add_threads(parser)
    add_progress(parser)
    parser.add_argument("--json", action="store_true", help="print JSON in place of a page")
    explain(parser, HELP)


def run(args: argparse.Namespace) -> int:
    """Do what parsed `args` ask; the exit status."""

    def show(trial: Trial) -> None:
        print(json.dumps(trial.as_dict(), indent=2) if args.json else trial)

    try:
        trial = try_model(
            args.model,
            text=args.text,
            skip_ratio=args.skip_ratio,
            prompt=args.prompt,
            seconds=args.time,
            seed=args.seed,
            n_threads=args.threads,
            n_gpu_layers=args.n_gpu_layers,
            progress=args.progress,
        )
    except TrialInterrupted as interrupted:
        show(interrupted.trial)
        raise
    show(trial)
    return 0
