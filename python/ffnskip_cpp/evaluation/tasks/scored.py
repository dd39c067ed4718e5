"""What tasks that ask how likely texts are have in common."""

from __future__ import annotations

from typing import Any

from ...scoring import Score
from .base import Item, Record

__all__ = ["record"]


def record(item: Item, score: Score, values: dict[str, float], shown: dict[str, Any]) -> Record:
    return Record(
        id=item.id,
        group=item.group,
        values=values,
        n_scored=int(score.n_tokens.sum()),
        n_may_skip=int(score.n_may_skip.sum()),
        shown=shown,
    )
