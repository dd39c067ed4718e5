"""What is graded: the answers that runs have kept, and those of a file in FastChat's format to compare them with."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Union

from ..data.json_text import entries_of_lines
from ..items import sha256_of
from ..runs import ITEMS, Run, dense_of, read_records, read_runs
from ..tasks.base import Record

__all__ = ["TASKS", "Answer", "Judged", "judged_runs"]

PathLike = Union[str, "os.PathLike[str]"]

DENSE = "dense"
TASKS = ("chat", "summarize", "factoid")
"""Whose answers are texts."""

KIND_OF_TASK = {"summarize": "summary", "factoid": "factoid"}
KIND_OF_CATEGORY = {"coding": "coding", "math": "maths"}  # MT-Bench's


@dataclass(frozen=True)
class Answer:
    """To one item, in as many turns as it has."""

    item: str
    group: str
    kind: str
    """One of `templates.KINDS`."""
    questions: tuple[str, ...]
    texts: tuple[str, ...]
    references: tuple[str, ...]
    """A correct answer to each turn; "" where none is known."""


@dataclass(frozen=True)
class Judged:
    """A run, and what its answers are compared with."""

    run: Run
    answers: tuple[Answer, ...]
    others: Mapping[str, tuple[str, ...]] | None
    """By item, the reference's texts, one for each turn; None where each answer is graded by itself."""
    missing: int
    """Items that the reference has no answer to; not among `answers`."""
    items_sha256: Mapping[str, str]
    """Of the items file, by name of the run: of this one, and of the reference where that is a run."""


def judged_runs(directory: PathLike, against: str | None, limit: int | None) -> list[Judged]:
    """All runs in a folder that have texts, but for the one that the others are compared with.

    Args:
        against: A method, a run's label or name, or a file of answers in FastChat's format, which chat alone is
            compared with; None: nothing.
        limit: Items of each run, taking turns through its groups; the same of all runs, and a larger limit has those of
            a smaller one.
    Raises:
        FileNotFoundError, ValueError: There is no such folder or file, no such run in it, or a file is damaged.
    """
    folder = Path(directory)
    runs = [run for run in read_runs(folder) if run.task in TASKS]
    if not runs:
        raise ValueError(f"{folder}: no finished run of {', '.join(TASKS)} in it; ffnskip eval makes them")
    if against is None:
        judged = [Judged(run, _answers(folder, run), None, 0, _items_sha256(folder, run)) for run in runs]
    elif _is_file(against):
        texts = _texts_of_file(Path(against))
        judged = [
            _compared(run, _answers(folder, run), texts, against, _items_sha256(folder, run))
            for run in runs
            if run.task == "chat"
        ]
        if not judged:
            raise ValueError(f"{folder}: no finished run of chat in it, which {against} has answers to")
    else:
        judged = _against_run(folder, runs, against)
    return [replace(each, answers=_chosen(each.answers, limit)) for each in judged]


def _against_run(folder: Path, runs: Sequence[Run], against: str) -> list[Judged]:
    judged = []
    for run in runs:
        reference = _reference(run, runs, against)
        if reference.name != run.name:
            texts = {answer.item: answer.texts for answer in _answers(folder, reference)}
            sha256 = _items_sha256(folder, run, reference)
            judged.append(_compared(run, _answers(folder, run), texts, reference.name, sha256))
    if not judged:
        raise ValueError(f"{folder}: no run in it beside {against}, which others are compared with")
    return judged


def _reference(run: Run, runs: Sequence[Run], against: str) -> Run:
    if against == DENSE:
        found = [dense for dense in (dense_of(run, runs),) if dense is not None]
    else:
        of_same = [other for other in runs if (other.task, other.data, other.model) == (run.task, run.data, run.model)]
        found = [other for other in of_same if against in (other.full_label, other.name)]
        found = found or [other for other in of_same if against in (other.method, other.label)]
    if not found:
        raise ValueError(f"{run.name}: no run of {against!r} to compare it with; name another, or a .jsonl of answers")
    if len(found) > 1:
        labels = [other.full_label for other in found]
        names = ", ".join(
            repr(label if labels.count(label) == 1 else other.name) for label, other in zip(labels, found)
        )
        raise ValueError(f"{run.name}: several runs are of {against!r}; give one of {names}")
    return found[0]


def _compared(
    run: Run,
    answers: Sequence[Answer],
    texts: Mapping[str, tuple[str, ...]],
    name: str,
    items_sha256: Mapping[str, str],
) -> Judged:
    common = tuple(answer for answer in answers if len(texts.get(answer.item, ())) >= len(answer.texts))
    if not common:
        raise ValueError(f"{run.name}: {name} has an answer to none of its items")
    return Judged(run, common, texts, len(answers) - len(common), items_sha256)


def _items_sha256(folder: Path, *runs: Run) -> dict[str, str]:
    return {run.name: sha256_of(folder / f"{run.name}{ITEMS}") for run in runs}


def _answers(folder: Path, run: Run) -> tuple[Answer, ...]:
    return tuple(_answer(record, run) for record in read_records(folder, run))


def _answer(record: Record, run: Run) -> Answer:
    kind = KIND_OF_TASK.get(run.task) or KIND_OF_CATEGORY.get(record.group, "general")
    try:
        return Answer(record.id, record.group, kind, *_turns(record.shown, run.task))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run.name}: item {record.id} has no question and answer to judge ({error!r})") from error


def _turns(shown: Mapping[str, Any], task: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Questions, answers and correct answers, as many of each."""
    if task == "chat":
        questions, texts, references = (tuple(shown.get(key, ())) for key in ("question", "turns", "reference"))
    else:
        # A summary is held against its story; another one is not what is correct.
        known = " / ".join(shown["reference"]) if task == "factoid" else ""
        questions, texts, references = (shown["question"],), (shown["text"],), (known,)
    if not questions or len(questions) != len(texts):
        raise KeyError(f"{len(questions)} questions, {len(texts)} answers")
    return questions, texts, (*references, *[""] * (len(questions) - len(references)))


def _chosen(answers: Sequence[Answer], limit: int | None) -> tuple[Answer, ...]:
    """By turns of the groups; within one in an order that hangs on the ids alone, so that all runs have the same."""
    if limit is None:
        return tuple(answers)
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in sorted(answers, key=lambda answer: hashlib.sha256(answer.item.encode()).digest()):
        groups[answer.group].append(answer)
    in_turn = chain.from_iterable(zip_longest(*(groups[name] for name in sorted(groups))))
    return tuple(answer for answer in in_turn if answer is not None)[:limit]


def _is_file(against: str) -> bool:
    return against.endswith(".jsonl") or Path(against).is_file()


def _texts_of_file(path: Path) -> dict[str, tuple[str, ...]]:
    """FastChat's model_answer/*.jsonl: question_id, and the turns of the first choice."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of answers")
    texts: dict[str, tuple[str, ...]] = {}
    for entry in entries_of_lines(path):
        item = entry.id("question_id")
        if item in texts:
            raise ValueError(f"{entry.where}: question_id {item} is there twice")
        texts[item] = entry.entries("choices")[0].any_texts("turns")
    return texts
