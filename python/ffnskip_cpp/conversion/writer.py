"""The GGUF file: header, metadata, then the tensors, each converted in pieces while it is written.

What is held in memory at a time is one piece of one tensor, whatever the tensor's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from .checkpoint import Checkpoint, Stored
from .plan import Planned, n_values

if TYPE_CHECKING:
    from .families.base import Family
    from .vocabulary import Vocabulary

# name on the command line -> (tensor type, general.file_type)
OUTTYPES = {
    "f32": (GGMLType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (GGMLType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}

F32 = np.dtype(np.float32)
PIECE_BYTES = 1 << 20  # of F32 values converted at a time; more leaves the cache and is slower

# Small, and read by code of llama.cpp that wants F32 or loses much by less.
ALWAYS_F32 = ("_norm.weight", ".ffn_gate_inp.weight", "position_embd.weight")


def tensor_type(name: str, shape: tuple[int, ...], wanted: GGMLType) -> GGMLType:
    """Norms, biases and routers stay F32; a row that is no whole number of blocks falls back to F16."""
    if len(shape) == 1 or name.endswith(ALWAYS_F32):
        return GGMLType.F32
    block_size, _ = gguf.GGML_QUANT_SIZES[wanted]
    return GGMLType.F16 if shape[-1] % block_size else wanted


def tensor_bytes(shape: tuple[int, ...], kind: GGMLType) -> int:
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block_size * block_bytes


def file_bytes(plan: list[Planned], outtype: str) -> int:
    """Size of all tensors in the file."""
    wanted, _ = OUTTYPES[outtype]
    return sum(tensor_bytes(entry.shape, tensor_type(entry.name, entry.shape, wanted)) for entry in plan)


# ----------------------------------------------------------------------------------------------------------------------
# Rows of the checkpoint


class SourceRows:
    """The rows of one or several stored tensors, one tensor after the other."""

    def __init__(self, stored: list[Stored]) -> None:
        self.stored = stored
        dtypes = {one.dtype for one in stored}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else "F32"  # of what read() returns
        self.n_cols = stored[0].n_cols
        self.n_rows = sum(one.n_rows for one in stored)

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows [first, last), (last - first, n_cols)."""
        parts, start = [], 0
        for one in self.stored:
            low, high = max(first - start, 0), min(last - start, one.n_rows)
            if low < high:
                rows = one.read_rows(low, high)
                parts.append(rows if one.dtype == self.dtype else rows_to_f32(rows, one.dtype))
            start += one.n_rows
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """These rows in this order. Neighbours in the file are read together."""
        ascending = np.sort(rows)
        runs = np.split(ascending, np.flatnonzero(np.diff(ascending) != 1) + 1)
        parts = [self.read(int(run[0]), int(run[-1]) + 1) for run in runs]
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return found[np.searchsorted(ascending, rows)]


class TransposedRows(SourceRows):
    """The columns of one stored matrix, as rows. Holds the whole matrix: GPT-2's are small."""

    def __init__(self, stored: list[Stored]) -> None:
        super().__init__(stored)
        self.matrix = super().read(0, self.n_rows).T
        self.n_rows, self.n_cols = self.matrix.shape

    def read(self, first: int, last: int) -> np.ndarray:
        return np.ascontiguousarray(self.matrix[first:last])


# ----------------------------------------------------------------------------------------------------------------------
# Values


def rows_to_f32(rows: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":  # the upper half of an F32
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32, copy=False)


def encode_rows(rows: np.ndarray, dtype: str, shift: float, kind: GGMLType) -> np.ndarray:
    """The bytes of these rows in the GGUF.

    Raises:
        OutOfRange: A value is infinite, NaN, or beyond what `kind` holds.
    """
    if kind.name == dtype and not shift:
        check_range(rows, dtype, kind)
        return rows
    values = rows_to_f32(rows, dtype)
    if shift:
        values = values + np.float32(shift)
    check_range(values, "F32", kind)
    return gguf.quants.quantize(values, kind)


class OutOfRange(ValueError):
    """What is wrong with the values; whoever knows adds which tensor."""


def check_range(values: np.ndarray, dtype: str, kind: GGMLType) -> None:
    if dtype == "BF16":
        # an exponent of ones is infinite or NaN; with the sign bit set it is negative as int16
        damaged = int(values.view(np.int16).max()) >= 0x7F80 or int(values.max()) >= 0xFF80
        peak = math.inf if damaged else 0.0
    else:
        peak = max(float(values.max()), -float(values.min()))
    if not math.isfinite(peak):
        raise OutOfRange("holds infinities or NaN; the checkpoint is damaged")
    if kind is GGMLType.F16 and peak > float(np.finfo(np.float16).max):
        raise OutOfRange(f"holds {peak:g}, beyond F16; use --outtype bf16 or f32")


class Encoded:
    """One tensor as GGUFWriter takes it (nbytes, tofile): converted piece by piece while it is written."""

    def __init__(self, entry: Planned, checkpoint: Checkpoint, kind: GGMLType, told: Callable[[int], Any]) -> None:
        self.entry, self.kind, self.told = entry, kind, told
        self.stored = [checkpoint.tensors[source] for source in entry.sources]
        self.nbytes = tensor_bytes(entry.shape, kind)

    def tofile(self, file: IO[bytes]) -> None:
        """Raises ValueError, with tensor and file, where a value has no place in the GGUF."""
        entry = self.entry
        rows = TransposedRows(self.stored) if entry.transposed else SourceRows(self.stored)
        n_rows = n_values(entry) // rows.n_cols
        step = rows_per_piece(rows)
        for first in range(0, n_rows, step):
            last = min(first + step, n_rows)
            piece = rows.read(first, last) if entry.order is None else rows.gather(entry.order[first:last])
            try:
                coded = encode_rows(piece, rows.dtype, entry.shift, self.kind)
            except OutOfRange as error:
                source = self.culprit()
                path = self.stored[entry.sources.index(source)].path
                raise ValueError(f"{path}: tensor {source!r} {error}") from None
            file.write(np.ascontiguousarray(coded).data.cast("B"))
            self.told(coded.nbytes)

    def culprit(self) -> str:
        """The first of the sources with a value that is out of range."""
        for source, stored in zip(self.entry.sources[:-1], self.stored):
            rows = SourceRows([stored])
            step = rows_per_piece(rows)
            try:
                for first in range(0, rows.n_rows, step):
                    piece = rows.read(first, min(first + step, rows.n_rows))
                    encode_rows(piece, rows.dtype, self.entry.shift, self.kind)
            except OutOfRange:
                return source
        return self.entry.sources[-1]


def rows_per_piece(rows: SourceRows) -> int:
    return max(1, PIECE_BYTES // (4 * rows.n_cols))


# ----------------------------------------------------------------------------------------------------------------------
# The file


def size_label(plan: list[Planned], n_expert: int) -> str:
    """Such as 7B, or 8x7B for a mixture of experts."""
    total = sum(map(n_values, plan))
    experts = sum(n_values(entry) for entry in plan if "_exps." in entry.name)
    return gguf.size_label(total, total - experts, experts // max(n_expert, 1), n_expert)


def write_gguf(
    path: Path, family: Family, vocab: Vocabulary, plan: list[Planned], checkpoint: Checkpoint, outtype: str, name: str,
    told: Callable[[int], Any],
) -> None:  # fmt: skip
    """Write the whole file at `path`: header and metadata, then the tensors in plan order."""
    wanted, file_type = OUTTYPES[outtype]
    writer = gguf.GGUFWriter(path, family.arch)
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(vocab.model_name(name))
        writer.add_size_label(size_label(plan, family.n_expert))
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        family.add_metadata(writer)
        vocab.add_metadata(writer)
        computed = family.computed_tensors()
        for tensor_name, values in computed.items():
            writer.add_tensor_info(tensor_name, values.shape, values.dtype, values.nbytes)
        kinds = [tensor_type(entry.name, entry.shape, wanted) for entry in plan]
        for entry, kind in zip(plan, kinds):
            writer.add_tensor_info(entry.name, entry.shape, F32, tensor_bytes(entry.shape, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in computed.values():
            writer.write_tensor_data(values)
        for entry, kind in zip(plan, kinds):
            writer.write_tensor_data(Encoded(entry, checkpoint, kind, told))  # type: ignore[arg-type]  # as one of NumPy
    finally:
        writer.close()
