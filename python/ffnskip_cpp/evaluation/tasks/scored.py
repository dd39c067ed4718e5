"""What tasks that ask how likely texts are have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...scoring import Score
from .base import Item, Record, Subject

__all__ = ["check_scores", "record"]


def record(item: Item, score: Score, values: dict[str, float], shown: dict[str, Any]) -> Record:
    return Record(
        id=item.id,
        group=item.group,
        values=values,
        n_scored=int(score.n_tokens.sum()),
        n_may_skip=int(score.n_may_skip.sum()),
        shown=shown,
    )


def check_scores(subject: Subject, items: Sequence[Item], texts: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Before anything is computed: ValueError for the first prefix whose longest continuation has no room."""
    n_ctx = subject.n_ctx()
    for item, (prefix, continuations) in zip(items, texts):
        n = max(len(subject.tokenize(prefix + text)) for text in continuations)
        if n > n_ctx:
            raise ValueError(f"{item.where}: a text of {n} tokens, and the context has {n_ctx}; a larger one is right")
