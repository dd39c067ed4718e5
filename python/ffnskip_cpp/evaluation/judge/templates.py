"""In which words a judge is asked: files of text with names in braces, the package's own or a user's.

single.txt, pairwise.txt   what is sent, for one answer and for two
reference.txt, turns.txt   parts of them: where a correct answer is known; where the question came in several turns
invalid.txt                what is sent after a reply that can't be used
general.txt, coding.txt, maths.txt, summary.txt, factoid.txt
                           what a kind of question asks for; the first line names the criteria
criteria.txt               what each criterion means
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from ...errors import ArgumentError
from ...files import whole_file
from ...measure.text import decoded
from .verdicts import OVERALL

__all__ = ["KINDS", "Prompt", "Templates", "read_templates", "write_templates"]

PathLike = Union[str, "os.PathLike[str]"]

OWN = Path(__file__).parent / "prompts"
KINDS = ("general", "coding", "maths", "summary", "factoid")

# Names in braces that a file has; those that it must have begin with "!", since without them there is nothing to grade.
NAMES = {
    "single": ("task", "!question", "reference", "!answer", "turns", "!criteria", "!form"),
    "pairwise": ("task", "!question", "reference", "!answer_1", "!answer_2", "turns", "!criteria", "!form"),
    "reference": ("!reference",),
    "turns": (),
    "invalid": ("why", "!form"),
    **{kind: () for kind in KINDS},
}
FILES = (*NAMES, "criteria")

PLACE = re.compile(r"\{(\w+)\}(\n*)")
CRITERION = re.compile(r"(\w+):\s*(\S.*)")
HEAD = re.compile(r"criteria:\s*(\w+(?:\s*,\s*\w+)*)\s*")


@dataclass(frozen=True)
class Prompt:
    """What a judge is asked once."""

    text: str
    criteria: tuple[str, ...]
    n_answers: int
    """To be graded: 1, or 2."""
    form: str
    """Of the line with the grades."""


@dataclass(frozen=True)
class Templates:
    """The files' texts, checked."""

    texts: dict[str, str]
    """By name of the file, without its ending and, of a kind, without its first line."""
    criteria: dict[str, tuple[str, ...]]
    """By kind."""
    meanings: dict[str, str]
    """By criterion."""
    hash: str
    """SHA-256 of all that a judge may be told."""

    def single(self, kind: str, questions: Sequence[str], answers: Sequence[str], reference: str) -> Prompt:
        """
        Args:
            kind: One of KINDS.
            questions, answers: Of all turns so far; the last answer is to be graded.
            reference: A correct answer to the last question; "" where none is known.
        """
        return self._prompt("single", kind, questions, reference, {"answer": _turns(answers)})

    def pair(
        self, kind: str, questions: Sequence[str], first: Sequence[str], second: Sequence[str], reference: str
    ) -> Prompt:
        """`single`, of two answers in the order in which the judge sees them."""
        answers = {"answer_1": _turns(first), "answer_2": _turns(second)}
        return self._prompt("pairwise", kind, questions, reference, answers)

    def invalid(self, prompt: Prompt, why: str) -> str:
        """What is sent after a reply that can't be used."""
        return _filled(self.texts["invalid"], {"why": why, "form": prompt.form})

    def _prompt(
        self, frame: str, kind: str, questions: Sequence[str], reference: str, answers: dict[str, str]
    ) -> Prompt:
        criteria = self.criteria[kind]
        grade = "N" if len(answers) == 1 else "[N, N]"
        form = "{" + ", ".join(f'"{name}": {grade}' for name in criteria) + "}"
        text = _filled(
            self.texts[frame],
            {
                "task": self.texts[kind],
                "question": _turns(questions),
                "reference": _filled(self.texts["reference"], {"reference": reference}) if reference else "",
                "turns": self.texts["turns"] if len(questions) > 1 else "",
                "criteria": "\n".join(f"- {name}: {self.meanings[name]}" for name in criteria),
                "form": form,
                **answers,
            },
        )
        return Prompt(text, criteria, len(answers), form)


def read_templates(folder: PathLike | None = None, criteria: Sequence[str] | None = None) -> Templates:
    """
    Args:
        folder: A user's files; what it lacks is the package's own. None: all of them are.
        criteria: In place of those that the kinds name.
    Raises:
        FileNotFoundError, ValueError: No such folder; a file in it is none of ours, or lacks what it must have.
        ArgumentError: A criterion that criteria.txt does not have, or twice the same.
    """
    paths = _paths(folder)
    texts = {name: decoded(path, path.read_bytes()) for name, path in paths.items()}
    for name, allowed in NAMES.items():
        _check_names(paths[name], texts[name], allowed)
    meanings = _meanings(paths["criteria"], texts.pop("criteria"))
    if criteria is not None:
        _check_criteria(criteria, meanings)
    by_kind = {}
    for kind in KINDS:
        by_kind[kind], texts[kind] = _head(paths[kind], texts[kind], meanings)
    by_kind = by_kind if criteria is None else dict.fromkeys(KINDS, tuple(criteria))
    texts = {name: text.rstrip() for name, text in texts.items()}
    told = json.dumps([texts, by_kind, meanings], sort_keys=True)
    return Templates(texts, by_kind, meanings, hashlib.sha256(told.encode()).hexdigest())


def write_templates(folder: PathLike) -> None:
    """The package's own files, to be edited.

    Raises:
        ValueError: One of them is there already; nothing is written then.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (folder / f"{name}.txt").exists():
            raise ValueError(f"{folder / name}.txt: is there already, and may have been edited; give another folder")
    for name in FILES:
        with whole_file(folder / f"{name}.txt") as part:
            part.write_bytes((OWN / f"{name}.txt").read_bytes())


def _paths(folder: PathLike | None) -> dict[str, Path]:
    paths = {name: OWN / f"{name}.txt" for name in FILES}
    if folder is None:
        return paths
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{os.fspath(folder)}: no such folder of prompts")
    found = {path.stem: path for path in sorted(Path(folder).glob("*.txt"))}
    for name, path in found.items():
        if name not in paths:
            raise ValueError(f"{path}: no prompt is called so; there are {', '.join(f'{name}.txt' for name in FILES)}")
    if not found:
        raise ValueError(
            f"{os.fspath(folder)}: no prompts in it; ffnskip judge --write-prompts DIR writes some to edit"
        )
    return {**paths, **found}


def _check_names(path: Path, text: str, allowed: Sequence[str]) -> None:
    names = [name.lstrip("!") for name in allowed]
    for number, line in enumerate(text.split("\n"), start=1):
        for name, _ in PLACE.findall(line):
            if name not in names:
                there = ", ".join(f"{{{name}}}" for name in names) or "none"
                raise ValueError(f"{path}:{number}: {{{name}}} stands for nothing here; there are {there}")
    for name in allowed:
        if name.startswith("!") and f"{{{name[1:]}}}" not in text:
            raise ValueError(f"{path}:1: {{{name[1:]}}} is missing")


def _meanings(path: Path, text: str) -> dict[str, str]:
    meanings: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        found = CRITERION.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"{path}:{number}: {line.strip()!r} is not `name: what it means`")
        if found[1] in meanings or found[1] == OVERALL:
            why = "is what the mean of the criteria is called" if found[1] == OVERALL else "is there twice"
            raise ValueError(f"{path}:{number}: {found[1]} {why}")
        meanings[found[1]] = found[2]
    return meanings


def _check_criteria(criteria: Sequence[str], meanings: dict[str, str]) -> None:
    for name in criteria:
        if name not in meanings:
            raise ArgumentError(f"criteria: {name!r} is none of {', '.join(meanings)}, which criteria.txt explains")
    if len(set(criteria)) < max(len(criteria), 1):
        raise ArgumentError("criteria: the list is empty, or has one of them twice")


def _head(path: Path, text: str, meanings: dict[str, str]) -> tuple[tuple[str, ...], str]:
    """The criteria that a kind's first line names, and what follows it."""
    first, _, rest = text.partition("\n")
    found = HEAD.fullmatch(first)
    if found is None:
        raise ValueError(f"{path}:1: {first!r} is not `criteria: NAME, ...`")
    names = tuple(name.strip() for name in found[1].split(","))
    for name in names:
        if name not in meanings:
            raise ValueError(f"{path}:1: criterion {name} is not in criteria.txt")
    if len(set(names)) < len(names):
        raise ValueError(f"{path}:1: a criterion is there twice")
    return names, rest.strip()


def _turns(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else "\n\n".join(f"({i}) {text}" for i, text in enumerate(texts, start=1))


def _filled(template: str, values: dict[str, str]) -> str:
    """In one go, so that braces in what is put in are not looked at. Line ends behind an empty one go with it."""
    return PLACE.sub(lambda found: values[found[1]] and values[found[1]] + found[2], template)
