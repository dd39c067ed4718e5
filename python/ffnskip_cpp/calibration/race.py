"""Many settings on little text, the best half of them on twice as much, and so on (successive halving, Jamieson and
Talwalkar 2016). All that are in a round see the same text, that of the rounds before and some more; those that are
clearly worse than the best leave before their time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..measure.text import Chunk
from ..skip_config import SkipConfig
from .evaluation import Evaluator, Score

__all__ = ["Cost", "Race", "cost", "rounds"]

FINALISTS = 2  # of equals, in the last round
CLEARLY = 3.0  # standard errors of the difference: not 2, as tokens of one chunk depend on one another

Cost = Callable[[Score], npt.NDArray[np.float64]]
"""Of each row, [n_rows]; the mean is what a race is about."""


def rounds(n_chunks: int, first: int) -> list[int]:
    """Chunks of each round, the last one all of them: rounds(16, 2) is [2, 4, 8, 16]."""
    sizes = [n_chunks]
    while sizes[0] > first:
        sizes.insert(0, max(first, -(-sizes[0] // 2)))
    return sizes


def cost(n_settings: int, n_chunks: int, first: int) -> int:
    """Evaluations of a chunk that a race takes at most."""
    total, before = 0, 0
    for size in rounds(n_chunks, first):
        total += n_settings * (size - before)
        before, n_settings = size, _survivors(n_settings)
    return total


def _survivors(n: int) -> int:
    return min(n, max(FINALISTS, -(-n // 2)))


class Race:
    """
    Args:
        chunks: The text, that of the first round first.
        first: Chunks of the first round.
    """

    def __init__(self, evaluator: Evaluator, chunks: Sequence[Chunk], first: int):
        self._evaluator = evaluator
        self.chunks = chunks
        self.first = min(first, len(chunks))
        self.seen: dict[SkipConfig, Score] = {}
        """Every setting that was measured, by all the text that it saw."""

    def run(self, configs: Sequence[SkipConfig], of_rows: Cost) -> list[Score]:
        """The settings by what they cost, those that saw more text before those that saw less; the first ones saw all
        of it."""
        with self._evaluator.at_most(self._n_tokens(len(configs))):
            racing = list(configs)
            lost: list[Score] = []
            for size in rounds(len(self.chunks), self.first):
                scores = sorted(self._scores(racing, size), key=lambda score: of_rows(score).mean())
                if size == len(self.chunks):
                    break
                best = scores[0]
                racing = [s.config for s in scores[: _survivors(len(scores))] if not _clearly_worse(s, best, of_rows)]
                lost[:0] = [score for score in scores if score.config not in racing]
        return [*scores, *lost]

    def score(self, config: SkipConfig) -> Score:
        """On all of the text."""
        return self._scores([config], len(self.chunks))[0]

    def _n_tokens(self, n_settings: int) -> int:
        mean = sum(map(len, self.chunks)) / len(self.chunks)
        return round(mean * cost(n_settings, len(self.chunks), self.first))

    def _scores(self, configs: Sequence[SkipConfig], n_chunks: int) -> list[Score]:
        found = self._evaluator.scores(configs, self.chunks[:n_chunks])
        for score in found:
            known = self.seen.get(score.config)
            if known is None or len(known.kl) < len(score.kl):
                self.seen[score.config] = score
        return found


def _clearly_worse(score: Score, best: Score, of_rows: Cost) -> bool:
    difference = of_rows(score) - of_rows(best)
    return bool(difference.mean() > CLEARLY * difference.std() / np.sqrt(len(difference)))
