"""One run: a task's items of one data set, put to one model under one method; as it lies in a folder of results.

DIR/RUN.json          what was measured, with what, and the figures
DIR/RUN.items.jsonl   a record for each item, in the order of the run; what an interrupted run goes on from
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..plain import plain
from .tasks.base import Record

__all__ = ["Figure", "Run", "dense_of", "read_records", "read_runs", "record_line", "records_of"]

RUN, ITEMS = ".json", ".items.jsonl"
OF_ITEMS = ("limit", "seed", "scoring", "max_tokens", "n_ctx")  # settings that decide what is asked


@dataclass(frozen=True)
class Figure:
    """A metric over items, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    n: int
    """Items."""


@dataclass(frozen=True)
class Run:
    """What RUN.json holds."""

    name: str
    """Of the run, and of its files: "factoid-freebaseqa-eval-ffn_skip-0.25"."""
    task: str
    data: str
    """Name of the data set: of its file, without the ending."""
    data_hash: str
    """SHA-256 of the file, or of the files of a folder in order of their names."""
    model: str
    """Name of the user's model file, without the ending; the same for all methods, other files among them."""
    fingerprint: str
    method: str
    """"dense", "ffn_skip", "calibrated:NAME", "file:NAME"."""
    label: str
    """For tables: "ffn_skip 25 %"."""
    skip_ratio_target: float | None
    config: dict[str, Any] | None
    """`SkipConfig.asdict()`, what differs from the defaults; None: nothing is skipped."""
    settings: dict[str, Any]
    """limit, seed, scoring, skip_prompts, warm_up_index, max_tokens, n_ctx, threads and others; model_sha256 of the
    user's file, file_sha256 of another model file, text_sha256 of what a method was found on. None where it means
    nothing to the run."""
    versions: dict[str, str]
    metrics: dict[str, Figure]
    groups: dict[str, dict[str, Figure]]
    """By group, then as `metrics`."""
    skip_ratio: float
    """Measured: of the blocks, or of channels the weight bytes, of all rows that count as generated."""
    could_skip: float
    """Of the tokens scored, the share that comes from a row that may skip. At 0 the run is of the dense model."""
    size_ratio: float
    """Of the file, over the user's: 1 but for other files."""
    seconds: float

    @property
    def asked_warm_up(self) -> int | None:
        """That was asked for; None: the method's own. Its name alone says which, as a profile's own is in `settings`
        too, but for a perplexity, whose rows begin at the usual one."""
        warm_up: int | None = self.settings.get("warm_up_index")
        return warm_up if f"-warm_up-{warm_up}" in self.name else None

    @property
    def variant(self) -> str:
        """What sets it apart from a run of the same label: ", warm-up 0, skip-prompts 2"; "" as a rule."""
        asked = {"warm-up": self.asked_warm_up, "skip-prompts": self.settings.get("skip_prompts")}
        return "".join(f", {name} {value}" for name, value in asked.items() if value is not None)

    @property
    def full_label(self) -> str:
        """No other run on the same data has it: "ffn_skip 25 %, warm-up 0"."""
        return f"{self.label}{self.variant}"

    def as_dict(self) -> dict[str, Any]:
        """Of plain values; None for NaN."""
        return plain(self)  # type: ignore[no-any-return]

    @classmethod
    def of(cls, given: dict[str, Any]) -> Run:
        """Of what `as_dict` gave, and perhaps more. Raises KeyError, TypeError or AttributeError where it is no run."""
        values = {field.name: given[field.name] for field in dataclasses.fields(cls)}
        values["metrics"] = _figures(values["metrics"])
        values["groups"] = {name: _figures(figures) for name, figures in values["groups"].items()}
        return cls(**values)


def _figures(given: dict[str, Any]) -> dict[str, Figure]:
    def number(value: float | None) -> float:
        return math.nan if value is None else float(value)

    return {
        name: Figure(number(figure["value"]), number(figure["low"]), number(figure["high"]), int(figure["n"]))
        for name, figure in given.items()
    }


# ---- a folder of results ----


def read_runs(folder: Path) -> list[Run]:
    """The finished runs in a folder, in order of their names.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: A file is damaged, or no run.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    return [read_run(path) for path in sorted(folder.glob(f"*{RUN}"))]


def read_run(path: Path) -> Run:
    """Raises as `read_runs`."""
    try:
        return Run.of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no run of an evaluation, or damaged ({error!r})") from error


def read_records(folder: Path, run: Run) -> list[Record]:
    """What each item of a run came to, in its order. None of `speed`, which has no items.

    Raises:
        ValueError: The file is missing, or a line of it damaged; names the line.
    """
    path = folder / f"{run.name}{ITEMS}"
    if run.task == "speed":
        return []
    if not path.is_file():
        raise ValueError(f"{path}: missing; it has the items of {run.name}{RUN}")
    records = records_of(path, path.read_bytes())
    if len(records) < max((figure.n for figure in run.metrics.values()), default=0):
        raise ValueError(f"{path}: shorter than it was; {run.name}{RUN} is of more items")
    return records


def records_of(path: Path, content: bytes) -> list[Record]:
    """Raises ValueError, with file and line."""
    return [_record(line, f"{path}:{number}") for number, line in enumerate(content.splitlines(), start=1)]


def _record(line: bytes, where: str) -> Record:
    try:
        return Record(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: no record of an item, or damaged: {error}") from error


def record_line(record: Record) -> bytes:
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False).encode("utf-8") + b"\n"


# ---- what a run is compared with ----


def dense_of(run: Run, runs: Iterable[Run]) -> Run | None:
    """Of some runs the dense one on the same items, with the same settings, as far as they mean anything to it; None
    where it is not among them."""
    return next((other for other in runs if other.method == "dense" and _same_items(other, run)), None)


def _same_items(dense: Run, run: Run) -> bool:
    same = (dense.task, dense.data, dense.data_hash, dense.model) == (run.task, run.data, run.data_hash, run.model)
    wanted = ((dense.settings.get(name), run.settings.get(name)) for name in OF_ITEMS)
    warm_up = dense.settings.get("warm_up_index")  # decides what is scored of a perplexity, and else nothing
    return same and all(a == b for a, b in wanted) and warm_up in (None, run.settings.get("warm_up_index"))
