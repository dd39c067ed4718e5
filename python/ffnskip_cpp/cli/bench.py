"""`ffnskip bench`: how much faster skipping makes generation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..benchmark.benchmark import bench
from ..benchmark.options import POLICIES, SKIP_RATIOS, Options
from ..benchmark.random_model import TYPES
from ..benchmark.report import FORMATS, NOTES
from ..benchmark.shapes import SHAPES
from ..files import check_text_output, whole_file
from ..lora import LORA_HELP
from ..measure.policies import REGIONS, TENSORS
from .arguments import UsageError, add_devices, add_flash_attention, add_model, add_progress, explain, list_of

__all__ = ["add_arguments", "run"]

HELP = f"""\
{NOTES}

keys of json, jsonl and csv: test (tg: generation, pp: prompt, @ d: depth), policy, skip_ratio_target, skip_ratio
  (achieved), checks (per token), flops_saved (per token), tokens_per_second, tokens_per_second_spread (interquartile
  range), speed_up, speed_up_q1, speed_up_q3 (quartiles), ideal_speed_up, share_of_ideal (speed_up / ideal_speed_up),
  limit_speed_up, share_of_limit (by the time that a block takes; null: not measured), weights_bytes (memory of the
  weights by channel), model, type, threads, n_prompt, n_gen, n_depth, repetitions, cold_s, cold_e (null: the default),
  tensors, versions

examples:
  ffnskip bench --shape llama2-7b --type q4_0 -t 2 -n 64 -r 3 --skip-ratio 0.3,0.5
  ffnskip bench --shape llama2-7b --policy channels --skip-ratio 0.25,0.33,0.5
  ffnskip bench model.gguf --policy fixed --skip-ratio 0.25,0.5
  ffnskip bench model.gguf --profile auto --profile other.ffnskip.gguf
  ffnskip bench model.gguf -d 0,512 -o speed.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of llama-bench are spelled as there."""
    add_model(parser, "model to measure", required=False)
    parser.add_argument(
        "--shape", metavar="NAME", help=f"random weights of a known shape in place of a model: {', '.join(SHAPES)}"
    )
    parser.add_argument(
        "--type", default=Options.type, help=f"type of the random weights: {', '.join(TYPES)} (default: %(default)s)"
    )
    _add_tests(parser)
    _add_settings(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="file for the result (default: the terminal); .json, .csv and so on say the format",
    )
    parser.add_argument("--format", choices=tuple(FORMATS), help="how the result is written (default: md, a table)")
    parser.add_argument("-v", "--verbose", action="store_true", help="show llama.cpp's log")
    add_progress(parser)
    explain(parser, HELP)


def _several(parser: argparse.ArgumentParser, *names: str, convert: Any, metavar: str, help: str) -> None:
    """Takes commas, and may be given more than once; None if it is not."""
    parser.add_argument(*names, type=list_of(convert), action="extend", metavar=f"{metavar},...", help=help)


def _add_tests(parser: argparse.ArgumentParser) -> None:
    _several(parser, "-t", "--threads", convert=int, metavar="N", help="threads (default: all processors)")
    _several(parser, "-p", "--n-prompt", convert=int, metavar="N", help="prompt tokens; 0: no such test (default: 0)")
    _several(parser, "-n", "--n-gen", convert=int, metavar="N", help="generated tokens; 0: no such test (default: 64)")
    _several(
        parser, "-d", "--n-depth", convert=int, metavar="N", help="tokens in the context before a test (default: 0)"
    )
    parser.add_argument(
        "-r",
        "--repetitions",
        type=int,
        default=Options.repetitions,
        metavar="R",
        help="repetitions of each test (default: %(default)s)",
    )
    parser.add_argument("--no-warmup", action="store_true", help="do without the untimed run before each test")
    add_devices(parser)
    add_flash_attention(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    ratios = ",".join(map(str, SKIP_RATIOS))
    _several(
        parser,
        "--skip-ratio",
        convert=float,
        metavar="R",
        help=f"shares to skip of FFN blocks, by channels of weight bytes (default: {ratios}; channels: a third,0.5)",
    )
    _several(
        parser,
        "--policy",
        convert=str,
        metavar="P",
        help=f"what to skip by: {', '.join(POLICIES)} (default: {POLICIES[0]}; fixed: the same blocks for every token)",
    )
    _several(
        parser,
        "--region",
        convert=str,
        metavar="R",
        help=f"where random chooses from: {', '.join(REGIONS)} (default: {REGIONS[0]})",
    )
    parser.add_argument(
        "--cold-s", type=int, metavar="N", help="layers [0, N) never skip (default: an eighth of the layers)"
    )
    parser.add_argument(
        "--cold-e", type=int, metavar="N", help="layers from N on never skip (default: the last eighth)"
    )
    parser.add_argument(
        "--tensors",
        choices=TENSORS,
        default=Options.tensors,
        help="matrices whose input channels --policy channels leaves out: ffn, or all, attention's too (default: ffn)",
    )
    parser.add_argument(
        "--profile",
        action="append",
        metavar="FILE",
        help="skip as this profile says, or with auto as the model's own; may be repeated. Without --skip-ratio and "
        "--policy the profiles alone are measured",
    )
    parser.add_argument("--lora", metavar="FILE", help=LORA_HELP)


def run(args: argparse.Namespace) -> int:
    if (args.model is None) == (args.shape is None):
        raise UsageError("give one of the two: a model, or --shape NAME")
    path, style = _output(args)
    inputs = [name for name in (args.model, *(args.profile or ()), args.lora) if name is not None]
    if path is not None:
        check_text_output(path, inputs)
    result = bench(
        args.model,
        shape=args.shape,
        type=args.type,
        n_threads=args.threads,
        n_prompt=args.n_prompt or Options.n_prompt,
        n_gen=args.n_gen or Options.n_gen,
        n_depth=args.n_depth or Options.n_depth,
        repetitions=args.repetitions,
        warm_up=not args.no_warmup,
        n_gpu_layers=args.n_gpu_layers,
        flash_attention=args.flash_attn,
        skip_ratio=args.skip_ratio,
        policy=args.policy,
        region=args.region,
        cold_s=args.cold_s,
        cold_e=args.cold_e,
        tensors=args.tensors,
        profile=args.profile,
        lora=args.lora,
        progress=args.progress,
        verbose=args.verbose,
    )
    text = FORMATS[style](result.rows)
    if path is None:
        print(text)
        return 0
    with whole_file(path, inputs) as part:
        part.write_text(text + "\n", encoding="utf-8")
    return 0


def _output(args: argparse.Namespace) -> tuple[Path | None, str]:
    """The file, if any, and the format. As in llama-bench, -o may also be a format; a file of that name is ./json."""
    if args.output in FORMATS and args.format is None:
        return None, args.output
    path = None if args.output is None else Path(args.output)
    ending = "" if path is None else path.suffix[1:]
    return path, args.format or (ending if ending in FORMATS else "md")
