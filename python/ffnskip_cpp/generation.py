"""Generators around a generation: a limit, one user at a time, exceptions that reach the caller."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import LogitsProcessorList

__all__ = ["GuardedProcessors", "exclusively", "first", "sampling_options"]

_SELF, _TOKENS, *_OPTIONS = inspect.signature(llama_cpp.Llama.generate).parameters.values()
_SIGNATURE = inspect.Signature(_OPTIONS)
_INSTEAD = {
    "temperature": "temp",
    "stop": "create_completion(stop=...)",
    "seed": "set_seed(...) before it",
    "stream": "nothing: it always streams",
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
}

Steps = Generator[int, Any, None]


def sampling_options(args: Sequence[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """The options of `llama_cpp.Llama.generate` by name. Raises TypeError for others, with the right spelling."""
    for name in keywords:
        if name not in _SIGNATURE.parameters and name in _INSTEAD:
            raise TypeError(f"generate() has no option {name!r}; use {_INSTEAD[name]}")
    return _SIGNATURE.bind(*args, **keywords).arguments


def first(generation: Steps, n: int) -> Steps:
    """The first n tokens; the n-th is not fed back to the model."""
    sent = None
    try:
        for _ in range(n):
            sent = yield generation.send(sent)
    except StopIteration:
        pass
    finally:
        generation.close()


def exclusively(steps: Steps, at_work: Callable[[], AbstractContextManager[None]]) -> Steps:
    """Every step within `at_work()`, which may refuse it."""
    sent = None
    try:
        while True:
            with at_work():
                try:
                    token = steps.send(sent)
                except StopIteration:
                    return
            sent = yield token
    finally:
        steps.close()


class GuardedProcessors(LogitsProcessorList):
    """Logits processors whose exceptions reach the caller: one raised in a ctypes callback would only be printed."""

    def __init__(self, processors: Sequence[Any]):
        super().__init__(processors)
        self._pending: BaseException | None = None
        self[:] = [self._guarded(processor) for processor in processors]

    def _guarded(self, processor: Any) -> Any:
        def guarded(input_ids: Any, scores: Any) -> Any:
            if self._pending is None:
                try:
                    return np.broadcast_to(processor(input_ids, scores), scores.shape)
                except BaseException as error:
                    self._pending = error
            return scores

        return guarded

    def raise_pending(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            raise pending
