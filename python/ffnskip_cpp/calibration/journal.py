"""What was measured so far, in a file, so that a calibration that was interrupted goes on where it was.

An entry is found again by what it depends on: everything that decides a result is in its key.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Arrays", "Journal", "open_journal"]

Arrays = dict[str, npt.NDArray[Any]]


class Journal:
    """Arrays by key. `subject`, what all entries are about (model, versions), is part of every key."""

    def __init__(self, database: sqlite3.Connection, subject: str):
        self._database = database
        self._subject = subject
        database.execute("PRAGMA synchronous = OFF")  # a crash of the machine may cost the file, which only saves time
        database.execute("PRAGMA locking_mode = EXCLUSIVE")  # from the first change on, until it is closed
        with database:
            database.execute("BEGIN EXCLUSIVE")
            database.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, arrays BLOB)")

    def find(self, *key: object) -> Arrays | None:
        row = self._database.execute("SELECT arrays FROM entries WHERE key = ?", (self._name(key),)).fetchone()
        if row is None:
            return None
        with np.load(io.BytesIO(row[0]), allow_pickle=False) as arrays:
            return dict(arrays)

    def add(self, arrays: Mapping[str, npt.NDArray[Any]], *key: object) -> None:
        file = io.BytesIO()
        np.savez(file, **arrays)
        with self._database:  # a transaction: whole, or not there
            self._database.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (self._name(key), file.getvalue()))

    def is_empty(self) -> bool:
        return self._database.execute("SELECT 1 FROM entries LIMIT 1").fetchone() is None

    def _name(self, key: tuple[object, ...]) -> str:
        return hashlib.sha256(repr((self._subject, *key)).encode()).hexdigest()


@contextlib.contextmanager
def open_journal(path: Path, subject: str) -> Iterator[Journal]:
    """A journal in a file that is removed when the block ends without an error, and kept otherwise if there is anything
    in it. One process at a time has it.

    Raises:
        OSError: The file can't be written, is damaged or something else, or another process has it.
    """
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=0)) as database:
            journal = Journal(database, subject)
            try:
                yield journal
            except BaseException:
                if journal.is_empty():
                    path.unlink(missing_ok=True)
                raise
            path.unlink(missing_ok=True)  # while no other has it
    except sqlite3.Error as error:
        raise OSError(f"{path}: {_advice(error)}") from error


def _advice(error: sqlite3.Error) -> str:
    said = str(error)
    if "locked" in said:
        return "another calibration of this model is running; wait for it, or name another profile with -o"
    if "not a database" in said or "malformed" in said or "disk image" in said:
        return f"what an interrupted calibration had measured, damaged ({said}); remove it to begin anew"
    if "full" in said:
        return "no room left on the device; make some, and the same command goes on from here"
    return f"can't be used to keep what is measured ({said}); choose another folder with -o"
