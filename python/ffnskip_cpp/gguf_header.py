"""What comes before the weights in a GGUF file, as the bytes it is there, so that a copy can keep all of it exactly.

gguf.GGUFReader makes an array of each string, which takes ten seconds for the vocabulary of a large model.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Entry", "Header", "read_header"]

VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
SIZES = {kind: struct.calcsize(f"={code}") for kind, code in SCALARS.items()}
STRING, ARRAY = 8, 9

U64 = struct.Struct("=Q")


class Entry(NamedTuple):
    """One piece of metadata."""

    key: str
    raw: bytes  # key, type and value

    def value(self) -> Any:
        """A str, an int, float or bool, or a list of them."""
        walk = _Walk(self.raw)
        walk.skip(STRING)
        return walk.value(*walk.take("I"))


class Header(NamedTuple):
    version: int
    entries: list[Entry]
    n_tensors: int
    tensors: bytes  # names, shapes, types and offsets of the tensors
    alignment: int
    data_offset: int  # where the weights begin


def read_header(path: Path) -> Header:
    """What comes before the weights; whether those are there is not looked at.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no GGUF file, or damaged up to the weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(data).header()
    except (ValueError, KeyError, OverflowError, RecursionError, struct.error) as error:
        raise ValueError(f"{path}: it is no GGUF file of this machine, or a truncated or damaged one") from error


class _Walk:
    """Goes through the bytes once. Past their end, struct.error or ValueError."""

    def __init__(self, data: bytes | mmap.mmap):
        self._data = data
        self._at = 0

    def header(self) -> Header:
        magic, version, n_tensors, n_entries = self.take("4sIQQ")
        if magic != b"GGUF" or version not in VERSIONS:
            raise ValueError
        entries = [self._entry() for _ in range(n_entries)]
        first = self._at
        for _ in range(n_tensors):
            self._skip_tensor()
        tensors = self._since(first)
        alignment = next((entry.value() for entry in entries if entry.key == "general.alignment"), 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError
        return Header(version, entries, n_tensors, tensors, alignment, self._at + -self._at % alignment)

    def _entry(self) -> Entry:
        first = self._at
        key = self.value(STRING)
        self.skip(*self.take("I"))
        return Entry(key, self._since(first))

    def _skip_tensor(self) -> None:
        self.skip(STRING)
        (n_dims,) = self.take("I")
        self._at += 8 * n_dims + 4 + 8  # dimensions, type, offset

    def _since(self, first: int) -> bytes:
        if self._at > len(self._data):
            raise ValueError
        return self._data[first : self._at]

    def take(self, code: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"={code}", self._data, self._at)
        self._at += struct.calcsize(f"={code}")
        return values

    def skip(self, kind: int) -> None:
        if kind == STRING:
            self._at += 8 + U64.unpack_from(self._data, self._at)[0]
        elif kind == ARRAY:
            item, n = self.take("IQ")
            if item in SIZES:
                self._at += n * SIZES[item]
            else:
                for _ in range(n):
                    self.skip(item)
        else:
            self._at += SIZES[kind]

    def value(self, kind: int) -> Any:
        if kind == STRING:
            first = self._at + 8
            self.skip(STRING)
            return self._since(first).decode(errors="replace")
        if kind == ARRAY:
            item, n = self.take("IQ")
            return [self.value(item) for _ in range(n)]
        return self.take(SCALARS[kind])[0]
