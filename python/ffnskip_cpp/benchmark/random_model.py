"""Models of known shapes with random weights, for measuring speed without downloading anything.

    with random_model("llama2-7b", "q4_0") as path:
        model = llama_cpp.llama_model_load_from_file(path.encode(), params)

The model is a GGUF file that lives in memory, so llama.cpp loads it like any other: same tensors, same buffer types,
same repacking. (llama_model_init_from_user would need no file, but it turns repacking off, gives every layer all the
optional biases of its architecture, and has no tied output; the model timed would not be the model named.)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from ..errors import ArgumentError
from ..memory import available_memory
from .shapes import Shape, find_shape

__all__ = ["TYPES", "find_type", "random_model", "tensor_bytes", "usable_in_place"]

TYPES = {name: GGMLType[name.upper()] for name in ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q4_k", "q4_0")}
UNQUANTISED = ("f32", "f16", "bf16")

# Sizes that keep activations near 1: what attention and FFN add to the residual is small beside it, as in a trained
# model, so that the similarity of FFN input and output is high.
_GAIN = {"attn_output": 0.5, "ffn_down": 0.5}
_TILE_ROWS = 257  # prime: neighbouring rows of a matrix and equal matrices of other layers start elsewhere in the tile


class _Tensor(NamedTuple):
    name: str
    rows: int
    row: int  # elements
    type: GGMLType
    size: int  # bytes


@contextlib.contextmanager
def random_model(shape: str | Shape, type_name: str) -> Iterator[str]:
    """Path of a GGUF file in memory (on disk where the system has no memory files) while the block lasts.

    A model loaded from it within the block works after it. Load quantised weights without mmap (`usable_in_place`),
    or the file's memory stays taken.

    Args:
        shape: A `Shape`, or the name of one of `SHAPES`.
        type_name: Type of the matrices, of `TYPES`; vectors are F32.
    Raises:
        ValueError: An unknown shape or type, rows that the type can't divide into blocks, or too little memory.
    """
    tensors = _tensors(find_shape(shape), find_type(type_name))
    _check_memory(sum(tensor.size for tensor in tensors), type_name)
    with _memory_file() as path:
        _write(path, find_shape(shape), tensors)
        yield path


def tensor_bytes(shape: str | Shape, type_name: str) -> dict[str, int]:
    """Name and bytes of each tensor of a `random_model`; the same errors."""
    return {tensor.name: tensor.size for tensor in _tensors(find_shape(shape), find_type(type_name))}


def find_type(type_name: str) -> GGMLType:
    if type_name.lower() not in TYPES:
        raise ArgumentError(f"type {type_name!r} is unknown; known are {', '.join(TYPES)}")
    return TYPES[type_name.lower()]


def _tensors(shape: Shape, type_: GGMLType) -> list[_Tensor]:
    n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    layer = {
        "attn_norm": (1, shape.n_embd),
        "attn_q": (n_q, shape.n_embd),
        "attn_k": (n_kv, shape.n_embd),
        "attn_v": (n_kv, shape.n_embd),
        "attn_output": (shape.n_embd, n_q),
        "ffn_norm": (1, shape.n_embd),
        "ffn_gate": (shape.n_ff, shape.n_embd),
        "ffn_up": (shape.n_ff, shape.n_embd),
        "ffn_down": (shape.n_embd, shape.n_ff),
    }
    if shape.arch == "qwen3":
        layer.update(attn_q_norm=(1, shape.head_dim), attn_k_norm=(1, shape.head_dim))
    matrices = {"token_embd": (shape.n_vocab, shape.n_embd), "output_norm": (1, shape.n_embd)}
    if not shape.tied:
        matrices["output"] = (shape.n_vocab, shape.n_embd)
    for il in range(shape.n_layer):
        matrices.update({f"blk.{il}.{name}": size for name, size in layer.items()})
    return [_tensor(name, rows, row, type_) for name, (rows, row) in matrices.items()]


def _tensor(name: str, rows: int, row: int, type_: GGMLType) -> _Tensor:
    type_ = GGMLType.F32 if name.endswith("_norm") else type_
    block, block_size = gguf.GGML_QUANT_SIZES[type_]
    if row % block:
        raise ValueError(f"type {type_.name.lower()} packs {block} weights; {name} has rows of {row}")
    return _Tensor(f"{name}.weight", rows, row, type_, rows * row // block * block_size)


def _check_memory(size: int, type_name: str) -> None:
    """Linux ends a process that takes more memory than there is, without a word."""
    needed = size if usable_in_place(type_name) else 2 * size
    available = available_memory()
    if needed > available:
        raise ValueError(f"loading it takes {needed / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB are free")


def usable_in_place(type_name: str) -> bool:
    """Weights of this type can stay in the file's memory. llama.cpp repacks the others, which takes a copy."""
    return type_name.lower() in UNQUANTISED


@contextlib.contextmanager
def _memory_file() -> Iterator[str]:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("ffnskip-random-model")
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield os.path.join(folder, "model.gguf")


def _write(path: str, shape: Shape, tensors: list[_Tensor]) -> None:
    writer = gguf.GGUFWriter(path, shape.arch)
    _add_metadata(writer, shape)
    for tensor in tensors:
        dims = (tensor.row,) if tensor.rows == 1 else (tensor.rows, tensor.row)
        writer.add_tensor_info(tensor.name, dims, np.dtype(np.float32), tensor.size, tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with open(path, "ab") as file:
        _pad(file)
        tiles: dict[tuple[GGMLType, int, float], bytes] = {}
        for number, tensor in enumerate(tensors):
            _fill(file, tensor, number, tiles)
            _pad(file)


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_freq_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_tokenizer_model("no_vocab")


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))


def _fill(file: BinaryIO, tensor: _Tensor, number: int, tiles: dict[tuple[GGMLType, int, float], bytes]) -> None:
    if tensor.rows == 1:
        file.write(np.ones(tensor.row, np.float32).tobytes())
        return
    gain = _GAIN.get(tensor.name.split(".")[-2], 1.0)
    scale = 1.0 if tensor.name == "token_embd.weight" else gain / np.sqrt(tensor.row)
    key = (tensor.type, tensor.row, scale)
    if key not in tiles:
        tiles[key] = _random_rows(*key)
    # A matrix is the tile over and over, from a row on that differs from tensor to tensor.
    tile = memoryview(tiles[key])
    position = number * 97 % _TILE_ROWS * (len(tile) // _TILE_ROWS)
    left = tensor.size
    while left:
        piece = tile[position : position + left]
        file.write(piece)
        left -= len(piece)
        position = 0


def _random_rows(type_: GGMLType, row: int, scale: float) -> bytes:
    from ..llama_cpp_internals import libggml  # has a quantiser for every type; gguf has none for q4_k and the like

    data = (np.random.default_rng(row).standard_normal((_TILE_ROWS, row)) * scale).astype(np.float32)
    block, block_size = gguf.GGML_QUANT_SIZES[type_]
    out = ctypes.create_string_buffer(data.size // block * block_size)
    quantize = libggml.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    quantize(int(type_), data.ctypes.data, out, 0, _TILE_ROWS, row, None)
    return out.raw
