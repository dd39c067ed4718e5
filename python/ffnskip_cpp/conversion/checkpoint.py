"""Where each tensor of a checkpoint lies: safetensors files, one or several with an index.

A safetensors file is an 8-byte length, a JSON header with (dtype, shape, byte range) per tensor, then the data.
Only headers are read here; the data of a tensor is read rows at a time, when it is converted.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .settings import Json, read_json

BYTES_PER_ELEMENT = {"F32": 4, "F16": 2, "BF16": 2}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class Stored:
    """One tensor of the checkpoint, seen as rows of its last dimension; a vector has rows of one value."""

    path: Path
    offset: int  # bytes from the start of the file
    dtype: str  # F32, F16 or BF16; anything else is refused before it is read
    shape: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else math.prod(self.shape)

    @property
    def n_cols(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 else 1

    def read_rows(self, first: int, last: int) -> np.ndarray:
        """Rows [first, last) as stored, (last - first, n_cols); BF16, which numpy does not have, as its 16 bits.

        Raises:
            ValueError: The file has become shorter than its header says.
        """
        dtype = np.dtype({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[self.dtype])
        count = (last - first) * self.n_cols
        data = np.fromfile(self.path, dtype, count, offset=self.offset + first * self.n_cols * dtype.itemsize)
        if data.size != count:
            raise ValueError(f"{self.path}: ended while being read; was it replaced?")
        return data.reshape(last - first, self.n_cols)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a directory by name; `origin` says in messages where they were looked for."""

    origin: str
    tensors: dict[str, Stored]


def read_checkpoint(model_dir: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Every tensor of the directory. Reads headers only.

    Raises:
        FileNotFoundError: There are no weights, or the index names a file that is absent.
        ValueError: A file is damaged, contradicts the index, or is pickled without `allow_pickle`.
    """
    index_path = model_dir / "model.safetensors.index.json"
    single = model_dir / "model.safetensors"
    if index_path.is_file():
        return read_shards(model_dir, index_path.name)
    if single.is_file():
        return Checkpoint(single.name, read_header(single))
    if list(model_dir.glob("*.bin")) or list(model_dir.glob("*.pth")):
        if allow_pickle:
            from .pickled import read_pickled_checkpoint  # here, because it imports PyTorch

            return read_pickled_checkpoint(model_dir)
        raise ValueError(
            f"{model_dir}: only pickled weights (.bin, .pth), which can run code when opened; save as safetensors "
            "first, or allow them with --allow-pickle, which opens them as plain weights only"
        )
    raise FileNotFoundError(f"{model_dir}: no model.safetensors and no {index_path.name}")


def read_shards(model_dir: Path, index_name: str) -> Checkpoint:
    weight_map = read_weight_map(model_dir, index_name)
    tensors: dict[str, Stored] = {}
    for shard in sorted(set(weight_map.values())):
        for name, stored in read_header(model_dir / shard).items():
            if name in tensors:
                raise ValueError(f"{shard}: tensor {name!r} is also in {tensors[name].path.name}")
            tensors[name] = stored
    refuse_absent(weight_map, tensors)
    return Checkpoint(index_name, tensors)


def read_weight_map(model_dir: Path, index_name: str) -> dict[str, str]:
    """Tensor name -> file name, as the index has it; every file is there.

    Raises:
        FileNotFoundError: Names the absent file and a tensor that should be in it.
        ValueError: The index has no such map.
    """
    index: Json = read_json(model_dir / index_name)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index_name}: no weight_map from tensor names to file names")
    for name, shard in weight_map.items():
        if Path(shard).name != shard or not (model_dir / shard).is_file():
            raise FileNotFoundError(f"{index_name} names {shard!r} for tensor {name!r}, which is not in {model_dir}")
    return weight_map


def refuse_absent(weight_map: dict[str, str], tensors: dict[str, Stored]) -> None:
    for name, shard in weight_map.items():
        if name not in tensors:
            raise ValueError(f"{shard}: tensor {name!r} is missing, though the index says it is there")


def read_header(path: Path) -> dict[str, Stored]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"{path}: not a safetensors file, or truncated (header of {length} bytes in {size})")
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            return {name: locate(path, 8 + length, size, name, **entry) for name, entry in entries.items()}
        except (AttributeError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: damaged safetensors header ({error})") from None


def locate(
    path: Path, data_start: int, size: int, name: str, *, dtype: str, shape: list[int], data_offsets: list[int]
) -> Stored:
    """Check one header entry against the file."""
    if len(data_offsets) != 2 or not 0 <= data_offsets[0] <= data_offsets[1]:
        raise ValueError(f"{path}: tensor {name!r} has the impossible byte range {data_offsets}")
    first, last = data_offsets
    if last > size - data_start:
        raise ValueError(f"{path}: truncated: {name!r} ends at byte {data_start + last}, the file has {size}")
    if dtype in BYTES_PER_ELEMENT and math.prod(shape) * BYTES_PER_ELEMENT[dtype] != last - first:
        raise ValueError(f"{path}: tensor {name!r} of shape {shape} {dtype} cannot take {last - first} bytes")
    return Stored(path, data_start + first, dtype, tuple(shape))
