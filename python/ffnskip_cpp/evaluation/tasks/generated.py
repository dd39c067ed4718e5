"""What tasks that let the model write have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...batches import Completion
from ..collapse import collapse
from .base import Item, Metric, Record

__all__ = ["COLLAPSE", "record"]

COLLAPSE = (
    Metric("repeated_4grams", "repeated_4grams", higher_is_better=False, percent=True),
    Metric("distinct_1", "distinct_1", percent=True),
    Metric("distinct_2", "distinct_2", percent=True),
    Metric("longest_run", "longest_run", higher_is_better=False),
    Metric("compression", "compression", higher_is_better=False),
    Metric("unfinished", "unfinished", higher_is_better=False, percent=True),
    Metric("length", "length"),
)
"""Means over items of what `collapse.Collapse` has."""


def record(item: Item, completions: Sequence[Completion], values: dict[str, float], shown: dict[str, Any]) -> Record:
    """Of an item that the model answered in one text, or in several."""
    return Record(
        id=item.id,
        group=item.group,
        values={**values, **collapse(*completions).values()},
        n_scored=sum(len(completion.tokens) for completion in completions),
        n_may_skip=sum(completion.n_may_skip for completion in completions),
        shown={**shown, "tokens": [token for completion in completions for token in completion.tokens]},
    )
