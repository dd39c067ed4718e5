"""What comes before the weights in a GGUF file: metadata and the table of tensors.

    header = read_header("model.gguf")
    header.metadata["general.architecture"], header.tensors[0].n_bytes

The one reader of the package. Metadata is kept as the bytes it is there, so that a copy can keep all of it exactly, and
decoded when asked for: a vocabulary of 262,144 tokens takes a tenth of a second (ten seconds with gguf.GGUFReader).
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

__all__ = ["Entry", "Header", "Metadata", "Tensor", "read_header", "read_headers"]

VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
SIZES = {kind: struct.calcsize(f"={code}") for kind, code in SCALARS.items()}
STRING, ARRAY = 8, 9
MAX_DIMS = 4  # of a ggml tensor

U64 = struct.Struct("=Q")


class Entry(NamedTuple):
    """One piece of metadata."""

    key: str
    raw: bytes  # key, type and value

    def value(self) -> Any:
        """A str, an int, float or bool, or a list of them. Bytes that are no UTF-8 are surrogates, as in file names."""
        walk = _Walk(self.raw)
        walk.skip(STRING)
        return walk.value(*walk.take("I"))

    def strings(self) -> list[bytes]:
        """Of a list of strings, as they are in the file; empty for another value."""
        walk = _Walk(self.raw)
        walk.skip(STRING)
        kind, item, n = walk.take("IIQ") if len(self.raw) >= walk.at + 16 else (0, 0, 0)
        return walk.strings(n) if (kind, item) == (ARRAY, STRING) else []


class Metadata(Mapping[str, Any]):
    """Key and value, decoded at each look-up."""

    def __init__(self, entries: Sequence[Entry]):
        self._entries = {entry.key: entry for entry in entries}

    def __getitem__(self, key: str) -> Any:
        return self._entries[key].value()

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Tensor(NamedTuple):
    """One line of the table."""

    name: str
    dims: tuple[int, ...]  # the length of a row first
    type: int  # a ggml_type
    offset: int  # from the header's data_offset
    n_bytes: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.dims)

    @property
    def type_name(self) -> str:
        """In lower case: "q4_k"."""
        return _known_type(self.type)[0]


@dataclass(frozen=True)
class Header:
    path: Path
    version: int
    entries: list[Entry]
    tensors: list[Tensor]
    raw_tensors: bytes  # the table as it is in the file
    alignment: int
    data_offset: int  # where the weights begin

    @property
    def metadata(self) -> Metadata:
        return Metadata(self.entries)

    @property
    def architecture(self) -> str:
        """Empty where the file does not say."""
        return str(self.metadata.get("general.architecture", ""))

    def of_architecture(self, key: str, default: Any = None) -> Any:
        """Metadata that each architecture keeps under its own name: "llama.block_count" for "block_count"."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def read_header(path: str | os.PathLike[str]) -> Header:
    """What comes before the weights; whether those are there is not looked at.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Its name is no UTF-8; or it is no file, no GGUF file of this machine's byte order, or damaged before
            the weights.
    """
    path = Path(path)
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path.name!a}: the name is no UTF-8; llama_cpp can't open such a file") from None
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: {'a directory' if path.is_dir() else 'a device or pipe'}, not a GGUF file")
    with open(path, "rb") as file:
        version, n_tensors, n_entries = _fixed_part(path, file.read(24))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            walk = _Walk(data, at=24)
            try:
                return walk.header(path, version, n_tensors, n_entries)
            except _Damaged as error:
                raise ValueError(f"{path}: a damaged GGUF file: {error}") from error
            except (struct.error, ValueError, OverflowError) as error:  # past the end
                raise ValueError(
                    f"{path}: a truncated or damaged GGUF file: what comes before the weights does not end within its "
                    f"{len(data)} bytes"
                ) from error


def read_headers(path: str | os.PathLike[str]) -> list[Header]:
    """Of a model that may be split: `path` is the only or the first part. Raises as `read_header`, and ValueError
    where a part is missing."""
    first = read_header(path)
    n_parts, number = (first.metadata.get(f"split.{key}", 0) for key in ("count", "no"))
    if not isinstance(n_parts, int) or n_parts < 2:
        return [first]
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", first.path.name)
    if not match or int(match.group(3)) != n_parts:
        raise ValueError(f"{first.path}: one of {n_parts} parts; its name must end in -00001-of-{n_parts:05d}.gguf")
    names = [f"{match.group(1)}-{i:05d}-of-{n_parts:05d}.gguf" for i in range(1, n_parts + 1)]
    if number != 0 or first.path.name != names[0]:
        raise ValueError(f"{first.path}: not the first part of the model; that is {names[0]}")
    try:
        return [first, *(read_header(first.path.with_name(name)) for name in names[1:])]
    except FileNotFoundError as error:
        raise ValueError(f"{first.path}: one of {n_parts} parts: {error}") from error


def _fixed_part(path: Path, start: bytes) -> tuple[int, int, int]:
    """Version, number of tensors, number of entries."""
    if not start:
        raise ValueError(f"{path}: not a GGUF file (it is empty)")
    if start[:4] != b"GGUF":
        raise ValueError(f"{path}: not a GGUF file (it starts with {start[:4]!r})")
    if len(start) < 24:
        raise ValueError(f"{path}: a truncated GGUF file: {len(start)} bytes")
    version, n_tensors, n_entries = struct.unpack_from("=IQQ", start, 4)
    if int.from_bytes(start[4:8], "big") in VERSIONS and version not in VERSIONS:
        raise ValueError(f"{path}: a big-endian GGUF file; this machine is little-endian")
    if version not in VERSIONS:
        raise ValueError(f"{path}: GGUF version {version}; expected 2 or 3")
    return version, n_tensors, n_entries


@functools.lru_cache
def _known_type(number: int) -> tuple[str, int, int]:
    """Name of a ggml_type, values in a block of it, bytes of a block; KeyError where neither the gguf package nor the
    llama.cpp in use knows it."""
    if number in GGML_QUANT_SIZES:
        return (GGMLQuantizationType(number).name.lower(), *GGML_QUANT_SIZES[GGMLQuantizationType(number)])
    from ..llama_cpp_internals import ggml_type

    return ggml_type(number)


class _Damaged(ValueError):
    pass


class _Walk:
    """Goes through the bytes once. Past their end, struct.error or ValueError.

    Numbers of things are not believed: each thing takes bytes and has a name of its own, so that a walk through
    nonsense ends at the file's end or at a thing without one.
    """

    def __init__(self, data: bytes | mmap.mmap, at: int = 0):
        self._data = data
        self.at = at

    def header(self, path: Path, version: int, n_tensors: int, n_entries: int) -> Header:
        entries: dict[str, Entry] = {}
        for _ in range(n_entries):
            entry = self._entry()
            if not entry.key:
                raise _Damaged("an entry of the metadata has no name")
            if entry.key in entries:
                raise _Damaged(f"the key {entry.key!r} comes twice")
            entries[entry.key] = entry
        alignment = self._alignment(entries)
        first = self.at
        tensors: dict[str, Tensor] = {}
        for _ in range(n_tensors):
            tensor = self._tensor()
            if tensor.name in tensors:
                raise _Damaged(f"the tensor {tensor.name!r} comes twice")
            tensors[tensor.name] = tensor
        raw = self._since(first)
        end = self.at + -self.at % alignment
        return Header(path, version, list(entries.values()), list(tensors.values()), raw, alignment, end)

    @staticmethod
    def _alignment(entries: Mapping[str, Entry]) -> int:
        entry = entries.get("general.alignment")
        value = 32 if entry is None else entry.value()
        if type(value) is not int or value < 1 or value & (value - 1):
            raise _Damaged(f"general.alignment is {value!r}; expected a power of two")
        return value

    def _entry(self) -> Entry:
        first = self.at
        key = self.value(STRING)
        (kind,) = self.take("I")
        try:
            self.skip(kind)
        except KeyError as error:
            raise _Damaged(f"the value of {key!r} has type {error}") from error
        except RecursionError as error:
            raise _Damaged(f"the value of {key!r} has lists in lists in lists") from error
        return Entry(key, self._since(first))

    def _tensor(self) -> Tensor:
        name = self.value(STRING)
        (n_dims,) = self.take("I")
        if n_dims > MAX_DIMS:
            raise _Damaged(f"the tensor {name!r} has {n_dims} dimensions; {MAX_DIMS} at most")
        *dims, type_, offset = self.take(f"{n_dims}QIQ")
        try:
            _, block, block_bytes = _known_type(type_)
        except KeyError:
            raise _Damaged(f"the tensor {name!r} has type {type_}, of which nothing is known") from None
        return Tensor(name, tuple(dims), type_, offset, math.prod(dims) // block * block_bytes)

    def _since(self, first: int) -> bytes:
        if self.at > len(self._data):
            raise ValueError
        return self._data[first : self.at]

    def take(self, code: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"={code}", self._data, self.at)
        self.at += struct.calcsize(f"={code}")
        return values

    def skip(self, kind: int) -> None:
        """Past a value; KeyError if there is no such type."""
        if kind == STRING:
            self._skip_strings(1)
        elif kind == ARRAY:
            item, n = self.take("IQ")
            if item == STRING:
                self._skip_strings(n)
            elif item == ARRAY:
                for _ in range(n):
                    self.skip(ARRAY)
            else:
                self.at += n * SIZES[item]
        else:
            self.at += SIZES[kind]

    def strings(self, n: int) -> list[bytes]:
        at, length, data, found = self.at, U64.unpack_from, self._data, []
        for _ in range(n):
            first = at + 8
            at = first + length(data, at)[0]
            found.append(data[first:at])
        self.at = at
        return found

    def _skip_strings(self, n: int) -> None:
        at, length, data = self.at, U64.unpack_from, self._data  # a vocabulary is most of a header
        for _ in range(n):
            at += 8 + length(data, at)[0]
        self.at = at

    def value(self, kind: int) -> Any:
        if kind == STRING:
            first = self.at + 8
            self._skip_strings(1)
            return self._since(first).decode(errors="surrogateescape")
        if kind == ARRAY:
            item, n = self.take("IQ")
            if item not in SCALARS:
                return [self.value(item) for _ in range(n)]
            return list(self.take(f"{n}{SCALARS[item]}"))
        return self.take(SCALARS[kind])[0]
