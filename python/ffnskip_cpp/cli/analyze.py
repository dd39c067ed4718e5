"""`ffnskip analyze`: pictures of a model's FFN blocks and of what skipping them costs and saves."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from ..analysis.analysis import MAX_TOKENS, N_GENERATED, N_PROMPT, N_PROMPTS, N_SPEED, WARM_UPS, analyze
from ..analysis.wanted import FIGURES, SKIP_RATIOS
from ..lora import LORA_HELP
from ..measure.policies import RATIO_POLICIES, REGIONS, TENSORS
from ..measure.text import N_CTX
from .arguments import add_model, add_progress, add_seed, add_text, add_threads, explain, list_of

__all__ = ["add_arguments", "run"]

HELP = """\
writes to DIR, each as PNG, SVG and CSV, and all of them into report.html:
  similarity     similarity per layer and the cold regions (the paper's Figure 2)
  never_tripped  share of tokens that never trip (Table 6)
  warm_up        quality against warm_up_index (Figure 5)
  heat_map       one generation, token by layer
  channels       share of channels kept, token by layer
  skip_ratio     speed and quality against skip ratio

The work grows with --max-tokens: the text is evaluated once per setting, some 30 times by default.

examples:
  ffnskip analyze model.gguf --text held-out.txt -o analysis -t 4
  ffnskip analyze model.gguf --text held-out.txt -o analysis --profile auto --figures heat_map,skip_ratio
  ffnskip analyze large.gguf --text held-out.txt -o analysis --max-tokens 1024 --policy ffn_skip --generated 128"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    add_model(parser, "model to analyse")
    add_text(parser, "text that the model was not trained on, plain in UTF-8 or .jsonl", required=True)
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the files; made if missing")
    parser.add_argument(
        "--figures", type=list_of(str), default=FIGURES, metavar="NAME,...", help="which pictures (default: all)"
    )
    parser.add_argument(
        "--n-ctx",
        type=int,
        metavar="N",
        help=f"tokens of a chunk of text (default: {N_CTX}, or what the model was trained on); generation has that "
        "much context too, or what the model was trained on",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help="tokens of text to use (default: %(default)s)"
    )
    parser.add_argument("--lora", metavar="FILE", help=LORA_HELP)
    _add_settings(parser)
    _add_sizes(parser)
    add_seed(parser, "seed of the random policies", old="--skip-seed")
    add_threads(parser)
    add_progress(parser)
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    explain(parser, HELP)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """What is skipped."""
    parser.add_argument(
        "--skip-ratio",
        type=list_of(float),
        metavar="R,...",
        help=f"shares to skip of all FFN blocks, by channels of weight bytes (default: {_commas(SKIP_RATIOS)}); the "
        "middle one is that of the other pictures",
    )
    parser.add_argument(
        "--policy",
        type=list_of(str),
        metavar="P,...",
        help=f"policies in skip_ratio; the other pictures show ffn_skip (default: {_commas(RATIO_POLICIES)})",
    )
    parser.add_argument(
        "--region",
        type=list_of(str),
        metavar="R,...",
        help=f"where random chooses from: {', '.join(REGIONS)} (default: {REGIONS[0]}; both without --policy)",
    )
    parser.add_argument(
        "--tensors",
        choices=TENSORS,
        default=TENSORS[0],
        help="matrices whose input channels policy channels leaves out: ffn, or all, attention's too (default: ffn)",
    )
    parser.add_argument(
        "--profile",
        metavar="FILE",
        help="a profile, or with auto the model's own: a point of skip_ratio, and the setting of warm_up and heat_map",
    )
    parser.add_argument(
        "--sim-threshold", type=float, metavar="T", help="similarity that trips (default: the profile's, or 0.9)"
    )
    parser.add_argument("--cold-s", type=int, metavar="N", help="layers [0, N) never skip (default: an eighth)")
    parser.add_argument("--cold-e", type=int, metavar="N", help="layers from N on never skip (default: an eighth)")
    parser.add_argument(
        "--warm-up", type=int, metavar="N", help="generated tokens that run in full (default: the profile's, or 30)"
    )


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    """What is measured in single pictures."""
    parser.add_argument(
        "--warm-ups",
        type=list_of(int),
        default=WARM_UPS,
        metavar="N,...",
        help=f"warm-ups in warm_up, in tokens (default: {_commas(WARM_UPS)})",
    )
    parser.add_argument(
        "--generated",
        type=list_of(int),
        default=N_GENERATED,
        metavar="N,...",
        help=f"tokens to generate in never_tripped (default: {_commas(N_GENERATED)}, as far as they fit)",
    )
    for name, default, what in (
        ("--prompts", N_PROMPTS, "prompts to generate from in never_tripped"),
        ("--prompt-tokens", N_PROMPT, "tokens of a prompt, at most a quarter of the context"),
        ("--speed-tokens", N_SPEED, "tokens to measure speed with, three times; 0: no speed"),
    ):
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{what} (default: {default})")


def _commas(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def run(args: argparse.Namespace) -> int:
    """Do what parsed `args` ask; the exit status."""
    analysis = analyze(
        args.model,
        args.text,
        args.output,
        figures=args.figures,
        skip_ratio=args.skip_ratio,
        policy=args.policy,
        region=args.region,
        tensors=args.tensors,
        profile=args.profile,
        lora=args.lora,
        sim_threshold=args.sim_threshold,
        cold_s=args.cold_s,
        cold_e=args.cold_e,
        warm_up_index=args.warm_up,
        warm_ups=args.warm_ups,
        n_generated=args.generated,
        n_prompts=args.prompts,
        n_prompt=args.prompt_tokens,
        n_speed=args.speed_tokens,
        n_ctx=args.n_ctx,
        max_tokens=args.max_tokens,
        seed=args.seed,
        n_threads=args.threads,
        n_gpu_layers=args.n_gpu_layers,
        progress=args.progress,
    )
    print(json.dumps(analysis.as_dict(), indent=2) if args.json else analysis)
    return 0
