"""GPT-NeoX and Pythia: LayerNorm and biases everywhere, parallel blocks, a quarter of each head rotated."""

from __future__ import annotations

from typing import ClassVar

import gguf

from ..plan import Planned, ungrouped_qkv
from .base import Family, GPTFamily


class GPTNeoX(GPTFamily):
    arch = "gptneox"
    norm_eps_keys = ("layer_norm_eps",)
    rotated_share = 0.25
    needs_output = True
    prefixes = ("gpt_neox.",)
    names: ClassVar[dict[str, str]] = {
        **Family.names,
        "token_embd": "embed_in",
        "output_norm": "final_layer_norm",
    }
    output_name = "embed_out"

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        self.require("attention_bias", True, "attention has biases")

    def read_head_count_kv(self) -> int:
        return self.n_head

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_parallel_residual(bool(self.config.get("use_parallel_residual", True)))

    def passed_over(self, name: str) -> bool:
        return super().passed_over(name) or name.endswith((".attention.bias", ".attention.masked_bias"))  # the mask

    def attention(self, to: str, of: str) -> list[Planned]:
        n, order = self.n_embd, ungrouped_qkv(self.n_head, self.n_head, self.head_dim)
        return [
            *self.linear(to + "attn_qkv", of + "attention.query_key_value", 3 * n, n, order, bias=True),
            *self.linear(to + "attn_output", of + "attention.dense", n, n, bias=True),
        ]

    def ffn(self, to: str, of: str) -> list[Planned]:
        return [
            *self.linear(to + "ffn_up", of + "mlp.dense_h_to_4h", self.n_ff, self.n_embd, bias=True),
            *self.linear(to + "ffn_down", of + "mlp.dense_4h_to_h", self.n_embd, self.n_ff, bias=True),
        ]
