"""The last word of a passage: LAMBADA (Paperno et al. 2016), as lm-evaluation-harness puts it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.entry import Entry
from ..data.json_text import entries_of_lines
from .base import Item, Metric, Record, Settings, Subject
from .fitting import check_texts
from .ids import content_id, numbered
from .scored import record

__all__ = ["Cloze", "Passage"]


@dataclass(frozen=True)
class Passage(Item):
    context: str
    continuation: str
    """With the blank before it."""


class Cloze:
    """Lines of JSON with context and continuation."""

    name = "cloze"
    metrics: tuple[Metric, ...] = (
        Metric("acc", "acc", percent=True),  # every token of the word is the likeliest one
        Metric("perplexity", "nll", exponential=True, higher_is_better=False),  # of whole words
    )

    def read(self, path: Path) -> list[Passage]:
        return numbered(map(_passage, entries_of_lines(path)))

    def run(self, subject: Subject, items: Sequence[Passage], settings: Settings) -> Iterator[Record]:
        check_texts(subject, items, [(item.context, [item.continuation]) for item in items])
        for item in items:
            score = subject.score(item.context, [item.continuation])
            values = {"acc": float(score.is_greedy[0]), "nll": float(-score.log_likelihood[0])}
            yield record(item, score, values, {"reference": item.continuation})


def _passage(entry: Entry) -> Passage:
    context, continuation = entry.text("context").rstrip(), f" {entry.text('continuation').strip()}"
    return Passage(content_id(context, continuation), "", entry.where, context, continuation)
