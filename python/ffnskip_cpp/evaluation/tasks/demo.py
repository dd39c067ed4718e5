"""Facts of the demo model's world, asked for in the form that it was trained on."""

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

__all__ = ["Demo", "DemoQuestion"]


@dataclass(frozen=True)
class DemoQuestion(Item):
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        return f"Question: {self.question}\nAnswer:"

    @property
    def continuation(self) -> str:
        return f" {self.answer}"


class Demo:
    """Lines of JSON with question and answer, which `tools/evaluate_demo_model.py --write-questions` prints."""

    name = "demo"
    metrics: tuple[Metric, ...] = (Metric("known", "known", percent=True),)

    def read(self, path: Path) -> list[DemoQuestion]:
        return numbered(map(_question, entries_of_lines(path)))

    def run(self, subject: Subject, items: Sequence[DemoQuestion], settings: Settings) -> Iterator[Record]:
        """A fact is known where every token of it is the likeliest one: where greedy decoding would come to it."""
        check_texts(subject, items, [(item.prompt, [item.continuation]) for item in items])
        for item in items:
            score = subject.score(item.prompt, [item.continuation])
            shown = {"question": item.question, "reference": item.answer}
            yield record(item, score, {"known": float(score.is_greedy[0])}, shown)


def _question(entry: Entry) -> DemoQuestion:
    question, answer = entry.text("question").strip(), entry.text("answer").strip()
    return DemoQuestion(content_id(question, answer), "", entry.where, question, answer)
