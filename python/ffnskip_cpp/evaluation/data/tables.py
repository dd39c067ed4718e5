"""Tables: CSV, parquet, and texts of two columns that a bar divides."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...measure.text import decoded
from .entry import Entry

__all__ = ["entries_of_csv", "entries_of_parquet", "pairs", "rows"]


def rows(path: Path, n_fields: int | None = None) -> Iterator[tuple[list[str], str]]:
    """Rows of a CSV file, each with the line that it begins in; blank lines are passed over.

    Args:
        n_fields: That a row must have; None: as many as the first.
    Raises:
        ValueError: The file is empty, or a row is not CSV or has other fields.
    """
    text = decoded(path, path.read_bytes())
    if not text.strip():
        raise ValueError(f"{path}: the file is empty; rows of CSV are right")
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # the process's, so it is never lowered
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{where}: not CSV: {error}") from error
        if row is None:
            return
        if not row:
            continue
        n_fields = len(row) if n_fields is None else n_fields
        if len(row) != n_fields:
            raise ValueError(f"{where}: {len(row)} fields; {n_fields} are right")
        yield row, where


def entries_of_csv(path: Path, columns: Sequence[str]) -> list[Entry]:
    """Of a file whose first row names the columns, `columns` among them; at least one."""
    table = rows(path)
    names, where = next(table)
    _check_columns(names, columns, where)
    found = [Entry(dict(zip(names, row)), place) for row, place in table]
    if not found:
        raise ValueError(f"{path}: there is no row below the names of the columns")
    return found


def entries_of_parquet(path: Path, columns: Sequence[str]) -> list[Entry]:
    """Of a parquet file that has `columns` among its own; at least one. Places are rows, from 1.

    Raises:
        ImportError: pandas is missing, or what it reads parquet with.
    """
    data = io.BytesIO(path.read_bytes())
    try:
        import pandas

        table = pandas.read_parquet(data)
    except ImportError as error:
        raise ImportError("parquet files need pandas and pyarrow: pip install 'ffnskip_cpp[parquet]'") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: no parquet file: {str(error).splitlines()[0]}") from error
    _check_columns([str(name) for name in table.columns], columns, str(path))
    if len(table) == 0:
        raise ValueError(f"{path}: there is no row in it")
    values = zip(*(table[name].tolist() for name in columns))
    return [Entry(dict(zip(columns, row)), f"{path}: row {i}") for i, row in enumerate(values, start=1)]


def pairs(path: Path) -> list[tuple[str, str, str]]:
    """Of a text with a question, " | " and an answer in each line: question, answer, file:line; at least one.

    Raises:
        ValueError: The file is empty, or one of the two is missing in a line.
    """
    lines = enumerate(decoded(path, path.read_bytes()).split("\n"), start=1)
    found = [(*_divided(line, f"{path}:{number}"), f"{path}:{number}") for number, line in lines if line.strip()]
    if not found:
        raise ValueError(f"{path}: the file is empty; a line `question | answer` each is right")
    return found


def _divided(line: str, where: str) -> tuple[str, str]:
    left, bar, right = line.rpartition("|")
    question, answer = left.strip(), right.strip()
    if not bar or not question or not answer:
        raise ValueError(f"{where}: no question, bar and answer; `question | answer` is right")
    return question, answer


def _check_columns(names: Sequence[str], wanted: Sequence[str], where: str) -> None:
    for name in wanted:
        if name not in names:
            raise ValueError(f"{where}: no column {name!r}; there are {', '.join(map(repr, names))}")
        if names.count(name) > 1:
            raise ValueError(f"{where}: column {name!r} is there {names.count(name)} times; once is right")
