"""Shapes of known models: what decides their speed, whatever the weights are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError

__all__ = ["SHAPES", "Shape", "find_shape"]


@dataclass(frozen=True)
class Shape:
    """What decides the speed of a model: everything but the weights."""

    arch: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    head_dim: int
    n_ctx_train: int
    tied: bool = False  # the output matrix is the embedding
    rope_freq_base: float = 10000.0


LLAMA2: dict[str, Any] = {"n_vocab": 32000, "head_dim": 128, "n_ctx_train": 4096}
LLAMA3: dict[str, Any] = {"n_vocab": 128256, "rope_freq_base": 5e5}
QWEN3: dict[str, Any] = {"n_vocab": 151936, "head_dim": 128, "rope_freq_base": 1e6, "n_ctx_train": 40960}

SHAPES = {
    # architecture, layers, embedding, FFN, heads, heads for keys and values
    "llama2-7b": Shape("llama", 32, 4096, 11008, 32, 32, **LLAMA2),
    "llama2-13b": Shape("llama", 40, 5120, 13824, 40, 40, **LLAMA2),
    "llama3-8b": Shape("llama", 32, 4096, 14336, 32, 8, head_dim=128, n_ctx_train=8192, **LLAMA3),
    "llama3.2-1b": Shape("llama", 16, 2048, 8192, 32, 8, head_dim=64, n_ctx_train=131072, tied=True, **LLAMA3),
    "llama3.2-3b": Shape("llama", 28, 3072, 8192, 24, 8, head_dim=128, n_ctx_train=131072, tied=True, **LLAMA3),
    "mistral-7b": Shape("llama", 32, 4096, 14336, 32, 8, n_vocab=32000, head_dim=128, n_ctx_train=32768),
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 3072, 16, 8, tied=True, **QWEN3),
    "qwen3-1.7b": Shape("qwen3", 28, 2048, 6144, 16, 8, tied=True, **QWEN3),
    "qwen3-4b": Shape("qwen3", 36, 2560, 9728, 32, 8, tied=True, **QWEN3),
    "qwen3-8b": Shape("qwen3", 36, 4096, 12288, 32, 8, **QWEN3),
    "tinyllama-1.1b": Shape("llama", 22, 2048, 5632, 32, 4, n_vocab=32000, head_dim=64, n_ctx_train=2048),
}


def find_shape(shape: str | Shape) -> Shape:
    if isinstance(shape, Shape):
        return shape
    if shape not in SHAPES:
        raise ArgumentError(f"shape {shape!r} is unknown; known are {', '.join(SHAPES)}")
    return SHAPES[shape]
