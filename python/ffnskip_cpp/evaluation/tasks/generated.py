"""What tasks that let the model write have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...batches import Completion
from ..collapse import collapse
from .base import Item, Metric, Prompt, Record, Subject

__all__ = ["COLLAPSE", "check_fits", "n_tokens", "record", "room"]

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


def room(subject: Subject, max_tokens: int) -> int:
    """Tokens that a prompt may have which can be shortened: the answer gets all it may have, or at least a quarter of
    the context."""
    return subject.n_ctx() - min(max_tokens, subject.n_ctx() // 4)


def n_tokens(subject: Subject, prompt: Prompt) -> int:
    return len(subject.tokenize(prompt) if isinstance(prompt, str) else prompt)


def check_fits(subject: Subject, items: Sequence[Item], prompts: Sequence[Prompt]) -> None:
    """Before anything is computed: ValueError for the first prompt that leaves no room for an answer."""
    for item, prompt in zip(items, prompts):
        n, n_ctx = n_tokens(subject, prompt), subject.n_ctx()
        if n >= n_ctx:
            raise ValueError(
                f"{item.where}: a prompt of {n} tokens, and the context has {n_ctx}; a larger one is right"
            )
