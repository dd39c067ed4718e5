"""Many settings on little text, the best half of them on twice as much, and so on (successive halving, Jamieson and
Talwalkar 2016). All that are in a round see the same text, that of the rounds before and some more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .._core import SkipConfig
from ..text import Chunk
from .evaluation import Evaluator, Score

__all__ = ["FINALISTS", "Race", "cost", "rounds"]

FINALISTS = 2  # at least, in the last round


def rounds(n_chunks: int, first: int) -> list[int]:
    """Chunks of each round, the last one all of them: rounds(16, 2) is [2, 4, 8, 16]."""
    sizes = [n_chunks]
    while sizes[0] > first:
        sizes.insert(0, max(first, -(-sizes[0] // 2)))
    return sizes


def cost(n_settings: int, n_chunks: int, first: int) -> int:
    """Evaluations of a chunk that a race takes."""
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

    def run(self, configs: Sequence[SkipConfig], cost: Callable[[Score], float]) -> list[Score]:
        """The settings by what they cost, those that saw more text before those that saw less; the first ones saw all
        of it."""
        racing, lost = list(configs), []
        for size in rounds(len(self.chunks), self.first):
            scores = sorted(self._scores(racing, size), key=cost)
            n = _survivors(len(scores)) if size < len(self.chunks) else len(scores)
            lost[:0] = scores[n:]
            racing = [score.config for score in scores[:n]]
        return [*scores, *lost]

    def score(self, config: SkipConfig) -> Score:
        """On all of the text."""
        return self._scores([config], len(self.chunks))[0]

    def _scores(self, configs: Sequence[SkipConfig], n_chunks: int) -> list[Score]:
        found = self._evaluator.scores(configs, self.chunks[:n_chunks])
        for score in found:
            known = self.seen.get(score.config)
            if known is None or len(known.kl) < len(score.kl):
                self.seen[score.config] = score
        return found
