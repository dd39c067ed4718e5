"""What a judge made of runs, as it lies in their folder; `ffnskip report` reads it too.

    DIR/judge/NAME.json       one `Judgement`: a judge, a mode, all runs that it was asked about
    DIR/judge/replies.jsonl   every reply that was paid for

for judgement in read_judgements("results"):
    for run in judgement.runs:
        print(judgement.judge, run.label, run.figures["overall"].value)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from ...files import whole_file
from ...plain import plain
from ..runs import Figure

__all__ = ["FOLDER", "OVERALL", "JudgedRun", "Judgement", "Rates", "read_judgements", "write_judgement"]

PathLike = Union[str, "os.PathLike[str]"]

FOLDER = "judge"
OVERALL = "overall"
"""Beside the criteria: the mean of those that an item was graded by."""


@dataclass(frozen=True)
class Rates:
    """Of comparisons with the reference, one for each turn of an item: how they came out. The three add up to 1."""

    win: Figure
    """Both orders have the run's answer ahead."""
    tie: Figure
    """The orders disagree, or neither answer is ahead."""
    lose: Figure
    disagree: Figure
    """Position bias: the two orders name different answers, or one of them none."""


@dataclass(frozen=True)
class JudgedRun:
    """One run. An item counts where every reply about it, of all its turns and orders, is valid."""

    run: str
    """`Run.name`."""
    task: str
    data: str
    method: str
    label: str
    """`Run.full_label`."""
    items_sha256: dict[str, str]
    """SHA-256 of the items file when it was judged, by name of the run: of this one, and of the one it was compared
    with. Grades hang on both; where a file has changed since, they are of answers that are there no more."""
    invalid: int
    """Items that don't count because the judge's reply stayed none that was asked for."""
    failed: int
    """Items that don't count because a request failed; judging again asks once more."""
    missing: int
    """Items that the reference has no answer to."""
    scores: dict[str, dict[str, float]]
    """By criterion and OVERALL, then by item: 1 to 10, the mean of its turns and, in pairs, orders."""
    figures: dict[str, Figure]
    """Their means, by criterion and OVERALL; without those that no item has."""
    reference_scores: dict[str, dict[str, float]]
    """As `scores`, of the reference's answers to the same items; empty where each answer was graded by itself."""
    reference_figures: dict[str, Figure]
    rates: dict[str, Rates]
    """By criterion and OVERALL; empty where each answer was graded by itself."""


@dataclass(frozen=True, repr=False)
class Judgement:
    """What DIR/judge/NAME.json holds. Its repr is the table to read."""

    name: str
    judge: str
    """Name of the judging model, as the server was asked for it."""
    answered_by: tuple[str, ...]
    """As the server named what answered."""
    url: str
    """Of the endpoint, without user, password and query."""
    mode: str
    """"single" or "pairwise"."""
    against: str | None
    """The reference of pairwise grading: a method, or the name of a file of answers."""
    prompts_hash: str
    """SHA-256 of the prompts."""
    limit: int | None
    replies: int
    """That the verdicts were made from, those that were invalid among them."""
    tokens_in: int
    tokens_out: int
    """Of these replies, as the server counted them."""
    errors: tuple[str, ...]
    """Of the requests that failed, each once."""
    versions: dict[str, str]
    runs: tuple[JudgedRun, ...]

    def as_dict(self) -> dict[str, Any]:
        """Of plain values; None for NaN."""
        return plain(self)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        from .page import page

        return page(self)


def read_judgements(directory: PathLike) -> tuple[Judgement, ...]:
    """Those that lie in a folder of results, by name; none where it was not judged.

    Raises:
        ValueError: A file is no judgement; the message names it.
    """
    return tuple(_read(path) for path in sorted(Path(directory, FOLDER).glob("*.json")))


def write_judgement(directory: PathLike, judgement: Judgement) -> Path:
    """Writes it into the folder's judge/, in place of one of the same name. Returns its path."""
    path = Path(directory, FOLDER, f"{judgement.name}.json")
    with whole_file(path) as part:
        part.write_text(json.dumps(judgement.as_dict(), indent=1) + "\n", encoding="utf-8")
    return path


def _read(path: Path) -> Judgement:
    try:
        fields = json.loads(path.read_bytes())
        runs = tuple(_run(run) for run in fields["runs"])
        texts = {name: tuple(fields[name]) for name in ("answered_by", "errors")}
        return Judgement(**{**fields, **texts, "runs": runs})
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # whatever else lies there
        raise ValueError(f"{path}: is no judgement ({error}); ffnskip judge writes it anew") from error


def _run(fields: Mapping[str, Any]) -> JudgedRun:
    rates = {
        name: Rates(**{kind: _figure(figure) for kind, figure in kinds.items()})
        for name, kinds in fields["rates"].items()
    }
    figures = {
        key: {name: _figure(figure) for name, figure in fields[key].items()} for key in ("figures", "reference_figures")
    }
    return JudgedRun(**{**fields, "rates": rates, **figures})


def _figure(fields: Mapping[str, Any]) -> Figure:
    value, low, high = (math.nan if fields[name] is None else float(fields[name]) for name in ("value", "low", "high"))
    return Figure(value, low, high, int(fields["n"]))
