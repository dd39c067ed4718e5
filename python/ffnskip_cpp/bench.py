"""How much faster skipping makes generation, next to plain llama.cpp in the same process.

    ffnskip bench --shape llama2-7b --type q4_0 -t 2 -n 64 -r 3 --skip-ratio 0.3,0.5

Every setting has a context of its own over one model and is fed the same tokens at the same positions. Settings take
turns token by token, each round starting with another one, so that a machine that slows down or speeds up does so for
all of them. A speed-up is the median over all tokens of the ratio to plain llama.cpp within the round.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp

from ._core import Profile, __version__, find_profile
from .benchmark.options import AUTO, RATIO_POLICIES, Options, Setting, Test, settings_of
from .benchmark.report import FORMATS, NOTES
from .benchmark.rows import row_of
from .benchmark.runners import open_model, open_runners, quiet
from .benchmark.timing import time_test
from .command_line import list_of
from .file_type import file_type
from .lora import LORA_HELP
from .profile import read_profile
from .shapes import SHAPES, TYPES, WeightBytes

__all__ = ["AUTO", "RATIO_POLICIES", "Options", "add_arguments", "measure", "run"]


def measure(options: Options) -> list[dict[str, Any]]:
    """Measure all settings in all tests.

    Returns:
        One dict per row of the result, as documented in `ffnskip bench --help`.
    Raises:
        ValueError: A bad option, a model that can't be loaded, or a skip ratio it can't reach (`Unsupported` where it
            has no FFN block to skip).
        FileNotFoundError: The model file does not exist.
        RuntimeError: llama.cpp failed to decode.
    """
    options.check()
    with quiet(options.verbose), open_model(options) as (model, weights):
        profiles = _profiles(model, options)
        _check_settings(model, options, profiles)
        return [
            row
            for threads in options.threads
            for test in options.tests
            for row in _measure_test(model, weights, test, settings_of(options, test, profiles), threads, options)
        ]


def _profiles(model: int, options: Options) -> dict[str, Profile]:
    """By the name of their row: the file's, or the path where two files have the same."""
    found: dict[str, Profile] = {}
    for given in options.profiles:
        profile = find_profile(model, options.model_path or "") if given == AUTO else read_profile(given)
        if profile is None:
            raise ValueError(f"profile: auto, but there is no profile beside or in {options.model_path}")
        name = f"profile {Path(profile.path).name}"
        found[f"profile {profile.path}" if name in found else name] = profile
    return found


def _check_settings(model: int, options: Options, profiles: Mapping[str, Profile]) -> None:
    """Refuses settings that do not fit the model before anything is measured."""
    if any(test.n_gen for test in options.tests):
        shortest = Test(n_gen=1)
        with open_runners(model, settings_of(options, shortest, profiles), shortest, 1, options):
            pass


def _measure_test(
    model: int, weights: WeightBytes, test: Test, settings: Sequence[Setting], threads: int, options: Options
) -> list[dict[str, Any]]:
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    with open_runners(model, settings, test, threads, options) as runners:
        seconds = time_test(runners, test, n_vocab, options)
        rows = [
            row_of(test, setting, runner, weights, seconds[0], seconds[i])
            for i, (setting, runner) in enumerate(zip(settings, runners))
        ]
    common = {
        "model": Path(options.model_path).name if options.model_path else options.shape,
        "type": file_type(model) if options.model_path else options.type.lower(),
        "threads": threads,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "repetitions": options.repetitions,
        "cold_s": options.cold_s,
        "cold_e": options.cold_e,
        "versions": {"ffnskip": __version__, "llama_cpp": llama_cpp.__version__},
    }
    return [{**row, **common} for row in rows]


# ---- command line ----

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
    """Do what parsed `args` ask; 0 on success, 2 with one line on stderr otherwise, 130 when interrupted."""
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
    try:
        rows = measure(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"ffnskip bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ffnskip bench: interrupted", file=sys.stderr)
        return 130
    print(FORMATS[args.output](rows))
    return 0
