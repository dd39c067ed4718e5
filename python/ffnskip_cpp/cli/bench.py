"""`ffnskip bench`: how much faster skipping makes generation."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..benchmark.benchmark import bench
from ..benchmark.options import RATIO_POLICIES, Options
from ..benchmark.report import FORMATS, NOTES
from ..gguf_file.shapes import SHAPES, TYPES
from ..lora import LORA_HELP
from .arguments import list_of

__all__ = ["add_arguments", "run"]

FLASH_ATTENTION = {"0": False, "off": False, "1": True, "on": True, "auto": None}


HELP = f"""\
{NOTES}

keys of json, jsonl and csv: test (tg: generation, pp: prompt, @ d: depth), policy, skip_ratio_target, skip_ratio
  (achieved), checks (per token), flops_saved (per token), tokens_per_second, tokens_per_second_spread (interquartile
  range), speed_up, speed_up_q1, speed_up_q3 (quartiles), ideal_speed_up, share_of_ideal (speed_up / ideal_speed_up),
  model, type, threads, n_prompt, n_gen, n_depth, repetitions, cold_s, cold_e (null: the default), versions

example:
  ffnskip bench --shape llama2-7b --type q4_0 -t 2 -n 64 -r 3 --skip-ratio 0.3,0.5 -o md
  ffnskip bench -m model.gguf --profile auto --profile other.ffnskip.gguf"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's. Those of llama-bench are spelled as there."""

    def several(*names: str, convert: Any, metavar: str, help: str) -> None:
        """Takes commas, and may be given more than once; None if it is not."""
        parser.add_argument(*names, type=list_of(convert), action="extend", metavar=f"{metavar},...", help=help)

    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-m", "--model", metavar="FILE.gguf", help="model to measure")
    source.add_argument("--shape", metavar="NAME", help=f"random weights; {', '.join(SHAPES)}")
    parser.add_argument("--type", default="q4_0", help=f"of the random weights: {', '.join(TYPES)} (default: q4_0)")
    several("-t", "--threads", convert=int, metavar="N", help="default: all processors")
    several("-p", "--n-prompt", convert=int, metavar="N", help="prompt tokens; 0: no such test (default: 0)")
    several("-n", "--n-gen", convert=int, metavar="N", help="generated tokens; 0: no such test (default: 64)")
    several("-d", "--n-depth", convert=int, metavar="N", help="tokens in the context before a test (default: 0)")
    parser.add_argument("-r", "--repetitions", type=int, default=Options.repetitions, metavar="R", help="default: 3")
    parser.add_argument("--no-warmup", action="store_true", help="do without the untimed run before each test")
    parser.add_argument("-ngl", "--n-gpu-layers", type=int, default=-1, metavar="N", help="layers on the GPU; -1: all")
    parser.add_argument(
        "-fa", "--flash-attn", choices=tuple(FLASH_ATTENTION), default="auto", help="default: auto, llama.cpp decides"
    )
    several("--skip-ratio", convert=float, metavar="R", help="shares of all FFN blocks to skip (default: 0.3,0.5)")
    several("--policy", convert=str, metavar="P", help=f"{', '.join(RATIO_POLICIES)} (default: ffn_skip)")
    parser.add_argument("--cold-s", type=int, metavar="N", help="layers [0, N) never skip (default: an eighth)")
    parser.add_argument("--cold-e", type=int, metavar="N", help="layers from N on never skip (default: an eighth)")
    parser.add_argument(
        "--profile",
        action="append",
        metavar="FILE",
        help="skip as this profile says, or with auto as the model's own; may be repeated. Without --skip-ratio and "
        "--policy the profiles alone are measured",
    )
    parser.add_argument("--lora", metavar="FILE", help=LORA_HELP)
    parser.add_argument("-o", "--output", choices=tuple(FORMATS), default="md", help="default: md")
    parser.add_argument("-v", "--verbose", action="store_true", help="show llama.cpp's log")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP


def run(args: argparse.Namespace) -> int:
    profiles_alone = args.profile and not args.skip_ratio and not args.policy
    options = Options(
        model_path=args.model,
        shape=args.shape,
        type=args.type,
        threads=tuple(args.threads or (os.cpu_count() or 1,)),
        n_prompt=tuple(args.n_prompt or Options.n_prompt),
        n_gen=tuple(args.n_gen or Options.n_gen),
        n_depth=tuple(args.n_depth or Options.n_depth),
        repetitions=args.repetitions,
        warm_up=not args.no_warmup,
        n_gpu_layers=args.n_gpu_layers,
        flash_attention=FLASH_ATTENTION[args.flash_attn],
        skip_ratios=() if profiles_alone else tuple(args.skip_ratio or Options.skip_ratios),
        policies=tuple(args.policy or Options.policies),
        cold_s=args.cold_s,
        cold_e=args.cold_e,
        profiles=tuple(args.profile or ()),
        lora=args.lora,
        verbose=args.verbose,
    )
    print(FORMATS[args.output](bench(options)))
    return 0
