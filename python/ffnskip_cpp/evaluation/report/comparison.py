"""Figures for a table, with what the paired tests against dense say of them."""

from __future__ import annotations

from collections.abc import Sequence

from ..statistics import holm
from ..tasks.base import Metric
from .results import Result
from .tables import Cell

__all__ = ["cells"]


def cells(metric: Metric, wanted: Sequence[tuple[Result | None, str | None]]) -> list[Cell | None]:
    """Of results and groups, None of all items: those of one table, as p-values are corrected for all of them together.

    Returns:
        In their order; None where there is no result, or no figure.
    """
    figures = [None if result is None else result.figure(metric, group) for result, group in wanted]
    tests = [
        None if result is None or figure is None else result.against_dense(metric, group)
        for (result, group), figure in zip(wanted, figures)
    ]
    adjusted = iter(holm([test.p for test in tests if test is not None]))
    p = [None if test is None else next(adjusted) for test in tests]
    return [
        None if result is None or figure is None else Cell.of(figure, metric, p[i], result.is_dense)
        for i, ((result, _), figure) in enumerate(zip(wanted, figures))
    ]
