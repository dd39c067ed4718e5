"""Seconds per piece of a test, all settings in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..progress import progress_bar
from .options import Options, Test
from .runners import Runner

__all__ = ["time_test"]


def time_test(
    runners: Sequence[Runner], test: Test, vocab_size: int, options: Options, n_lead: int = 0
) -> npt.NDArray[np.float64]:
    """Times the test, after an untimed run of its beginning.

    Args:
        n_lead: Tokens decoded once before those that are timed, for settings that find thresholds in them.
    Returns:
        Seconds, [len(runners), number of pieces]: a piece is a whole prompt, or one generated token.
    """
    rng = np.random.default_rng(0)
    state = _filled(runners[0], rng.integers(vocab_size, size=test.n_depth).tolist())
    tokens = rng.integers(vocab_size, size=test.n_prompt + test.n_gen).tolist()
    if n_lead:
        state = _led(runners, rng.integers(vocab_size, size=n_lead).tolist(), state, test.n_depth)
    position = test.n_depth + n_lead
    pieces = [tokens] if test.n_prompt else [[token] for token in tokens]
    if options.warm_up:  # touches all memory, learns graphs
        _repeat(runners, test, pieces[:2], state, position, 0, lambda: None)
    for runner in runners:
        runner.reset_stats()
    show = False if options.verbose else options.progress  # a bar would get lost between the lines of the log
    unit = "prompts" if test.n_prompt else "tokens"
    with progress_bar(test.name, options.repetitions * len(pieces), unit=unit, show=show) as bar:
        return np.concatenate(
            [_repeat(runners, test, pieces, state, position, n, bar.update) for n in range(options.repetitions)],
            axis=1,
        )


def _filled(runner: Runner, tokens: list[int]) -> Any:
    """The state of a context that holds `tokens`, in which every setting starts: a prompt is the same in all of them,
    and long ones take longer than what is to be measured. None for no tokens."""
    if not tokens:
        return None
    runner.reset(None)
    runner.prompt(tokens, 0)
    return runner.state()


def _led(runners: Sequence[Runner], tokens: list[int], state: Any, position: int) -> Any:
    """The state after these tokens, which settings that find thresholds in them have decoded as well."""
    for runner in runners:
        if runner is runners[0] or runner.finds_thresholds:
            runner.reset(state)
            for n, token in enumerate(tokens):
                runner.generated([token], position + n)
    return runners[0].state()


def _repeat(
    runners: Sequence[Runner],
    test: Test,
    pieces: list[list[int]],
    state: Any,
    position: int,
    repetition: int,
    told: Callable[[], Any],
) -> npt.NDArray[np.float64]:
    """One repetition: each piece in turn by all settings, each time from another one on."""
    seconds = np.zeros((len(runners), len(pieces)))
    for runner in runners:
        runner.reset(state)
    for n, piece in enumerate(pieces):
        for i in _rotated(len(runners), repetition + n):
            decode = runners[i].prompt if test.n_prompt else runners[i].generated
            start = time.perf_counter_ns()
            decode(piece, position)
            seconds[i, n] = (time.perf_counter_ns() - start) * 1e-9
        position += len(piece)
        told()
    return seconds


def _rotated(n: int, first: int) -> list[int]:
    return [(first + i) % n for i in range(n)]
