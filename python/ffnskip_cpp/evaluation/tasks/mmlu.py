"""MMLU (Hendrycks et al. 2021): questions of 57 subjects, five answered ones of the subject before each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.tables import rows
from .base import Item, Metric, Record, Settings, Subject
from .fitting import n_tokens, no_room
from .generated import record as record_of_text
from .ids import content_id, numbered
from .mmlu_subjects import GROUPS
from .scored import record as record_of_score

__all__ = ["MMLU", "Exam"]

LETTERS = "ABCD"
SHOTS = 5
HEADER = "The following are multiple choice questions (with answers) about {subject}.\n\n"
COLUMNS = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
"""First row of files that have one. Their answers are 0 to 3; those of files without are A to D."""
MAX_TOKENS = 8  # of an answer that is generated: room for "The answer is B"
LETTER = re.compile(rf"\b[{LETTERS}]\b")


@dataclass(frozen=True)
class Exam(Item):
    """A question. Its group is the subject; that of its record is the paper's, one of four."""

    text: str
    """Question, choices and "Answer:"."""
    gold: int
    shots: tuple[str, ...]
    """Answered ones of the same subject, that go before it."""

    def prompt(self, n_shots: int) -> str:
        """With the last `n_shots` of the answered ones."""
        header = HEADER.format(subject=self.group.replace("_", " "))
        return header + "\n\n".join([*self.shots[len(self.shots) - n_shots :], self.text])


class MMLU:
    """A folder with dev and test, a CSV file for each subject in both."""

    name = "mmlu"
    metrics: tuple[Metric, ...] = (Metric("acc", "acc", percent=True),)

    def read(self, path: Path) -> list[Exam]:
        for part in ("dev", "test"):
            if not (path / part).is_dir():
                raise ValueError(f"{path}: no folder {part!r} in it; one with 'dev' and 'test' is right")
        files = sorted((path / "test").glob("*_test.csv"))
        if not files:
            raise ValueError(f"{path / 'test'}: no file SUBJECT_test.csv in it")
        return [item for file in files for item in _subject(file, path / "dev")]

    def run(self, subject: Subject, items: Sequence[Exam], settings: Settings) -> Iterator[Record]:
        n_answer = settings.max_tokens or MAX_TOKENS
        n_shots = [_n_shots(subject, item, n_answer) for item in items]
        prompts = [item.prompt(n) for item, n in zip(items, n_shots)]
        generates = settings.scoring == "generate"
        answered = _written(subject, items, prompts, n_answer) if generates else _likeliest(subject, items, prompts)
        for item, n, (letter, record) in zip(items, n_shots, answered):
            shown = {**record.shown, "subject": item.group, "shots": n, "choice": letter, "gold": LETTERS[item.gold]}
            values = {"acc": float(letter == LETTERS[item.gold])}
            yield replace(record, group=GROUPS[item.group], values=values, shown=shown)


def _likeliest(subject: Subject, items: Sequence[Exam], prompts: Sequence[str]) -> Iterator[tuple[str, Record]]:
    for item, prompt in zip(items, prompts):
        score = subject.score(prompt, [f" {letter}" for letter in LETTERS])
        yield LETTERS[int(score.log_likelihood.argmax())], record_of_score(item, score, {}, {})


def _written(
    subject: Subject, items: Sequence[Exam], prompts: Sequence[str], max_tokens: int
) -> Iterator[tuple[str, Record]]:
    """The first letter of an answer that stands alone; "" where there is none."""
    for item, answer in zip(items, subject.generate(prompts, max_tokens=max_tokens, stop=("\n",))):
        found = LETTER.search(answer.text)
        yield found[0] if found else "", record_of_text(item, [answer], {}, {"text": answer.text})


def _n_shots(subject: Subject, item: Exam, n_answer: int) -> int:
    """As many as the context has room for."""
    room = subject.n_ctx() - n_answer
    n = len(item.shots)
    while (needed := n_tokens(subject, item.prompt(n))) > room:
        if n == 0:
            raise no_room(subject, item, needed)
        n -= 1
    return n


# ---- reading ----


def _subject(file: Path, dev: Path) -> list[Exam]:
    name = file.name[: -len("_test.csv")]
    if name not in GROUPS:
        raise ValueError(f"{file}: {name!r} is none of the 57 subjects of MMLU, such as 'anatomy'")
    answered = dev / f"{name}_dev.csv"
    if not answered.is_file():
        raise ValueError(f"{answered}: missing; it has the answered questions that go before those of {file}")
    shots = tuple(f"{text} {LETTERS[gold]}" for text, gold, _ in _questions(answered)[:SHOTS])
    return numbered(
        Exam(f"{name}/{content_id(text)}", name, where, text, gold, shots) for text, gold, where in _questions(file)
    )


def _questions(file: Path) -> list[tuple[str, int, str]]:
    """Text, index of the right choice, file:line."""
    found = list(rows(file, len(COLUMNS)))
    labels = LETTERS
    if found[0][0] == COLUMNS:
        found, labels = found[1:], "0123"
    if not found:
        raise ValueError(f"{file}: there is no question in it")
    return [(_text(row, where), _index(row[-1], labels, where), where) for row, where in found]


def _text(row: Sequence[str], where: str) -> str:
    question, *choices = row[:-1]
    if not all(field.strip() for field in row[:-1]):
        raise ValueError(f"{where}: the question or a choice is blank")
    return "\n".join([question.strip(), *map("{}. {}".format, LETTERS, choices), "Answer:"])


def _index(answer: str, labels: str, where: str) -> int:
    label = answer.strip()
    if len(label) != 1 or label not in labels:
        raise ValueError(f"{where}: the answer is {label!r}; one of {', '.join(labels)} is right")
    return labels.index(label)
