"""Facts asked for: FreebaseQA and TriviaQA, with the paper's prompt (section 4.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..answers import exact_match, f1, matches
from ..data.entry import Entry
from ..data.json_text import entries_in, entries_of_lines
from ..data.tables import pairs
from .base import Item, Metric, Prompt, Record, Settings, Subject
from .fitting import check_prompts
from .generated import COLLAPSE, record
from .ids import content_id, distinct, numbered

__all__ = ["Fact", "Factoid"]

PROMPT = "Please give answer to this question: {question} The answer is"
MAX_TOKENS = 32

SAYS = re.compile(r"\w")

BEFORE, BEHIND = "Question:", "Answer:"  # around a question, in files of prompts


@dataclass(frozen=True)
class Fact(Item):
    question: str
    answers: tuple[str, ...]
    """Right ones, and other names for them."""


class Factoid:
    """FreebaseQA's JSON and text, TriviaQA's JSON, and lines of JSON with context, answer and aliases."""

    name = "factoid"
    metrics: tuple[Metric, ...] = (
        Metric("match", "match", percent=True),
        Metric("exact_match", "exact_match", percent=True),
        Metric("f1", "f1", percent=True),
        *COLLAPSE,
    )

    def read(self, path: Path) -> list[Fact]:
        if path.suffix.lower() == ".jsonl":
            return numbered(map(_of_prompt, entries_of_lines(path)))
        if path.suffix.lower() == ".json":
            key, entries = entries_in(path, ("Questions", "Data"))
            return distinct(map(_of_freebase if key == "Questions" else _of_trivia, entries))
        return numbered(_fact(question, (answer,), where) for question, answer, where in pairs(path))

    def run(self, subject: Subject, items: Sequence[Fact], settings: Settings) -> Iterator[Record]:
        prompts = [_prompt(subject, item) for item in items]
        check_prompts(subject, items, prompts)
        completions = subject.generate(prompts, max_tokens=settings.max_tokens or MAX_TOKENS)
        for item, completion in zip(items, completions):
            answer = _answer(completion.text)
            values = {
                "match": float(matches(answer, item.answers)),
                "exact_match": float(exact_match(answer, item.answers)),
                "f1": f1(answer, item.answers),
            }
            shown = {"question": item.question, "reference": list(item.answers), "text": completion.text}
            yield record(item, [completion], values, shown)


def _prompt(subject: Subject, item: Fact) -> Prompt:
    """In the chat template, if there is one: a model that is tuned for chats makes little of a bare text."""
    asked = PROMPT.format(question=item.question)
    told = subject.chat_prompt([{"role": "user", "content": asked}])
    return asked if told is None else told


def _answer(text: str) -> str:
    """The first line that says anything, and does not announce what comes: "The answer is:"."""
    return next((line for line in text.split("\n") if SAYS.search(line) and not line.rstrip().endswith(":")), "")


def _fact(question: str, answers: Sequence[str], where: str, official_id: str | None = None) -> Fact:
    return Fact(
        id=official_id or content_id(question, *answers),
        group="",
        where=where,
        question=_unquoted(question.strip()),
        answers=tuple(dict.fromkeys(answers)),
    )


def _unquoted(question: str) -> str:
    """Trivia were collected from CSV files, whose quotes are still there: "Which ""Duke"" ...?"."""
    inner = question[1:-1]
    quoted = len(question) > 2 and question[0] == question[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else question


def _of_prompt(entry: Entry) -> Fact:
    question = entry.text("context").strip()
    question = question[len(BEFORE) :] if question.startswith(BEFORE) else question
    question = question[: -len(BEHIND)] if question.endswith(BEHIND) else question
    if not question.strip():
        raise ValueError(f"{entry.where}: no question in 'context'; `{BEFORE} ...\\n{BEHIND}` is right")
    return _fact(question, (entry.text("answer"), *entry.any_texts("aliases")), entry.where)


def _of_freebase(entry: Entry) -> Fact:
    answers = [
        name
        for parse in entry.entries("Parses")
        for answer in parse.entries("Answers")
        for name in answer.any_texts("AnswersName")
        if name.strip()
    ]
    if not answers:
        raise ValueError(f"{entry.where}: no name in any of the 'AnswersName'; one at least is right")
    return _fact(entry.text("RawQuestion"), answers, entry.where, entry.id("Question-ID"))


def _of_trivia(entry: Entry) -> Fact:
    """Its normalised aliases are what our own normalisation makes of the others."""
    answer = entry.entry("Answer")
    answers = (answer.text("Value"), *answer.any_texts("Aliases"))
    return _fact(entry.text("Question"), answers, entry.where, entry.id("QuestionId"))
