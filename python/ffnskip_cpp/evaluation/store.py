"""A folder of results while runs are made: what is finished, what an interrupted run has, and that it goes on.

Beside the files of a finished run (runs.py) there is, as long as it is not finished,

    DIR/RUN.begun         what the run is of, and how far it is known to be right

Records are appended as they come. From time to time a run says that all of them count (`Journal.keep`); what an
interrupted run has behind that, a torn line perhaps, is dropped when it goes on, and measured again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..files import whole_file
from ..plain import plain
from .facts import Facts
from .runs import ITEMS, RUN, Run, read_records, read_run, record_line, records_of
from .subject import Counts
from .tasks.base import Record

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Journal", "Store", "open_store"]

BEGUN = ".begun"
STATE = ("n_items", "n_bytes", "seconds", "counts")
DECIDES_NOTHING = ("label", "threads")
"""Of facts and of settings: records with others of these go together. But with other threads the speed is another."""


@contextlib.contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """The folder, which is made if it is missing, for this process alone.

    Raises:
        OSError: Another process writes into it, or it can't be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)  # the lock ends with the process, however that ends
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(
                f"{folder}: another evaluation is writing into it; wait for it, or give another folder"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield Store(folder)
    finally:
        os.close(descriptor)


class Store:
    def __init__(self, folder: Path):
        self.folder = folder

    def facts(self, name: str) -> Facts | None:
        """Of a run that is finished, or has items; None where it is not begun, or ended before the first were done."""
        if (path := self._path(name, RUN)).exists():
            return read_run(path).as_dict()
        if (path := self._path(name, BEGUN)).exists() and (state := _begun(path))["n_items"]:
            facts: Facts = state["facts"]
            return facts
        return None

    def check(self, facts: Facts) -> None:
        """Raises ValueError where the run is there with other settings, versions, model or data."""
        there = self.facts(facts["name"])
        differing = [] if there is None else list(_differences(there, facts))
        if differing:
            raise ValueError(
                f"{self.folder}: {facts['name']} is there already and differs: {'; '.join(differing)}. Give another "
                "folder, or remove the files of that run"
            )

    def n_done(self, name: str, n_items: int) -> int:
        """Items of a run of so many that need not be asked again."""
        if self._path(name, RUN).exists():
            return n_items
        path = self._path(name, BEGUN)
        return int(_begun(path)["n_items"]) if path.exists() else 0

    def finished(self, name: str) -> Run | None:
        path = self._path(name, RUN)
        if not path.exists():
            return None
        self._path(name, BEGUN).unlink(missing_ok=True)  # of a process that ended between the two
        return read_run(path)

    def records(self, run: Run) -> list[Record]:
        return read_records(self.folder, run)

    def journal(self, facts: Facts) -> Journal:
        """Of a run that is not finished: from where it was, if it was begun."""
        return Journal(self._path(facts["name"], BEGUN), self._path(facts["name"], ITEMS), facts)

    def finish(self, run: Run) -> None:
        with whole_file(self._path(run.name, RUN)) as part:
            part.write_text(json.dumps(run.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self._path(run.name, BEGUN).unlink(missing_ok=True)

    def _path(self, name: str, ending: str) -> Path:
        return self.folder / f"{name}{ending}"


class Journal:
    """The records of a run, as they come."""

    def __init__(self, begun: Path, items: Path, facts: Facts):
        self._begun, self._items, self._facts = begun, items, facts
        self.records: list[Record] = []
        self.seconds = 0.0
        self.counts = Counts()
        if begun.exists():
            state = _begun(begun)
            n_bytes = state["n_bytes"]
            if not items.exists() or items.stat().st_size < n_bytes:
                raise ValueError(f"{items}: shorter than it was; remove {begun.name} to begin that run anew")
            os.truncate(items, n_bytes)
            self.records = records_of(items, items.read_bytes())
            self.seconds, self.counts = state["seconds"], Counts(**state["counts"])
        self._file = open(items, "ab" if self.records else "wb")
        self._write_state()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # of what could not be written, which was said
            self._file.close()

    def add(self, record: Record) -> None:
        self.records.append(record)
        try:
            self._file.write(record_line(record))
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from error

    def keep(self, seconds: float, counts: Counts) -> None:
        """All that was added counts from here on; what it took, and what was left out of it, is added up."""
        self.seconds += seconds
        self.counts += counts
        os.fsync(self._file.fileno())  # before what says that they are there
        self._write_state()

    def _write_state(self) -> None:
        state = {
            "facts": self._facts,
            "n_items": len(self.records),
            "n_bytes": self._file.tell(),
            "seconds": self.seconds,
            "counts": vars(self.counts),
        }
        with whole_file(self._begun) as part:
            part.write_text(json.dumps(plain(state), ensure_ascii=False), encoding="utf-8")


def _begun(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        Counts(**state["counts"])
        return {"facts": dict(state["facts"]), **{name: state[name] for name in STATE}}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); remove it to begin that run anew") from error


def _differences(there: Facts, here: Facts) -> Iterator[str]:
    """In words."""
    for name, value in here.items():
        other = there.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            for key in sorted({*value, *other}):
                if value.get(key) != other.get(key) and _decides(key, here):
                    yield f"{key} was {reprlib.repr(other.get(key))} and is {reprlib.repr(value.get(key))}"
        elif value != other and _decides(name, here):
            yield f"{name} was {reprlib.repr(other)} and is {reprlib.repr(value)}"


def _decides(name: str, facts: Facts) -> bool:
    return name not in DECIDES_NOTHING or (name == "threads" and facts["task"] == "speed")
