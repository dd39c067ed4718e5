"""How much faster skipping makes generation, next to plain llama.cpp in the same process.

    ffnskip bench --shape llama2-7b --type q4_0 -t 2 -n 64 -r 3 --skip-ratio 0.3,0.5

Every setting has a context of its own over one model and is fed the same tokens at the same positions. Settings take
turns token by token, each round starting with another one, so that a machine that slows down or speeds up does so for
all of them. A speed-up is the median over all tokens of the ratio to plain llama.cpp within the round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp

from .._core import Profile, __version__, find_profile
from ..gguf_file.file_type import file_type
from ..gguf_file.shapes import WeightBytes
from ..profile import read_profile
from .options import AUTO, Options, Setting, Test, settings_of
from .rows import row_of
from .runners import open_model, open_runners, quiet
from .timing import time_test

__all__ = ["bench"]


def bench(options: Options) -> list[dict[str, Any]]:
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
