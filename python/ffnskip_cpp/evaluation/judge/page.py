"""What `ffnskip judge` prints: a table for each task."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ...table import markdown
from ..runs import Figure
from .verdicts import OVERALL

if TYPE_CHECKING:
    from .verdicts import JudgedRun, Judgement

__all__ = ["page"]

WIDTH = 120
LEFT = ("run", "data")


def page(judgement: Judgement) -> str:
    tables = []
    for task in dict.fromkeys(run.task for run in judgement.runs):
        runs = [run for run in judgement.runs if run.task == task]
        names, rows = (_pairs if judgement.mode == "pairwise" else _grades)(runs)
        tables.append(f"{task}\n\n{markdown(names, rows, left=LEFT)}")
    notes = [textwrap.fill(note, WIDTH, break_on_hyphens=False) for note in _notes(judgement)]
    return "\n\n".join([_heading(judgement), *tables, *notes])


def _heading(judgement: Judgement) -> str:
    how = "by itself" if judgement.against is None else f"beside that of {judgement.against}, in both orders"
    cost = f"{judgement.replies:,} replies, {judgement.tokens_in:,} tokens in and {judgement.tokens_out:,} out"
    return textwrap.fill(f"{judgement.judge} grades each answer {how}; {cost}", WIDTH)


def _grades(runs: Sequence[JudgedRun]) -> tuple[list[str], list[list[str]]]:
    criteria = _criteria(runs)
    names = [*LEFT, "grade", *criteria, *_COUNTS]
    return names, [
        [
            run.label,
            run.data,
            _interval(run.figures.get(OVERALL)),
            *(_mean(run.figures.get(c)) for c in criteria),
            *_counts(run),
        ]
        for run in runs
    ]


def _pairs(runs: Sequence[JudgedRun]) -> tuple[list[str], list[list[str]]]:
    names = [*LEFT, "win", "tie", "lose", "orders disagree", "grade", "reference's", *_COUNTS]
    return names, [[run.label, run.data, *_shares(run), *_both(run), *_counts(run)] for run in runs]


def _shares(run: JudgedRun) -> list[str]:
    rates = run.rates.get(OVERALL)
    return [""] * 4 if rates is None else [_share(f) for f in (rates.win, rates.tie, rates.lose, rates.disagree)]


def _both(run: JudgedRun) -> list[str]:
    return [_interval(figures.get(OVERALL)) for figures in (run.figures, run.reference_figures)]


_COUNTS = ("items", "invalid", "failed")


def _counts(run: JudgedRun) -> list[str]:
    counted = run.figures.get(OVERALL)
    return [str(0 if counted is None else counted.n), str(run.invalid), str(run.failed)]


def _criteria(runs: Sequence[JudgedRun]) -> list[str]:
    """Those that all items were graded by; questions of several kinds have others each, too many for a table."""
    n = [run.figures[OVERALL].n if run.figures else 0 for run in runs]
    names = dict.fromkeys(name for run in runs for name in run.figures if name != OVERALL)
    return [name for name in names if [run.figures[name].n if name in run.figures else 0 for run in runs] == n]


def _interval(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def _mean(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.2f}"


def _share(figure: Figure) -> str:
    return f"{figure.value:.0%} [{figure.low:.0%}, {figure.high:.0%}]"


def _notes(judgement: Judgement) -> Iterator[str]:
    yield "Grades: 1 to 10, means over items with 95 % bootstrap intervals." + (
        " Win, lose: what both orders say; tie: the rest. Orders disagree: the judge's bias to a position."
        if judgement.mode == "pairwise"
        else ""
    )
    missing = sum(run.missing for run in judgement.runs)
    if missing:
        yield f"{missing} items were left out: {judgement.against} has no answer to them."
    invalid, failed = (sum(getattr(run, name) for run in judgement.runs) for name in ("invalid", "failed"))
    if invalid:
        yield f"{invalid} items do not count, since the judge's replies about them can't be used."
    if failed:
        why = "; ".join(judgement.errors)
        yield f"{failed} items do not count yet, since requests failed ({why}). Judge again to ask for them."
    yield f"By criterion and item: judge/{judgement.name}.json; what was said: judge/{judgement.name}.verdicts.jsonl."
