"""`ffnskip calibrate`: finds out what to skip in a model, and writes its profile."""

from __future__ import annotations

import argparse
import json

from ..calibration.calibration import CHAT_N_CTX, calibrate
from ..calibration.choice import TOLERANCE
from ..calibration.effort import EFFORTS
from ..calibration.wanted import EFFORT, MAX_KL, MAX_TOKENS, MEASURED, POLICIES, TRIED
from ..lora import LORA_HELP
from ..measure.policies import TENSORS
from ..measure.text import N_CTX
from .arguments import add_model, add_progress, add_seed, add_text, add_threads, explain, list_of

__all__ = ["INTERRUPTED", "add_arguments", "run"]

INTERRUPTED = "the same command goes on from here"

HELP = """\
KL: divergence from the dense model, nats per token, ± its standard error over chunks of text; same top token: share of
tokens with the same most likely next one; perplexity: times the dense model's; checks: similarities computed per token.
All of them, and the share skipped, are of tokens past the warm-up, teacher-forced. That share is of the weight bytes of
FFN blocks, with --tensors all of attention's too; with --costs it is time that --skip-ratio is a share of. speed-up:
foretold by bytes, or by --costs. What is tried: blocks, which leaves out whole FFN blocks, fixed ones or by Algorithm
1, with --tensors all attention blocks too; channels, which leaves out of all blocks the input channels that reach
least; and blocks+channels. For comparison, where they are named: short_gpt, the same whole layers for all tokens, and
skip_decode, more whole layers the later a token comes.

--text takes plain text in UTF-8, a text per file, and .jsonl with one of these a line:
  {"text": "..."}
  {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
  {"turns": ["...", "..."]}
Chats are rendered by the model's own template, and what the assistant says counts as generated. The model answers what
has no answer itself, as in "turns", which is what the user says.

An interrupted calibration goes on where it was when the same command is given again.

examples:
  ffnskip calibrate model.gguf --text text.txt                     # as much as costs no more than 0.05
  ffnskip calibrate model.gguf --text chats.jsonl --skip-ratio 0.33 --policy channels
  ffnskip calibrate model.gguf --text text.txt --policy short_gpt --skip-ratio 0.1
  ffnskip calibrate model.gguf --text text.txt --costs measured --n-depth 2048
  ffnskip calibrate model.gguf --text a.txt --text b.txt --effort 600 --embed"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    add_model(parser, "model to calibrate")
    add_text(parser, "text of the kind to be generated, plain in UTF-8 or .jsonl", required=True)
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--skip-ratio",
        type=float,
        metavar="R",
        help=f"share of the weight bytes not to be read, or of the FFN blocks to skip; {TOLERANCE} less will do",
    )
    target.add_argument(
        "--max-kl",
        type=float,
        metavar="X",
        help=f"skip as much as costs no more KL divergence, nats per token (default: {MAX_KL})",
    )
    parser.add_argument(
        "--policy",
        type=list_of(str),
        metavar="LIST",
        help=f"what to try: {', '.join(POLICIES)} (default: {', '.join(TRIED)}, as far as the model allows)",
    )
    parser.add_argument(
        "--tensors",
        choices=TENSORS,
        default=TENSORS[0],
        help="what is left out, of FFN blocks or of attention too (default: %(default)s)",
    )
    parser.add_argument(
        "--costs",
        metavar="FILE",
        help=f"time to be saved in place of bytes: {MEASURED} on this machine, or FILE, JSON with such a table",
    )
    parser.add_argument(
        "-d",
        "--n-depth",
        type=int,
        default=0,
        metavar="N",
        help="tokens in the context while costs are measured (default: %(default)s)",
    )
    parser.add_argument(
        "--effort",
        type=_effort,
        default=EFFORT,
        metavar="E",
        help=f"{', '.join(EFFORTS)}, or about how many seconds it may take (default: {EFFORT})",
    )
    parser.add_argument("--lora", metavar="FILE", help=LORA_HELP)
    parser.add_argument("--embed", action="store_true", help="write the profile into the model's file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="profile to write (default: MODEL.ffnskip.gguf beside the model)"
    )
    parser.add_argument(
        "--n-ctx",
        type=int,
        metavar="N",
        help=f"tokens of a chunk of text (default: {N_CTX}, of chats {CHAT_N_CTX}, or the model's context)",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help="tokens of text to use (default: %(default)s)"
    )
    parser.add_argument(
        "--warm-up", type=int, default=30, metavar="N", help="generated tokens that run in full (default: %(default)s)"
    )
    add_seed(parser, "seed of the choice of held-out text")
    add_threads(parser)
    add_progress(parser)
    parser.add_argument("--json", action="store_true", help="print JSON in place of a page")
    explain(parser, HELP)


def _effort(text: str) -> str | float:
    """A name, or seconds; what is neither is refused with the other values."""
    try:
        return float(text)
    except ValueError:
        return text


def run(args: argparse.Namespace) -> int:
    """Do what parsed `args` ask; the exit status."""
    calibration = calibrate(
        args.model,
        args.text,
        skip_ratio=args.skip_ratio,
        max_kl=args.max_kl,
        policies=args.policy,
        tensors=args.tensors,
        costs=args.costs,
        n_depth=args.n_depth,
        effort=args.effort,
        lora=args.lora,
        output=args.output,
        embed=args.embed,
        n_ctx=args.n_ctx,
        max_tokens=args.max_tokens,
        warm_up_index=args.warm_up,
        seed=args.seed,
        n_threads=args.threads,
        n_gpu_layers=args.n_gpu_layers,
        progress=args.progress,
    )
    print(json.dumps(calibration.as_dict(), indent=2) if args.json else calibration)
    return 0
