"""Whether a text has collapsed, without a judge: it repeats itself, or does not end.

Tokens are the model's own, so that every language is measured alike; compare models of one vocabulary. Texts of
different lengths differ in all of this, distinct n-grams above all: `length` goes with it.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..batches import Completion

__all__ = ["Agreement", "Collapse", "agreement", "collapse"]


@dataclass(frozen=True)
class Collapse:
    """Of one text; of several, the means."""

    repeated_4grams: float
    """[0, 1]: of its 4-grams of tokens, the share that was there before; 0 where it has none."""
    distinct_1: float
    """[0, 1]: different tokens over tokens; 1 where it has none."""
    distinct_2: float
    """[0, 1]: the same of pairs."""
    longest_run: float
    """Tokens of the longest stretch that is one phrase over and over, twice at least; 1 where there is none, 0 of no
    text. A phrase is a token, or as many as it takes."""
    compression: float
    """Bytes of the text over bytes that zlib makes of it; 0 where it has none. Prose of some length has about 2."""
    unfinished: float
    """1 where it ends because it had all the tokens that it may have, 0 else."""
    length: float
    """Tokens. Neither more nor less is better."""

    def values(self) -> dict[str, float]:
        """By name, for a record."""
        return asdict(self)


def collapse(*completions: Completion) -> Collapse:
    """Of one text, or the means over some."""
    each = [_of(completion) for completion in completions]
    return Collapse(*(float(np.mean(values)) for values in zip(*each)))


def _of(completion: Completion) -> tuple[float, ...]:
    tokens, data = completion.tokens, completion.text.encode("utf-8")
    return (
        1 - _distinct(tokens, 4),
        _distinct(tokens, 1),
        _distinct(tokens, 2),
        _longest_run(tokens),
        len(data) / len(zlib.compress(data, 9)),
        completion.finish_reason == "length",
        len(tokens),
    )


def _distinct(tokens: Sequence[int], n: int) -> float:
    grams = Counter(zip(*(tokens[i:] for i in range(n))))
    return len(grams) / sum(grams.values()) if grams else 1.0


def _longest_run(tokens: Sequence[int]) -> int:
    """Where a phrase of n tokens is repeated, every token equals the one n before it."""
    ids, longest = np.array(tokens), min(1, len(tokens))
    for n in range(1, len(ids) // 2 + 1):
        same = np.concatenate([[0], ids[n:] == ids[:-n], [0]]).astype(np.int64)
        ends = np.flatnonzero(np.diff(same))  # begin and end of each stretch, one after the other
        stretch = int(np.diff(ends)[::2].max(initial=0))
        if stretch >= n:
            longest = max(longest, stretch + n)
    return longest


@dataclass(frozen=True)
class Agreement:
    """How far a text is the dense model's."""

    first_difference: int | None
    """Index of the first token that differs, or that one of the two does not have; None: there is none."""
    share: float
    """[0, 1]: tokens before it, over those of the longer text; 1 where both are the same."""


def agreement(dense: Sequence[int], tokens: Sequence[int]) -> Agreement:
    """Of a text with that of the dense model, in tokens."""
    longer = max(len(dense), len(tokens))
    common = next((i for i, (a, b) in enumerate(zip(dense, tokens)) if a != b), min(len(dense), len(tokens)))
    return Agreement(None, 1.0) if common == longer else Agreement(common, common / longer)
