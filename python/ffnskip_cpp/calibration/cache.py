"""What was measured so far, in a file, so that a calibration that was interrupted goes on where it was.

An entry is found again by what it depends on: everything that decides a result is in its key. So calibrations that
write the same profile share one file, whatever they look for.
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

from ..errors import TargetUnreachableError

__all__ = ["Arrays", "Cache", "open_cache"]

Arrays = dict[str, npt.NDArray[Any]]


class Cache:
    """Arrays by key. `subject`, what all entries are about (model, versions), is part of every key."""

    def __init__(self, database: sqlite3.Connection, subject: str):
        self._database = database
        self._subject = subject
        database.execute("PRAGMA synchronous = OFF")  # a crash of the machine may cost the file, which only saves time
        database.execute("PRAGMA locking_mode = EXCLUSIVE")  # from the first change on, until it is closed
        with database:
            database.execute("BEGIN EXCLUSIVE")
            database.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, arrays BLOB)")
            database.execute("CREATE TABLE IF NOT EXISTS unfinished (purpose TEXT PRIMARY KEY)")

    def find(self, *key: object) -> Arrays | None:
        row = self._database.execute("SELECT arrays FROM entries WHERE key = ?", (self._name(key),)).fetchone()
        if row is None:
            return None
        with np.load(io.BytesIO(row[0]), allow_pickle=False) as arrays:
            return dict(arrays)

    def add(self, arrays: Mapping[str, npt.NDArray[Any]], *key: object) -> None:
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]  # which takes any name
        with self._database:  # a transaction: whole, or not there
            self._database.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (self._name(key), file.getvalue()))

    def begin(self, purpose: str) -> None:
        with self._database:
            self._database.execute("INSERT OR IGNORE INTO unfinished VALUES (?)", (purpose,))

    def end(self, purpose: str) -> None:
        with self._database:
            self._database.execute("DELETE FROM unfinished WHERE purpose = ?", (purpose,))

    def is_needed(self) -> bool:
        """Whether a calibration that was interrupted would find something of its own in it."""
        return self._has_any("entries") and self._has_any("unfinished")

    def _has_any(self, table: str) -> bool:
        return self._database.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None

    def _name(self, key: tuple[object, ...]) -> str:
        return hashlib.sha256(repr((self._subject, *key)).encode()).hexdigest()


@contextlib.contextmanager
def open_cache(path: Path, subject: str, purpose: str) -> Iterator[Cache]:
    """A cache in a file that is removed when the block ends without an error, or with a refusal (ValueError), unless a
    calibration with another purpose was interrupted and will need it; and kept otherwise if there is anything in it,
    where a target is out of reach for one that is not. One process at a time has it.

    Args:
        purpose: What is calibrated for: another one may share entries, but is another calibration.
    Raises:
        OSError: The file can't be written, is damaged or something else, or another process has it.
    """
    try:
        database, cache = _open(path, subject)
        with contextlib.closing(database):
            cache.begin(purpose)
            try:
                yield cache
                cache.end(purpose)
            except TargetUnreachableError:
                raise
            except ValueError:  # the same command would be refused again
                cache.end(purpose)
                raise
            finally:
                if not cache.is_needed():
                    path.unlink(missing_ok=True)  # while no other has it
    except sqlite3.Error as error:
        raise OSError(f"{path}: {_advice(error)}") from error


def _open(path: Path, subject: str) -> tuple[sqlite3.Connection, Cache]:
    """Once more where the file was removed, by who had it before, after it was opened and before it was locked: the
    next calibration would make another one and have that."""
    while True:
        with contextlib.suppress(OSError):  # SQLite says what is wrong
            path.touch()
        before = _inode(path)
        database = sqlite3.connect(path, timeout=0)
        try:
            cache = Cache(database, subject)
            if _inode(path) == before:
                return database, cache
        except sqlite3.Error:
            if _inode(path) == before:
                database.close()
                raise
        database.close()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _advice(error: sqlite3.Error) -> str:
    said = str(error)
    if "locked" in said:
        return "another calibration of this model is running; wait for it, or name another profile with -o"
    if "not a database" in said or "malformed" in said or "disk image" in said:
        return f"what an interrupted calibration had measured, damaged ({said}); remove it to begin anew"
    if "full" in said:
        return "no room left on the device; make some, and the same command goes on from here"
    return f"can't be used to keep what is measured ({said}); choose another folder with -o"
