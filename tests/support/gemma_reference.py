"""Gemma 2 and Gemma 3 in plain NumPy: norms before and after each block, and what else they have that LLaMA has not.

    from support.gemma_reference import ReferenceGemma
    logits, _ = ReferenceGemma("model.gguf").evaluate(tokens)

As support/reference.py, with llama.cpp's CPU arithmetic: gelu is looked up in a table of F16 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gguf
import numpy as np

from support.reference import Layer, ReferenceLlama, rms_norm, to_f16

# Of so many layers, all but the last have a sliding window. The architecture's own.
LAYERS_PER_WINDOW_PATTERN = {"gemma2": 2, "gemma3": 6}
WINDOWED_FREQUENCY_BASE = {"gemma3": 10000.0}  # and gemma2 as in other layers


def gelu(x: np.ndarray) -> np.ndarray:
    rounded = to_f16(x)
    inner = np.sqrt(2 / np.pi) * rounded * (1 + 0.044715 * rounded * rounded)
    table = to_f16(0.5 * rounded * (1 + np.tanh(inner)))
    return np.where(x <= -10, 0, np.where(x >= 10, x, table)).astype(x.dtype)


def rope_halves(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Rotates i and i + n_rot / 2: x (n_tokens, n_head, head_dim), angles (n_tokens, n_rot / 2); n_rot is head_dim."""
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def capped(x: np.ndarray, cap: float | None) -> np.ndarray:
    return x if cap is None else cap * np.tanh(x / cap)


@dataclass(frozen=True)
class GemmaLayer(Layer):
    post_attention_norm: np.ndarray
    post_ffw_norm: np.ndarray
    attn_q_norm: np.ndarray | None = None  # of each head; Gemma 3
    attn_k_norm: np.ndarray | None = None


class ReferenceGemma(ReferenceLlama):
    """A text that is longer than the sliding window is refused."""

    ARCHITECTURES = ("gemma2", "gemma3")
    LAYER = GemmaLayer

    def _read_shape(self, reader: gguf.GGUFReader) -> None:
        super()._read_shape(reader)
        arch = reader.get_field("general.architecture").contents()

        def value(key):
            field = reader.get_field(f"{arch}.{key}")
            return None if field is None else field.contents()

        self._attention_cap, self._output_cap = value("attn_logit_softcapping"), value("final_logit_softcapping")
        self.n_ctx_train = min(self.n_ctx_train, value("attention.sliding_window"))
        base = WINDOWED_FREQUENCY_BASE.get(arch)
        windowed = self._rope_frequency
        if base is not None:
            windowed = base ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        pattern = LAYERS_PER_WINDOW_PATTERN[arch]
        self._frequencies = [
            self._rope_frequency if il % pattern == pattern - 1 else windowed for il in range(self.n_layer)
        ]

    def _embeddings(self, tokens: Sequence[int]) -> np.ndarray:
        return super()._embeddings(tokens) * self.dtype.type(np.float32(np.sqrt(self.n_embd)))

    def _query(self, il: int, q: np.ndarray, position: np.ndarray) -> np.ndarray:
        q = self._rotated(il, q, self.layers[il].attn_q_norm, position)
        return q * self.dtype.type(np.float32(1 / np.sqrt(self.head_dim)))

    def _key(self, il: int, k: np.ndarray, position: np.ndarray) -> np.ndarray:
        return self._rotated(il, k, self.layers[il].attn_k_norm, position)

    def _rotated(self, il: int, x: np.ndarray, norm: np.ndarray | None, position: np.ndarray) -> np.ndarray:
        x = x if norm is None else rms_norm(x, norm, self.eps)
        return rope_halves(x, self._angles(self._frequencies[il], position))

    def _scores(self, products: np.ndarray) -> np.ndarray:
        return capped(products, self._attention_cap)

    def _attention(self, il: int, x: np.ndarray) -> np.ndarray:
        return rms_norm(super()._attention(il, x), self.layers[il].post_attention_norm, self.eps)

    def _feed_forward(self, il: int, h: np.ndarray) -> np.ndarray:
        layer = self.layers[il]
        x = self._input(il, "up", rms_norm(h, layer.ffn_norm, self.eps))
        z = self._input(il, "down", gelu(layer.ffn_gate(x)) * layer.ffn_up(x))
        return rms_norm(layer.ffn_down(z), layer.post_ffw_norm, self.eps)

    def _logits(self, x: np.ndarray) -> np.ndarray:
        return capped(super()._logits(x), self._output_cap)
