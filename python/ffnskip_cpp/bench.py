"""How much faster skipping makes generation, next to plain llama.cpp in the same process.

    ffnskip bench --shape llama2-7b --type q4_0 -t 2 -n 64 -r 3 --skip-ratio 0.3,0.5

Every setting has a context of its own over one model and is fed the same tokens at the same positions. Settings take
turns token by token, each round starting with another one, so that a machine that slows down or speeds up does so for
all of them. A speed-up is the median over all tokens of the ratio to plain llama.cpp within the round.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from ._core import Controller, SkipConfig, __version__
from .shapes import SHAPES, TYPES, WeightBytes, find_shape, find_type, random_model, read_weight_bytes, usable_in_place

__all__ = ["Options", "add_arguments", "measure", "run"]

RATIO_POLICIES = ("ffn_skip", "random", "random_adaptive_region")
ALWAYS_TRIPS = -2.0  # a cosine is never below -1
NEVER_TRIPS = 2.0
SKIPPABLE_ROW = 2  # ffnskip::RowKind
TYPICAL_N_UBATCH = 512


@dataclass(frozen=True)
class Options:
    """What to measure and how. `model_path`, or else `shape` and `type`."""

    model_path: str | None = None
    shape: str | None = None
    type: str = "q4_0"
    threads: int = 1
    n_prompt: int = 0
    n_gen: int = 64
    repetitions: int = 3
    n_gpu_layers: int = -1
    flash_attention: bool | None = None  # None: llama.cpp decides
    skip_ratios: tuple[float, ...] = (0.3, 0.5)
    policies: tuple[str, ...] = ("ffn_skip",)
    verbose: bool = False

    def check(self) -> None:
        """Raises ValueError (field, value, range), and FileNotFoundError for the model."""
        for name, value, least in (
            ("threads", self.threads, 1),
            ("n-prompt", self.n_prompt, 0),
            ("n-gen", self.n_gen, 1),
            ("repetitions", self.repetitions, 1),
        ):
            if value < least:
                raise ValueError(f"{name}: {value} is too few; at least {least}")
        for ratio in self.skip_ratios:
            if not 0 <= ratio <= 1:
                raise ValueError(f"skip-ratio: {ratio:g} is outside [0, 1]")
        for policy in self.policies:
            if policy not in RATIO_POLICIES:
                raise ValueError(f"policy: {policy!r} takes no skip ratio; those that do: {', '.join(RATIO_POLICIES)}")
        if self.model_path is None:
            find_shape(self.shape or "")
            find_type(self.type)
        elif not Path(self.model_path).is_file():
            raise FileNotFoundError(f"{self.model_path}: no such file")


# ---- settings under test ----


@dataclass(frozen=True)
class Setting:
    """One way to decode. `config` None is llama.cpp alone, without our callback."""

    name: str
    config: SkipConfig | None
    target: float | None = None


def settings_of(options: Options) -> list[Setting]:
    """The first is what all others are compared with."""
    checks = SkipConfig(sim_threshold=NEVER_TRIPS, warm_up_index=0, max_skip=1)
    return [
        Setting("dense", None),
        Setting("idle", SkipConfig(policy="dense")),
        Setting("checks", checks),
        *(
            Setting(policy, SkipConfig(policy, sim_threshold=ALWAYS_TRIPS, warm_up_index=0, skip_ratio=ratio), ratio)
            for policy in options.policies
            for ratio in options.skip_ratios
        ),
    ]


class Runner:
    """Decodes with plain llama.cpp."""

    def __init__(self, model: int, params: Any):
        self.ctx = llama_cpp.llama_init_from_model(model, params)
        if not self.ctx:
            raise ValueError("llama.cpp can't make a context; -v shows why")
        self._token = (llama_cpp.llama_token * 1)()
        self._batch = llama_cpp.llama_batch_get_one(self._token, 1)

    def close(self) -> None:
        llama_cpp.llama_free(self.ctx)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.ctx), False)

    def prompt(self, tokens: Sequence[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        _check(llama_cpp.llama_decode(self.ctx, llama_cpp.llama_batch_get_one(array, len(tokens))))
        llama_cpp.llama_synchronize(self.ctx)

    def token(self, token: int, position: int) -> None:
        self._token[0] = token
        _check(llama_cpp.llama_decode(self.ctx, self._batch))
        llama_cpp.llama_synchronize(self.ctx)


class SkippingRunner(Runner):
    """Decodes through a controller."""

    def __init__(self, model: int, params: Any, config: SkipConfig):
        self.controller = Controller()
        params.cb_eval = ctypes.cast(self.controller.callback, llama_cpp.ggml_backend_sched_eval_callback)
        params.cb_eval_user_data = self.controller.user_data
        super().__init__(model, params)
        try:
            self.controller.probe(self.ctx)
            self.controller.config = config
        except ValueError:
            self.close()
            raise

    def prompt(self, tokens: Sequence[int]) -> None:
        self.controller.decode(self.ctx, tokens, 0)
        llama_cpp.llama_synchronize(self.ctx)

    def token(self, token: int, position: int) -> None:
        self.controller.decode(self.ctx, [token], position, [SKIPPABLE_ROW])
        llama_cpp.llama_synchronize(self.ctx)


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"llama_decode returned {status}")


# ---- model and contexts ----


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    logger = logging.getLogger("llama-cpp-python")  # which llama_cpp lets decide what of llama.cpp's log is shown
    level = logger.level
    logger.setLevel(logging.INFO if verbose else logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[None]:
    """Ctrl-C takes effect at the end of the block, in which llama.cpp logs: the exception would be lost in llama_cpp's
    log callback, on its way through C."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


def _load(path: str, params: Any) -> int:
    with _deferred_interrupt():
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ValueError(f"{path}: llama.cpp can't load it; -v shows why")
    return model


@contextlib.contextmanager
def _open_model(options: Options) -> Iterator[tuple[int, WeightBytes]]:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = options.n_gpu_layers
    if options.model_path is not None:
        weights = read_weight_bytes(options.model_path)
        model = _load(options.model_path, params)
    else:
        in_place = usable_in_place(options.type)
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if in_place else llama_cpp.LLAMA_LOAD_MODE_NONE
        with random_model(options.shape or "", options.type) as path:
            weights = read_weight_bytes(path)
            model = _load(path, params)
    try:
        yield model, weights
    finally:
        llama_cpp.llama_model_free(model)


def _context_params(options: Options) -> Any:
    params = llama_cpp.llama_context_default_params()
    n_prompt = max(options.n_prompt, 1)
    params.n_ctx = n_prompt + options.n_gen
    params.n_batch = max(n_prompt, 2)
    params.n_ubatch = min(params.n_batch, TYPICAL_N_UBATCH)
    params.n_threads = params.n_threads_batch = options.threads
    if options.flash_attention is not None:
        params.flash_attn_type = int(options.flash_attention)
    return params


def _open_runners(stack: contextlib.ExitStack, model: int, options: Options) -> list[Runner]:
    runners = []
    for setting in settings_of(options):
        params = _context_params(options)
        with _deferred_interrupt():
            if setting.config is None:
                runner = Runner(model, params)
            else:
                runner = SkippingRunner(model, params, setting.config)
            stack.callback(runner.close)
        runners.append(runner)
    return runners


# ---- measuring ----


@dataclass
class Times:
    """Seconds, one row per setting, in the order of `settings_of`."""

    prompt: npt.NDArray[np.float64]  # [n_settings, repetitions]
    token: npt.NDArray[np.float64]  # [n_settings, repetitions * n_gen]


def _run_all(runners: list[Runner], options: Options, vocab_size: int, bos: int) -> Times:
    rng = np.random.default_rng(0)
    prompt = rng.integers(vocab_size, size=options.n_prompt).tolist() or [bos]
    tokens = rng.integers(vocab_size, size=options.n_gen).tolist()
    _repeat(runners, prompt, tokens[:2], 0, _progress(0, options))  # touches all memory, learns graphs
    for runner in runners:
        if isinstance(runner, SkippingRunner):
            runner.controller.reset_stats()
    times = []
    with _progress(options.repetitions * options.n_gen, options) as progress:
        for repetition in range(options.repetitions):
            times.append(_repeat(runners, prompt, tokens, repetition, progress))
    return Times(np.concatenate([t.prompt for t in times], 1), np.concatenate([t.token for t in times], 1))


def _progress(total: int, options: Options) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="tokens", leave=False, disable=True if total == 0 or options.verbose else None)


def _repeat(runners: list[Runner], prompt: list[int], tokens: list[int], repetition: int, progress: Any) -> Times:
    """One repetition: the prompt, then each token in turn by all settings."""
    times = Times(np.zeros((len(runners), 1)), np.zeros((len(runners), len(tokens))))
    for i in _rotated(len(runners), repetition):
        runners[i].clear()
        start = time.perf_counter_ns()
        runners[i].prompt(prompt)
        times.prompt[i, 0] = (time.perf_counter_ns() - start) * 1e-9
    for n, token in enumerate(tokens):
        for i in _rotated(len(runners), n):
            start = time.perf_counter_ns()
            runners[i].token(token, len(prompt) + n)
            times.token[i, n] = (time.perf_counter_ns() - start) * 1e-9
        progress.update()
    return times


def _rotated(n: int, first: int) -> list[int]:
    return [(first + i) % n for i in range(n)]


def measure(options: Options) -> list[dict[str, Any]]:
    """Measure all settings.

    Returns:
        One dict per row of the result, as documented in `ffnskip bench --help`.
    Raises:
        ValueError: A bad option, a model that can't be loaded, or a skip ratio it can't reach (`Unsupported` where it
            has no FFN block to skip).
        FileNotFoundError: The model file does not exist.
        RuntimeError: llama.cpp failed to decode.
    """
    options.check()
    with _quiet(options.verbose), _open_model(options) as (model, weights), contextlib.ExitStack() as stack:
        runners = _open_runners(stack, model, options)
        vocab = llama_cpp.llama_model_get_vocab(model)
        bos = max(llama_cpp.llama_vocab_bos(vocab), 0)
        times = _run_all(runners, options, llama_cpp.llama_vocab_n_tokens(vocab), bos)
        common = _common(options, model)
        rows = _prompt_rows(times, options) if options.n_prompt else []
        rows += [
            _token_row(setting, runner, times.token[0], times.token[i], weights, options)
            for i, (setting, runner) in enumerate(zip(settings_of(options), runners))
        ]
    return [{**row, **common} for row in rows]


def _common(options: Options, model: int) -> dict[str, Any]:
    return {
        "model": Path(options.model_path).name if options.model_path else options.shape,
        "type": _file_type(model) if options.model_path else options.type.lower(),
        "threads": options.threads,
        "n_prompt": options.n_prompt,
        "n_gen": options.n_gen,
        "repetitions": options.repetitions,
        "versions": {"ffnskip": __version__, "llama_cpp": llama_cpp.__version__},
    }


def _file_type(model: int) -> str:
    value = llama_cpp.llama_model_ftype(model) & ~llama_cpp.LLAMA_FTYPE_GUESSED
    names = {number: name for name, number in vars(llama_cpp).items() if name.startswith("LLAMA_FTYPE_")}
    return names.get(value, f"ftype {value}").replace("LLAMA_FTYPE_MOSTLY_", "").replace("LLAMA_FTYPE_ALL_", "").lower()


def _token_row(
    setting: Setting,
    runner: Runner,
    dense: npt.NDArray[np.float64],
    seconds: npt.NDArray[np.float64],
    weights: WeightBytes,
    options: Options,
) -> dict[str, Any]:
    ratio, checks, ideal = 0.0, 0.0, 1.0
    if isinstance(runner, SkippingRunner):
        stats = runner.controller.stats
        ratio, checks = stats.skip_ratio, stats.checks / stats.tokens
        ideal = weights.ideal_speed_up(dict(enumerate((stats.skipped_per_layer / stats.tokens).tolist())))
    row = _speeds(f"tg{options.n_gen}", setting, 1, dense, seconds)
    row.update(skip_ratio=ratio, ideal_speed_up=ideal, share_of_ideal=row["speed_up"] / ideal, checks=checks)
    return row


def _prompt_rows(times: Times, options: Options) -> list[dict[str, Any]]:
    """Prompts run in full whatever the setting, so plain llama.cpp and one of ours are all there is to compare."""
    test, n = f"pp{options.n_prompt}", options.n_prompt
    return [
        _speeds(test, setting, n, times.prompt[0], times.prompt[i])
        for i, setting in enumerate(settings_of(options)[:2])
    ]


def _speeds(
    test: str, setting: Setting, n_tokens: int, dense: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64]
) -> dict[str, Any]:
    lower, speed, upper = np.quantile(n_tokens / seconds, [0.25, 0.5, 0.75]).tolist()
    speed_up_q1, speed_up, speed_up_q3 = np.quantile(dense / seconds, [0.25, 0.5, 0.75]).tolist()
    return {
        "test": test,
        "policy": setting.name,
        "skip_ratio_target": setting.target,
        "skip_ratio": 0.0,
        "tokens_per_second": speed,
        "tokens_per_second_spread": upper - lower,
        "speed_up": speed_up,
        "speed_up_q1": speed_up_q1,
        "speed_up_q3": speed_up_q3,
        "ideal_speed_up": 1.0,
        "share_of_ideal": speed_up,
        "checks": 0.0,
    }


# ---- output ----

MARKDOWN_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": lambda row: row["model"],
    "type": lambda row: row["type"],
    "threads": lambda row: str(row["threads"]),
    "test": lambda row: row["test"],
    "policy": lambda row: row["policy"],
    "skipped": lambda row: f"{100 * row['skip_ratio']:.1f} %",
    "checks": lambda row: f"{row['checks']:.1f}",
    "t/s": lambda row: f"{row['tokens_per_second']:.2f} ± {row['tokens_per_second_spread'] / 2:.2f}",
    "speed-up": lambda row: f"{row['speed_up']:.3f} [{row['speed_up_q1']:.3f}, {row['speed_up_q3']:.3f}]",
    "ideal": lambda row: f"{row['ideal_speed_up']:.3f}",
    "of ideal": lambda row: f"{100 * row['share_of_ideal']:.1f} %",
}
TEXT_COLUMNS = ("model", "type", "test", "policy")

NOTES = """\
dense: llama.cpp without ffnskip; idle: ffnskip attached, nothing skipped or checked; checks: every layer of the
adaptive region checked, nothing skipped. In the other rows the check of the first adaptive layer always trips
(sim_threshold -2, warm_up_index 0), so that a token skips as many FFN blocks as it may: round(ratio * layers).
t/s: median of single tokens, ± half the interquartile range. speed-up: median [quartiles] of the ratio to dense, token
by token. ideal: the same ratio if time were in proportion to the bytes of weights read."""


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [list(MARKDOWN_COLUMNS), *([cell(row) for cell in MARKDOWN_COLUMNS.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(MARKDOWN_COLUMNS))]
    rule = ["-" * w if name in TEXT_COLUMNS else "-" * (w - 1) + ":" for name, w in zip(MARKDOWN_COLUMNS, widths)]
    aligned = [
        [cell.ljust(w) if name in TEXT_COLUMNS else cell.rjust(w) for name, cell, w in zip(lines[0], line, widths)]
        for line in lines
    ]
    aligned.insert(1, rule)
    versions = rows[0]["versions"]
    table = "\n".join(f"| {' | '.join(line)} |" for line in aligned)
    return f"{table}\n\n{NOTES}\nffnskip {versions['ffnskip']}, llama-cpp-python {versions['llama_cpp']}"


def _csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    flat = [{**row, "versions": " ".join(f"{name}={v}" for name, v in row["versions"].items())} for row in rows]
    writer = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "md": _markdown,
    "json": lambda rows: json.dumps(rows, indent=2),
    "jsonl": lambda rows: "\n".join(json.dumps(row) for row in rows),
    "csv": _csv,
}


# ---- command line ----

HELP = f"""\
{NOTES}

keys of json, jsonl and csv: test (tg: generation, pp: prompt), policy, skip_ratio_target, skip_ratio (achieved),
  tokens_per_second, tokens_per_second_spread (interquartile range), speed_up, speed_up_q1, speed_up_q3 (quartiles),
  ideal_speed_up, share_of_ideal (speed_up / ideal_speed_up), checks (per token), model, type, threads, n_prompt, n_gen,
  repetitions, versions

example:
  ffnskip bench --shape llama2-7b --type q4_0 -t 2 -n 64 -r 3 --skip-ratio 0.3,0.5 -o md"""


def _list_of(convert: Any) -> Any:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(convert(part) for part in text.split(","))

    parse.__name__ = f"list of {convert.__name__}"  # argparse puts it into its message
    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-m", "--model", metavar="FILE.gguf", help="model to measure")
    source.add_argument("--shape", metavar="NAME", help=f"random weights; {', '.join(SHAPES)}")
    parser.add_argument("--type", default="q4_0", help=f"of the random weights: {', '.join(TYPES)} (default: q4_0)")
    parser.add_argument(
        "-t", "--threads", type=int, default=os.cpu_count(), metavar="N", help="default: all processors"
    )
    parser.add_argument("-p", "--n-prompt", type=int, default=0, metavar="N", help="prompt tokens (default: 0)")
    parser.add_argument("-n", "--n-gen", type=int, default=64, metavar="N", help="generated tokens (default: 64)")
    parser.add_argument("-r", "--repetitions", type=int, default=3, metavar="R", help="default: 3")
    parser.add_argument("-ngl", "--n-gpu-layers", type=int, default=-1, metavar="N", help="layers on the GPU; -1: all")
    parser.add_argument("-fa", "--flash-attn", type=int, choices=(0, 1), help="default: llama.cpp decides")
    parser.add_argument(
        "--skip-ratio",
        type=_list_of(float),
        default=(0.3, 0.5),
        metavar="R,...",
        help="shares of all FFN blocks to skip (default: 0.3,0.5)",
    )
    parser.add_argument(
        "--policy",
        type=_list_of(str),
        default=("ffn_skip",),
        metavar="P,...",
        help=f"{', '.join(RATIO_POLICIES)} (default: ffn_skip)",
    )
    parser.add_argument("-o", "--output", choices=tuple(FORMATS), default="md", help="default: md")
    parser.add_argument("-v", "--verbose", action="store_true", help="show llama.cpp's log")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP


def run(args: argparse.Namespace) -> int:
    """Do what parsed `args` ask; 0 on success, 2 with one line on stderr otherwise, 130 when interrupted."""
    options = Options(
        model_path=args.model,
        shape=args.shape,
        type=args.type,
        threads=args.threads,
        n_prompt=args.n_prompt,
        n_gen=args.n_gen,
        repetitions=args.repetitions,
        n_gpu_layers=args.n_gpu_layers,
        flash_attention=None if args.flash_attn is None else bool(args.flash_attn),
        skip_ratios=args.skip_ratio,
        policies=args.policy,
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
