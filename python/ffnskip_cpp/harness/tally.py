"""Of the tokens that a task's figures hang on, how many could skip: where none could, the figures are the dense
model's."""

from __future__ import annotations

from collections import Counter
from typing import Any

__all__ = ["Tally"]


class Tally:
    """Counts by task."""

    def __init__(self) -> None:
        self._scored: Counter[str] = Counter()
        self._may_skip: Counter[str] = Counter()

    def add(self, task: str | None, n_scored: int, n_may_skip: int) -> None:
        self._scored[task or ""] += n_scored
        self._may_skip[task or ""] += n_may_skip

    @property
    def share(self) -> float:
        """Of all tasks; 0 without tokens."""
        return self._may_skip.total() / max(1, self._scored.total())

    @property
    def dense(self) -> list[str]:
        """Tasks none of whose tokens could skip."""
        return [task for task in self._scored if self._may_skip[task] == 0]

    def as_dict(self) -> dict[str, Any]:
        """By task: tokens scored, and the share of them that could skip."""
        return {
            task: {"n_scored": n, "could_skip": self._may_skip[task] / max(1, n)} for task, n in self._scored.items()
        }
