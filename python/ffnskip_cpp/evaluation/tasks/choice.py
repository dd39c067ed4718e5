"""Choices, the likeliest of which counts: ARC, PIQA, OpenBookQA, BoolQ, or any in this form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.entry import Entry
from ..data.json_text import entries_of_lines
from .base import Item, Metric, Record, Settings, Subject
from .fitting import check_texts
from .ids import content_id, numbered
from .scored import record

__all__ = ["Choice", "Question"]

ASKING = ("Question:", "Passage:")
"""What a query begins with that an answer is to follow; any other is a text to go on with."""
ANSWER = "Answer:"


@dataclass(frozen=True)
class Question(Item):
    query: str
    choices: tuple[str, ...]
    gold: int
    """Index of the right one."""

    @property
    def prompt(self) -> str:
        query = self.query.rstrip()
        return f"{query}\n{ANSWER}" if query.startswith(ASKING) and not query.endswith(ANSWER) else query

    @property
    def continuations(self) -> list[str]:
        return [f" {choice}" for choice in self.choices]


class Choice:
    """Lines of JSON with query, choices and gold. Accuracies are defined as in lm-evaluation-harness."""

    name = "choice"
    metrics: tuple[Metric, ...] = (
        Metric("acc_norm", "acc_norm", percent=True),  # by likelihood per character
        Metric("acc", "acc", percent=True),
    )

    def read(self, path: Path) -> list[Question]:
        return numbered(map(_question, entries_of_lines(path)))

    def run(self, subject: Subject, items: Sequence[Question], settings: Settings) -> Iterator[Record]:
        check_texts(subject, items, [(item.prompt, item.continuations) for item in items])
        for item in items:
            score = subject.score(item.prompt, item.continuations)
            likely = score.log_likelihood
            chosen = int(likely.argmax())
            chosen_norm = int((likely / np.array([len(choice) for choice in item.choices])).argmax())
            values = {"acc_norm": float(chosen_norm == item.gold), "acc": float(chosen == item.gold)}
            yield record(item, score, values, {"choice": chosen_norm, "gold": item.gold, "likely": likely.tolist()})


def _question(entry: Entry) -> Question:
    query, choices, gold = entry.text("query"), entry.texts("choices"), entry.get("gold")
    if len(choices) < 2:
        raise ValueError(f"{entry.where}: one choice; two at least are right")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        raise ValueError(
            f"{entry.where}: 'gold' is {gold!r}; the index of the right choice, 0 to {len(choices) - 1}, is right"
        )
    return Question(content_id(query, *choices), "", entry.where, query, choices, gold)
