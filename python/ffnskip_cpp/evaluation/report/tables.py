"""Tables of a report: figures with their intervals, as Markdown and as rows for CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from ...table import markdown
from ..runs import Figure
from ..tasks.base import Metric

__all__ = ["METHOD", "SIGNIFICANT", "SIZE", "Cell", "Column", "Table", "Value", "heading"]

SIGNIFICANT = 0.05  # the largest p that has a star


@dataclass(frozen=True)
class Cell:
    """A figure as a table has it: shares in percent."""

    value: float
    low: float
    high: float
    n: int
    p: float | None = None
    """Of no difference from dense, after Holm's correction; None: not tested."""
    is_dense: bool = False
    """Nothing of what was scored could skip."""
    is_percent: bool = False

    @classmethod
    def of(cls, figure: Figure, metric: Metric, p: float | None = None, is_dense: bool = False) -> Cell:
        factor = 100 if metric.percent else 1
        value, low, high = (factor * end for end in (figure.value, figure.low, figure.high))
        return cls(value, low, high, figure.n, p, is_dense, metric.percent)

    def __str__(self) -> str:
        n = 1 if self.is_percent else _decimals(self.value)
        star = "*" if self.p is not None and self.p < SIGNIFICANT else ""
        dagger = " †" if self.is_dense else ""
        return f"{self.value:,.{n}f} [{self.low:,.{n}f}, {self.high:,.{n}f}]{star}{dagger}"


Value = Union[str, float, Cell, None]


@dataclass(frozen=True)
class Column:
    """Of a table: the key of its rows, and the heading."""

    key: str
    """Of the CSV file as well."""
    heading: str
    decimals: int = 0
    """Of numbers that are no figures."""
    is_text: bool = False
    """Aligned to the left."""
    optional: bool = False
    """Left out where it is empty."""


@dataclass(frozen=True)
class Table:
    """One table. Rows may lack keys: their cells are empty."""

    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Value]]

    def as_markdown(self) -> str:
        columns = self._columns()
        lines = [[_written(row.get(column.key), column) for column in columns] for row in self.rows]
        return markdown([column.heading for column in columns], lines, left=[c.heading for c in columns if c.is_text])

    def as_rows(self) -> list[dict[str, Any]]:
        """For CSV: of a figure also KEY_low, KEY_high, KEY_n and, where it was tested, KEY_p."""
        columns = self._columns()
        of_figures = {c.key for c in columns if any(isinstance(row.get(c.key), Cell) for row in self.rows)}
        return [
            {
                name: value
                for column in columns
                for name, value in _flat(column.key, row.get(column.key), column.key in of_figures).items()
            }
            for row in self.rows
        ]

    def _columns(self) -> list[Column]:
        return [c for c in self.columns if not c.optional or any(row.get(c.key) is not None for row in self.rows)]


METHOD = Column("method", "Method", is_text=True)
SIZE = Column("size", "file size", 2, optional=True)
"""Of another model file, over the user's."""


def heading(metric: Metric) -> str:
    """With the unit, and an arrow where less is better."""
    return f"{metric.name.replace('_', ' ')}{' (%)' if metric.percent else ''}{'' if metric.higher_is_better else ' ↓'}"


def _flat(key: str, value: Value, is_figure: bool) -> dict[str, Any]:
    if not is_figure:
        return {key: value}
    cell = value if isinstance(value, Cell) else None
    parts = {f"{key}_{part}": getattr(cell, part, None) for part in ("low", "high", "n", "p")}
    return {key: cell.value if cell else value, **parts}


def _written(value: Value, column: Column) -> str:
    if value is None:
        return ""
    return f"{value:,.{column.decimals}f}" if isinstance(value, (int, float)) else str(value)


def _decimals(value: float) -> int:
    """So that three digits say something, four at most."""
    size = max(abs(value), 1e-3) if math.isfinite(value) else 1e3
    return min(4, max(0, 2 - math.floor(math.log10(size))))
