"""What is asked: the items of the data sets of each task, and the choice of some of them."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union

import numpy as np

from ..errors import ArgumentError
from .tasks import TASKS
from .tasks.base import Item

__all__ = ["SPEED", "Data", "DataSet", "chosen", "read_data_sets", "sha256_of"]

PathLike = Union[str, "os.PathLike[str]"]
Data = Union[PathLike, Sequence[PathLike], Mapping[str, Union[PathLike, Sequence[PathLike]]]]

SPEED = "speed"
"""A task that has no data: how fast the methods are."""

HASHED_AT_ONCE = 2**20  # bytes

ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True)
class DataSet:
    task: str
    name: str
    """Of its file, without the ending."""
    sha256: str
    """Of the file, or of the files of a folder in order of their names."""
    items: tuple[Any, ...]


def read_data_sets(tasks: Sequence[str], data: Data | None, limit: int | None, seed: int) -> list[DataSet]:
    """What is asked, for each task in turn.

    Args:
        data: By task; or, of one task, its data sets; or one for each of several tasks, in their order.
        limit: Items of each data set at most.
        seed: Of the choice of these.
    Raises:
        ArgumentError: A task that is not known or named twice, one without data, or data that is nobody's.
        FileNotFoundError: A file is missing.
        ValueError: A file is none that its task reads; names the line.
    """
    found = []
    for task, paths in _by_task(tasks, data).items():
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file")
        names = [path.name if path.is_dir() else path.stem for path in paths]
        for path, name in zip(paths, names):
            if names.count(name) > 1:
                raise ArgumentError(f"data: two data sets of {task} are called {name}; give one of them another name")
            items = TASKS[task].read(path)
            found.append(DataSet(task, name, sha256_of(path), tuple(chosen(items, limit, seed))))
    return found


def _by_task(tasks: Sequence[str], data: Data | None) -> dict[str, list[Path]]:
    if not tasks or len(set(tasks)) < len(tasks):
        raise ArgumentError("task: none is named, or one of them twice")
    for task in tasks:
        if task != SPEED and task not in TASKS:
            raise ArgumentError(f"task: {task!r} is not known; known are {', '.join((*TASKS, SPEED))}")
    wanting = [task for task in tasks if task != SPEED]
    if isinstance(data, Mapping):
        given = {task: _paths(paths) for task, paths in data.items()}
    else:
        paths = _paths(() if data is None else data)
        one_each = len(paths) == len(wanting)
        if paths and len(wanting) != 1 and not one_each:
            raise ArgumentError(
                f"data: {len(paths)} files for {len(wanting)} tasks; one for each, in their order, or TASK=FILE"
            )
        given = {task: [path] for task, path in zip(wanting, paths)} if one_each else dict.fromkeys(wanting, paths)
    for task in wanting:
        if not given.get(task):
            raise ArgumentError(f"data: none for task {task}; give its file")
    for task in given:
        if task not in wanting:
            raise ArgumentError(f"data: some for {task!r}, which is no task that is to be run and takes data")
    return {task: given[task] for task in wanting}


def _paths(given: PathLike | Sequence[PathLike]) -> list[Path]:
    return [Path(given)] if isinstance(given, (str, os.PathLike)) else [Path(path) for path in given]


def sha256_of(*paths: Path) -> str:
    """Of what is in files, one after the other, those of a folder in order of their names."""
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        for each in files:
            with open(each, "rb") as file:
                while block := file.read(HASHED_AT_ONCE):
                    digest.update(block)
    return digest.hexdigest()


def chosen(items: Sequence[ItemT], limit: int | None, seed: int) -> list[ItemT]:
    """Some of the items, in the order they have: as many of each group, as far as there are. Those of a
    smaller limit are among those of a larger one."""
    if limit is None or limit >= len(items):
        return list(items)
    groups: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item.group, []).append(i)
    ranked: list[tuple[int, int, int]] = []
    for k, name in enumerate(sorted(groups)):
        random = np.random.default_rng([seed, zlib.crc32(name.encode("utf-8"))])
        ranked += [(rank, k, groups[name][i]) for rank, i in enumerate(random.permutation(len(groups[name])).tolist())]
    return [items[i] for i in sorted(i for _, _, i in sorted(ranked)[:limit])]
