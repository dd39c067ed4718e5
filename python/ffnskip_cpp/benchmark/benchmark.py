"""How much faster skipping makes generation, next to plain llama.cpp in the same process.

    print(bench(shape="llama2-7b", n_threads=2, skip_ratio=(0.3, 0.5)))

Every setting has a context of its own over one model and is fed the same tokens at the same positions. Settings take
turns token by token, each round starting with another one, so that a machine that slows down or speeds up does so for
all of them. A speed-up is the median over all tokens of the ratio to plain llama.cpp within the round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import llama_cpp

from .._core import Profile, __version__, find_profile
from ..files import PathLike
from ..gguf_file.file_type import file_type
from ..gguf_file.weights import WeightBytes
from ..profile import read_profile
from ..skip_config import TensorsName
from .options import AUTO, Options, Setting, Several, Test, lead_of, settings_of
from .rows import Benchmark, BenchmarkRow, row_of, times_of
from .runners import open_model, open_runners, quiet
from .timing import time_test

__all__ = ["bench"]


def bench(
    model_path: PathLike | None = None,
    *,
    shape: str | None = None,
    type: str = Options.type,
    n_threads: Several[int] | None = None,
    n_prompt: Several[int] = Options.n_prompt,
    n_gen: Several[int] = Options.n_gen,
    n_depth: Several[int] = Options.n_depth,
    repetitions: int = Options.repetitions,
    warm_up: bool = True,
    n_gpu_layers: int = Options.n_gpu_layers,
    flash_attention: bool | None = None,
    skip_ratio: Several[float] | None = None,
    policy: Several[str] | None = None,
    region: Several[str] | None = None,
    cold_s: int | None = None,
    cold_e: int | None = None,
    tensors: TensorsName = "ffn",
    profile: Several[PathLike] | None = None,
    lora: PathLike | None = None,
    progress: bool | None = None,
    verbose: bool = False,
) -> Benchmark:
    """Measure how much faster skipping makes generation. Several values of an argument are all measured.

    Args:
        model_path: A GGUF file (the first part, if it is split); or else `shape`.
        shape: Random weights of a known model, "llama2-7b" say, in `type`. A wrong name lists all.
        n_threads: Threads; None: all processors.
        n_prompt, n_gen: Tokens of a prompt and generated tokens, each a test; 0: no such test.
        n_depth: Tokens in the context before a test.
        repetitions: Of each test, after an untimed run of its beginning (`warm_up`).
        n_gpu_layers: Layers on the GPU; -1: all.
        flash_attention: None: llama.cpp decides.
        skip_ratio: Shares to skip, in [0, 1], of all FFN blocks, with "channels" of the weight bytes of `tensors`.
            Default: 0.3 and 0.5, with "channels" a third and 0.5; none besides profiles.
        policy: What to skip by: "ffn_skip" (default), "random", "channels"; "fixed": the same blocks for every token.
        region: Where "random" chooses from: "any" (default) or "adaptive".
        cold_s, cold_e: Layers [0, cold_s) and [cold_e, n_layer) never skip blocks. Default: an eighth at either end,
            for "fixed" the last layer.
        tensors: Whose input channels "channels" leaves out: "ffn", or "all", those of attention's matrices too.
        profile: Profiles to measure too; "auto" is the model's own.
        lora: An adapter that every context has: FILE or FILE:SCALE.
        progress: Show a progress bar on stderr; None: where that is a terminal.
        verbose: Show llama.cpp's log.
    Raises:
        FileNotFoundError: The model, a profile or the adapter does not exist.
        ValueError: A bad argument, a model that can't be loaded, or a skip ratio it can't reach (`Unsupported` where it
            has no FFN block to skip).
        DecodeError: llama.cpp failed to decode.
    """
    options = Options(**locals())  # whose fields are these arguments
    options.check()
    with quiet(options.verbose), open_model(options) as (loaded, weights):
        profiles = _profiles(loaded, options)
        _check_settings(loaded, options, profiles)
        return Benchmark(
            tuple(
                row
                for threads in options.threads
                for test in options.tests
                for row in _measure(loaded, weights, test, settings_of(options, test, profiles), threads, options)
            )
        )


def _profiles(model: int, options: Options) -> dict[str, Profile]:
    """By the name of their row: the file's, or the path where two files have the same."""
    found: dict[str, Profile] = {}
    for given in options.profiles:
        profile = find_profile(model, str(options.model_path)) if given == AUTO else read_profile(given)
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


def _measure(
    model: int, weights: WeightBytes, test: Test, settings: Sequence[Setting], threads: int, options: Options
) -> list[BenchmarkRow]:
    common = {
        "model": options.shape if options.model_path is None else Path(options.model_path).name,
        "type": options.type.lower() if options.model_path is None else file_type(model),
        "threads": threads,
        "repetitions": options.repetitions,
        "cold_s": options.cold_s,
        "cold_e": options.cold_e,
        "tensors": options.tensors,
        "versions": {"ffnskip": __version__, "llama_cpp": llama_cpp.__version__},
    }
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    with open_runners(model, settings, test, threads, options) as runners:
        seconds = time_test(runners, test, n_vocab, options, lead_of(settings))
        times = times_of(settings, runners, seconds)
        return [
            row_of(test, setting, runner, weights, times, seconds[i], common)
            for i, (setting, runner) in enumerate(zip(settings, runners))
        ]
