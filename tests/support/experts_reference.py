"""Qwen3-MoE in plain NumPy: experts in place of one FFN, and norms of each head's query and key.

    from support.experts_reference import ReferenceExperts
    logits, _ = ReferenceExperts("model.gguf").evaluate(tokens)

As support/reference.py, with llama.cpp's CPU arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from support.gemma_reference import rope_halves
from support.reference import Matrix, ReferenceLlama, rms_norm, silu, softmax


@dataclass(frozen=True)
class ExpertsLayer:
    attn_norm: np.ndarray
    attn_q: Matrix
    attn_k: Matrix
    attn_v: Matrix
    attn_q_norm: np.ndarray
    attn_k_norm: np.ndarray
    attn_output: Matrix
    ffn_norm: np.ndarray
    ffn_gate_inp: Matrix  # the router
    ffn_gate_exps: list[Matrix]
    ffn_up_exps: list[Matrix]
    ffn_down_exps: list[Matrix]


class ReferenceExperts(ReferenceLlama):
    ARCHITECTURES = ("qwen3moe",)
    LAYER = ExpertsLayer

    def _read_shape(self, reader: gguf.GGUFReader) -> None:
        super()._read_shape(reader)
        self.n_used = reader.get_field("qwen3moe.expert_used_count").contents()

    def _matrix(self, tensor: gguf.ReaderTensor) -> Any:
        if len(tensor.shape) == 2:
            return super()._matrix(tensor)
        return [super(ReferenceExperts, self)._matrix(tensor._replace(data=data)) for data in tensor.data]

    def _query(self, il: int, q: np.ndarray, position: np.ndarray) -> np.ndarray:
        return self._rotated(q, self.layers[il].attn_q_norm, position)

    def _key(self, il: int, k: np.ndarray, position: np.ndarray) -> np.ndarray:
        return self._rotated(k, self.layers[il].attn_k_norm, position)

    def _rotated(self, x: np.ndarray, norm: np.ndarray, position: np.ndarray) -> np.ndarray:
        return rope_halves(rms_norm(x, norm, self.eps), self._angles(self._rope_frequency, position))

    def _feed_forward(self, il: int, h: np.ndarray) -> np.ndarray:
        x = rms_norm(h, self.layers[il].ffn_norm, self.eps)
        probabilities = softmax(self.layers[il].ffn_gate_inp(x))
        chosen = np.argsort(-probabilities, axis=-1)[:, : self.n_used]
        out = np.zeros_like(h)
        for row, experts in enumerate(chosen):
            weights = probabilities[row, experts] / probabilities[row, experts].sum()
            for expert, weight in zip(experts, weights):
                out[row] += weight * self._expert(il, expert, x[row : row + 1])[0]
        return out

    def _expert(self, il: int, expert: int, x: np.ndarray) -> np.ndarray:
        layer = self.layers[il]
        x = self._input(il, "up", x, expert)
        z = silu(layer.ffn_gate_exps[expert](x)) * layer.ffn_up_exps[expert](x)
        return layer.ffn_down_exps[expert](self._input(il, "down", z, expert))
