"""How fast settings, and other files of the same model, generate next to the dense model: in turn, some tokens each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .._core import CHANNEL_TOKENS
from ..files import PathLike
from ..llama import Llama
from ..llama_cpp_internals import model_address
from ..skip_config import SkipConfig
from .options import Options, Setting, Test
from .runners import Runner, open_runners, quiet

__all__ = ["TURN", "Speed", "measure_speed"]

LEAST_TURNS = 2  # of each, if the time is over before
TURN = 3  # tokens of each at a time
PROMPTS = 3  # evaluations of it by each
Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Speed:
    """Of one subject."""

    tokens_per_second: float
    speed_up: tuple[float, float, float]
    """Median and quartiles, over tokens, of the dense model's time over this one's in the same round."""
    cpu_speed_up: tuple[float, float, float]
    """The same of the process's CPU time, of all threads together, which other programs hardly change."""
    first_token_seconds: float
    first_token: float
    """The dense model's time to the first token of a prompt over this one's; of a few evaluations the fastest."""
    skip_ratio: float = 0.0
    """Of these tokens, as `SkipStats` has it."""


def measure_speed(
    llm: Llama,
    subjects: Sequence[SkipConfig | Llama | None],
    prompt: Sequence[int],
    tokens: Sequence[int],
    n_threads: int,
    is_over: Callable[[], bool] = lambda: False,
    lora: PathLike | None = None,
) -> Iterator[list[Speed]]:
    """What is known of each subject after each turn. The first is None, the dense model: plain llama.cpp, without our
    callback.

    All are fed the same tokens: a prompt, then single ones, of which each may skip. A model that is slower for a while
    is so next to all others, and what is left of it cancels in the ratio. The first token of a turn does not count: it
    finds the weights of another file in the caches, and of two subjects that share theirs only one would.

    Args:
        tokens: At least a turn of them; those behind the last whole turn are left out.
        lora: An adapter that all have: FILE or FILE:SCALE.
    """
    test = Test(n_prompt=len(prompt), n_gen=len(tokens))
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet(False))
        runners = _open(stack, llm, subjects, test, n_threads, lora)
        prompts = _first_tokens(runners, list(prompt), is_over)
        _find_thresholds(runners, list(prompt))
        for generated in _in_turn(runners, tokens, len(prompt), is_over):
            yield [
                replace(_speed(generated[0], generated[i], prompts[0], prompts[i]), skip_ratio=runner.skip_ratio)
                for i, runner in enumerate(runners)
            ]


def _open(
    stack: contextlib.ExitStack,
    llm: Llama,
    subjects: Sequence[SkipConfig | Llama | None],
    test: Test,
    n_threads: int,
    lora: PathLike | None,
) -> list[Runner]:
    """In the order of the subjects; those of one model share its weights."""
    runners: list[Runner] = []
    for subject in subjects:
        model = subject if isinstance(subject, Llama) else llm
        options = Options(model_path=model.model_path, lora=lora)
        setting = Setting("", subject if isinstance(subject, SkipConfig) else None)
        opened = open_runners(model_address(model), [setting], test, n_threads, options)
        runners += stack.enter_context(opened)
    return runners


def _first_tokens(runners: Sequence[Runner], prompt: list[int], is_over: Callable[[], bool]) -> Seconds:
    """[n_runners, n_prompts]; the last evaluation stays in the contexts. One before them is not counted: it touches all
    memory and learns the graph."""
    rounds: list[list[float]] = []
    while len(rounds) <= PROMPTS and (len(rounds) < 2 or not is_over()):
        seconds = [0.0] * len(runners)
        for i in _rotated(len(runners), len(rounds)):
            runners[i].reset(None)
            seconds[i], _ = _time(runners[i].prompt, prompt, 0)
        rounds.append(seconds)
    return np.array(rounds[1:]).T


def _find_thresholds(runners: Sequence[Runner], prompt: list[int]) -> None:
    """Settings that find thresholds in generated tokens take the last ones of the prompt for such. What comes then
    counts."""
    for runner in runners:
        if runner.finds_thresholds:
            runner.reset(None)
            n = len(prompt) - CHANNEL_TOKENS
            runner.prompt(prompt[:n], 0)
            for i, token in enumerate(prompt[n:]):
                runner.generated([token], n + i)
        runner.reset_stats()


def _in_turn(
    runners: Sequence[Runner], tokens: Sequence[int], position: int, is_over: Callable[[], bool]
) -> Iterator[Seconds]:
    """[n_runners, 2, n_tokens so far], seconds and those of the CPU: each turn by all runners, each time from another
    one on."""
    turns: list[list[list[tuple[float, float]]]] = []
    for n in range(len(tokens) // TURN):
        if n >= LEAST_TURNS and is_over():
            break
        turn = [(position + i, tokens[i]) for i in range(n * TURN, (n + 1) * TURN)]
        seconds: list[list[tuple[float, float]]] = [[] for _ in runners]
        for i in _rotated(len(runners), n):
            seconds[i] = [_time(runners[i].generated, [token], at) for at, token in turn][1:]
        turns.append(seconds)
        yield np.concatenate(turns, axis=1).transpose(0, 2, 1)


def _time(decode: Callable[[list[int], int], None], tokens: list[int], position: int) -> tuple[float, float]:
    """Seconds, and those that the process's threads had of the CPU."""
    start, cpu_start = time.perf_counter_ns(), time.process_time_ns()
    decode(tokens, position)
    cpu_end, end = time.process_time_ns(), time.perf_counter_ns()
    return (end - start) * 1e-9, (cpu_end - cpu_start) * 1e-9


def _rotated(n: int, first: int) -> list[int]:
    return [(first + i) % n for i in range(n)]


def _speed(dense: Seconds, generated: Seconds, dense_prompts: Seconds, prompts: Seconds) -> Speed:
    (lower, cpu_lower), (median, cpu_median), (upper, cpu_upper) = np.quantile(
        dense / generated, [0.25, 0.5, 0.75], axis=1
    ).tolist()
    return Speed(
        float(1 / np.median(generated[0])),
        (median, lower, upper),
        (cpu_median, cpu_lower, cpu_upper),
        float(prompts.min()),
        float(dense_prompts.min() / prompts.min()),
    )
