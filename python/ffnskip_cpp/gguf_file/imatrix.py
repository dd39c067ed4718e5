"""Importance matrices: how much each input channel of each matrix counts when it is quantised.

llama-imatrix writes them as GGUF. For a matrix `name` with n inputs, of n_mat experts (1 where there are none):

    name.in_sum2   F32 [n_mat, n]   sum over the tokens of the squared inputs
    name.counts    F32 [n_mat, 1]   tokens
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..files import PathLike
from .header import Header, Tensor, read_header

__all__ = ["check_imatrix", "read_imatrix", "use_imatrix"]

F32 = 0
SUMS, COUNTS = ".in_sum2", ".counts"


def check_imatrix(path: PathLike, model: Iterable[Header]) -> None:
    """Raises as `read_imatrix`, or ValueError where the file was made with another model."""
    means = read_imatrix(path)
    tensors = {tensor.name: tensor for header in model for tensor in header.tensors}
    known = [name for name in means if name in tensors]
    if not known:
        raise ValueError(f"imatrix {path}: of another model: {next(iter(means))} is none of its matrices")
    for name in known:
        n, *others = tensors[name].dims
        expected = n * math.prod(others[1:])
        if means[name].size != expected:
            raise ValueError(
                f"imatrix {path}: of another model: {name} has {means[name].size} inputs there and {expected} here"
            )


def read_imatrix(path: PathLike) -> dict[str, npt.NDArray[np.float32]]:
    """Mean squared input of each channel, float32 [n_mat * n], by the name of the matrix; 1 for an expert that no token
    came to.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no importance matrix in GGUF, or a damaged one.
    """
    header = _header(path)
    means = {}
    with open(path, "rb") as file:

        def values(tensor: Tensor) -> npt.NDArray[np.float32]:
            file.seek(header.data_offset + tensor.offset)
            data = file.read(tensor.n_bytes)
            if len(data) < tensor.n_bytes:
                raise ValueError(f"imatrix {path}: truncated: {tensor.name} is not within the file")
            return np.frombuffer(data, np.float32).reshape(tensor.dims[1] if len(tensor.dims) > 1 else 1, -1)

        for name, sums, counts in _pairs(header):
            n = values(counts)
            mean = np.where(n > 0, values(sums) / np.where(n > 0, n, 1), 1).astype(np.float32)
            if not np.isfinite(mean).all() or (mean < 0).any():
                raise ValueError(f"imatrix {path}: {name}: means of squares must be finite and not negative")
            means[name] = mean.reshape(-1)
    return means


def _header(path: PathLike) -> Header:
    try:
        header = read_header(path)
    except ValueError as error:
        raise ValueError(f"imatrix {error}; one in the older format: llama-imatrix turns it into GGUF") from error
    kind = header.metadata.get("general.type")
    if kind != "imatrix":
        raise ValueError(f"imatrix {path}: not an importance matrix: its general.type is {kind!r}, not 'imatrix'")
    return header


def _pairs(header: Header) -> list[tuple[str, Tensor, Tensor]]:
    """Name of the matrix, sums, counts."""
    by_name = {tensor.name: tensor for tensor in header.tensors}
    pairs = []
    for name, sums in by_name.items():
        if name.endswith(SUMS):
            matrix = name[: -len(SUMS)]
            counts = by_name.get(matrix + COUNTS)
            if counts is None or not _fit(sums, counts):
                raise ValueError(f"imatrix {header.path}: {matrix}: sums and counts of squares don't fit each other")
            pairs.append((matrix, sums, counts))
    if not pairs:
        raise ValueError(f"imatrix {header.path}: there is nothing in it")
    return pairs


def _fit(sums: Tensor, counts: Tensor) -> bool:
    if {sums.type, counts.type} != {F32} or not sums.dims or counts.dims[:1] != (1,):
        return False
    return counts.n_elements * sums.dims[0] == sums.n_elements


def use_imatrix(params: Any, path: PathLike) -> Any:
    """Set `imatrix` of a llama_model_quantize_params, and, as llama-quantize does, note in the model where its
    importance matrix came from. What is returned must outlive `params`."""
    import llama_cpp

    means = read_imatrix(path)
    entries = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()  # a nameless one ends them
    for entry, (name, mean) in zip(entries, means.items()):
        entry.name, entry.data, entry.size = name.encode(), _pointer(mean), mean.size
    notes = _notes(path, len(means))
    overrides = (llama_cpp.llama_model_kv_override * (len(notes) + 1))()
    for override, (key, value) in zip(overrides, notes.items()):
        override.key = key.encode()
        if isinstance(value, str):
            override.tag, override.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()[:127]
        else:
            override.tag, override.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
    params.imatrix, params.kv_overrides = entries, overrides
    return means


def _pointer(values: npt.NDArray[np.float32]) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def _notes(path: PathLike, n_entries: int) -> dict[str, str | int]:
    notes: dict[str, str | int] = {"quantize.imatrix.file": str(path), "quantize.imatrix.entries_count": n_entries}
    metadata = read_header(path).metadata
    datasets, chunks = metadata.get("imatrix.datasets"), metadata.get("imatrix.chunk_count")
    if isinstance(datasets, list) and datasets:
        notes["quantize.imatrix.dataset"] = str(datasets[0])
    if isinstance(chunks, int):
        notes["quantize.imatrix.chunks_count"] = chunks
    return notes
