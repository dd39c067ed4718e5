"""Tables as text: in Markdown, or aligned with blanks; and as files of CSV.

    print(markdown(("policy", "KL"), [("ffn_skip", "0.31"), ("random", "1.68")], left=("policy",)))
    write_csv(Path("numbers.csv"), [{"policy": "ffn_skip", "kl": 0.3125}])

As text, cells are strings. Columns are aligned to the right, as numbers are, but for those whose names are in `left`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["aligned", "is_missing", "markdown", "write_csv"]

LEAST_WIDTH = 3  # of a rule that every reader of Markdown takes for one


def markdown(names: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[str] = ()) -> str:
    """The table in Markdown, its columns of equal width for those who read it as it is."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    head, *lines = _padded(names, escaped, left, LEAST_WIDTH)
    rule = ["-" * len(cell) if name in left else "-" * (len(cell) - 1) + ":" for name, cell in zip(names, head)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def aligned(names: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[str] = ()) -> str:
    """The table without rules, two blanks between its columns."""
    return "\n".join("  ".join(line).rstrip() for line in _padded(names, rows, left, 0))


def _padded(names: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str], least: int) -> list[list[str]]:
    """The names and the rows, every cell as wide as its column."""
    widths = [max(least, *map(len, column)) for column in zip(names, *rows)]
    return [
        [cell.ljust(width) if name in left else cell.rjust(width) for name, cell, width in zip(names, row, widths)]
        for row in (names, *rows)
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per row, a column per key of the first; every digit of a float, NaN and None empty."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if is_missing(value) else value for key, value in row.items()} for row in rows)


def is_missing(value: Any) -> bool:
    """None or NaN: an empty cell."""
    return value is None or (isinstance(value, float) and math.isnan(value))
