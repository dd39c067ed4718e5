"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: q, k, v in one matrix, gate and up in another."""

from __future__ import annotations

from ..plan import Planned
from .base import Family


class Phi3(Family):
    arch = "phi3"
    rope_kinds = ("default", "longrope")
    rotated_share = 1.0
    head_dim_is_free = False
    uses_window = True

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        self.require("attention_bias", False, "there is none")

    def attention(self, to: str, of: str) -> list[Planned]:
        n_q, n_kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        return [
            *self.linear(to + "attn_qkv", of + "self_attn.qkv_proj", n_q + 2 * n_kv, self.n_embd),
            *self.linear(to + "attn_output", of + "self_attn.o_proj", self.n_embd, n_q),
        ]

    def ffn(self, to: str, of: str) -> list[Planned]:
        return [
            *self.linear(to + "ffn_up", of + "mlp.gate_up_proj", 2 * self.n_ff, self.n_embd),
            *self.linear(to + "ffn_down", of + "mlp.down_proj", self.n_embd, self.n_ff),
        ]
