"""Dialogues: MT-Bench (Zheng et al. 2023), every turn answered by the model itself."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...batches import Completion
from ...files import whole_file
from ..data.entry import Entry
from ..data.json_text import entries_of_lines
from .base import Item, Metric, Prompt, Record, Settings, Subject
from .conversation import conversation, shortened, stops
from .fitting import check_prompts, n_tokens, room
from .generated import COLLAPSE, record
from .ids import distinct

if TYPE_CHECKING:
    from ..runs import Run  # which knows the tasks' records

__all__ = ["Chat", "Dialogue", "write_answers"]

MAX_TOKENS = 1024  # of an answer, as FastChat has it
AT_ONCE = 16  # dialogues, whose turns share batches; so many are begun anew where a run was interrupted


@dataclass(frozen=True)
class Dialogue(Item):
    question_id: int | str
    turns: tuple[str, ...]
    """What the user says."""
    reference: tuple[str, ...]
    """A right answer to each turn, blank where there is none, of questions that have any."""


class Chat:
    """MT-Bench's lines of JSON: question_id, category, turns, and reference for some."""

    name = "chat"
    metrics: tuple[Metric, ...] = COLLAPSE

    def read(self, path: Path) -> list[Dialogue]:
        return distinct(map(_dialogue, entries_of_lines(path)))

    def run(self, subject: Subject, items: Sequence[Dialogue], settings: Settings) -> Iterator[Record]:
        max_tokens = settings.max_tokens or MAX_TOKENS
        silent = [conversation(subject, _messages(item.turns, [""] * (len(item.turns) - 1))) for item in items]
        check_prompts(subject, items, silent)
        for first in range(0, len(items), AT_ONCE):
            going = [_Going(item) for item in items[first : first + AT_ONCE]]
            while asked := [one for one in going if len(one.answers) < len(one.item.turns)]:
                prompts = [one.prompt(subject, room(subject, max_tokens)) for one in asked]
                answers = subject.generate(prompts, max_tokens=max_tokens, stop=stops(prompts[0]))
                for one, answer in zip(asked, answers):
                    one.answers.append(answer)
            yield from (one.record() for one in going)


@dataclass
class _Going:
    """A dialogue that is being held."""

    item: Dialogue
    answers: list[Completion] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    """The answers as later turns see them."""
    words_cut: int = 0

    def prompt(self, subject: Subject, n_room: int) -> Prompt:
        """Of the next turn. Where there is no room for it, the last answer is cut at its end."""

        def told(heard: Sequence[str]) -> Prompt:
            return conversation(subject, _messages(self.item.turns, heard))

        if self.answers:
            last, cut = shortened(
                self.answers[-1].text.strip(), lambda text: n_tokens(subject, told([*self.heard, text])) <= n_room
            )
            self.heard.append(last)
            self.words_cut += cut
        return told(self.heard)

    def record(self) -> Record:
        shown: dict[str, Any] = {
            "question_id": self.item.question_id,
            "question": list(self.item.turns),
            "turns": [answer.text.strip() for answer in self.answers],
            "words_cut": self.words_cut,
        }
        if self.item.reference:
            shown["reference"] = list(self.item.reference)
        return record(self.item, self.answers, {}, shown)


def _messages(turns: Sequence[str], answers: Sequence[str]) -> list[dict[str, str]]:
    """The turns up to the one that has no answer yet."""
    said = [{"role": "user", "content": turns[0]}]
    for answer, turn in zip(answers, turns[1:]):
        said += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
    return said


def _dialogue(entry: Entry) -> Dialogue:
    name = entry.id("question_id")
    reference = entry.any_texts("reference") if "reference" in entry.fields else ()
    return Dialogue(
        name, entry.text("category"), entry.where, entry.get("question_id"), entry.texts("turns"), reference
    )


# ---- for FastChat's own judge ----


def write_answers(folder: Path, run: Run, records: Sequence[Record]) -> Path:
    """The answers of a run as FastChat has them, in model_answer/MODEL.jsonl of a folder; that file. The name of a
    model there has data, method and settings in it, as the run's has."""
    model = re.sub(r"[^\w.-]", "-", f"{run.model}__{run.name.removeprefix('chat-')}")
    path = folder / "model_answer" / f"{model}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as part:
        part.write_text("".join(f"{_line(model, each)}\n" for each in records), encoding="utf-8")
    return path


def _line(model: str, answered: Record) -> str:
    return json.dumps(
        {
            "question_id": answered.shown["question_id"],
            "answer_id": hashlib.sha256(f"{model}/{answered.id}".encode()).hexdigest()[:22],
            "model_id": model,
            "choices": [{"index": 0, "turns": answered.shown["turns"]}],
            "tstamp": time.time(),
        },
        ensure_ascii=False,
    )
