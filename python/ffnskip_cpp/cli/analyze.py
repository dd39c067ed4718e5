"""`ffnskip analyze`: pictures of a model's FFN blocks and of what skipping them costs and saves."""

from __future__ import annotations

import argparse
import os
import sys

from ..analysis.analysis import FIGURES, Options, analyze
from ..lora import LORA_HELP
from .arguments import list_of

__all__ = ["add_arguments", "run"]

HELP = """\
writes to DIR, each as PNG, SVG and CSV, and all of them into report.html:
  similarity     similarity per layer and the cold regions (the paper's Figure 2)
  never_tripped  share of tokens that never trip (Table 6)
  warm_up        quality against warm_up_index (Figure 5)
  heat_map       one generation, token by layer
  skip_ratio     speed and quality against skip ratio

The work grows with --max-tokens: the text is evaluated once per setting, some 25 times by default. On a large model,
start with --max-tokens 1024 --policy ffn_skip --generated 128.

example:
  ffnskip analyze model.gguf --text held-out.txt -o analysis -t 4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    usual = Options("", (), "")
    parser.add_argument("model", metavar="MODEL.gguf", help="model to analyse; the first part, if it is split")
    parser.add_argument(
        "--text",
        nargs="+",
        required=True,
        metavar="FILE",
        help='plain text in UTF-8, or .jsonl with a "text" or the "messages" of a chat a line',
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the files; made if missing")
    parser.add_argument(
        "--figures", type=list_of(str), default=FIGURES, metavar="NAME,...", help="which of them (default: all)"
    )
    parser.add_argument(
        "--n-ctx",
        type=int,
        metavar="N",
        help="tokens of a chunk of text (default: 512, or what the model was trained on); generation has that much "
        "context too, or what the model was trained on",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=usual.max_tokens, metavar="N", help="of the text (default: %(default)s)"
    )
    parser.add_argument(
        "-t", "--threads", type=int, default=os.cpu_count(), metavar="N", help="default: all processors"
    )
    parser.add_argument("-ngl", "--n-gpu-layers", type=int, default=-1, metavar="N", help="layers on the GPU; -1: all")
    parser.add_argument(
        "--skip-ratio",
        type=list_of(float),
        metavar="R,...",
        help="shares of all FFN blocks to skip (default: 0.1,0.2,0.25,0.3,0.5); the middle one is that of the other "
        "pictures",
    )
    parser.add_argument(
        "--policy",
        type=list_of(str),
        default=usual.policies,
        metavar="P,...",
        help=f"in skip_ratio; the other pictures show ffn_skip (default: {','.join(usual.policies)})",
    )
    parser.add_argument("--sim-threshold", type=float, metavar="T", help="similarity that trips (default: 0.9)")
    parser.add_argument("--cold-s", type=int, metavar="N", help="layers [0, N) never skip (default: an eighth)")
    parser.add_argument("--cold-e", type=int, metavar="N", help="layers from N on never skip (default: an eighth)")
    parser.add_argument(
        "--profile",
        metavar="FILE",
        help="a profile, or with auto the model's own: a point of skip_ratio, and the setting of warm_up and heat_map",
    )
    parser.add_argument("--lora", metavar="FILE", help=LORA_HELP)
    parser.add_argument("--warm-up", type=int, metavar="N", help="generated tokens that run in full (default: 30)")
    parser.add_argument("--skip-seed", type=int, default=0, metavar="N", help="of the random policies (default: 0)")
    parser.add_argument(
        "--warm-ups",
        type=list_of(int),
        default=usual.warm_ups,
        metavar="N,...",
        help=f"in warm_up (default: {','.join(map(str, usual.warm_ups))})",
    )
    parser.add_argument(
        "--generated",
        type=list_of(int),
        default=usual.n_generated,
        metavar="N,...",
        help=f"tokens, in never_tripped (default: {','.join(map(str, usual.n_generated))}, as far as they fit)",
    )
    parser.add_argument(
        "--prompts", type=int, default=usual.n_prompts, metavar="N", help="in never_tripped (default: %(default)s)"
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=usual.n_prompt,
        metavar="N",
        help="of a prompt (default: %(default)s, at most a quarter of the context)",
    )
    parser.add_argument(
        "--speed-tokens",
        type=int,
        default=usual.n_speed,
        metavar="N",
        help="tokens to measure speed with, three times; 0: no speed (default: %(default)s)",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP


def run(args: argparse.Namespace) -> int:
    """Do what parsed `args` ask; 0 on success, 2 with one line on stderr otherwise, 130 when interrupted."""
    options = Options(
        model_path=args.model,
        texts=tuple(args.text),
        output=args.output,
        threads=args.threads,
        n_ctx=args.n_ctx,
        max_tokens=args.max_tokens,
        skip_ratios=args.skip_ratio,
        policies=tuple(dict.fromkeys(args.policy)),
        sim_threshold=args.sim_threshold,
        cold_s=args.cold_s,
        cold_e=args.cold_e,
        warm_up_index=args.warm_up,
        seed=args.skip_seed,
        warm_ups=args.warm_ups,
        n_generated=args.generated,
        n_prompts=args.prompts,
        n_prompt=args.prompt_tokens,
        n_speed=args.speed_tokens,
        n_gpu_layers=args.n_gpu_layers,
        figures=args.figures,
        profile=args.profile,
        lora=args.lora,
    )
    try:
        print(analyze(options))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"ffnskip analyze: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ffnskip analyze: interrupted", file=sys.stderr)
        return 130
    return 0
