"""Falcon 7B, 40B and 11B: attention and FFN in parallel, one fused projection to q, k and v."""

from __future__ import annotations

from typing import Any, ClassVar

from ..plan import Planned, ungrouped_qkv
from ..settings import whole
from .base import GPTFamily


class Falcon(GPTFamily):
    """7B has one norm for both blocks and one key-value head; 40B a norm for each and groups of heads."""

    arch = "falcon"
    head_count_keys = ("num_attention_heads", "n_head")
    layer_count_keys = ("num_hidden_layers", "n_layer")
    norm_eps_keys = ("layer_norm_epsilon",)
    activation_keys = ("activation",)
    ties_by_default = True
    prefixes = ("transformer.",)
    defaults: ClassVar[dict[str, Any]] = {"max_position_embeddings": 2048}
    names: ClassVar[dict[str, str]] = {"token_embd": "word_embeddings", "output_norm": "ln_f", "layer": "h"}

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        self.require("alibi", False, "positions are rotated")
        self.require("bias", False, "there are none in projections")
        if not self.grouped:
            self.require("parallel_attn", True, "attention and FFN are parallel")

    @property
    def grouped(self) -> bool:
        return bool(self.config.get("new_decoder_architecture"))

    def read_head_count_kv(self) -> int:
        if not self.grouped:
            return 1 if self.config.get("multi_query", True) else self.n_head
        return self.checked_head_count_kv(whole(self.config, "num_kv_heads", "n_head_kv", default=self.n_head))

    def read_ffn_length(self) -> int:
        return whole(self.config, "ffn_hidden_size", default=4 * self.n_embd)

    def norms(self, to: str, of: str) -> list[Planned]:
        if self.grouped and self.config.get("num_ln_in_parallel_attn", 2) == 2:
            return [*self.norm(to + "attn_norm", of + "ln_mlp"), *self.norm(to + "attn_norm_2", of + "ln_attn")]
        return self.norm(to + "attn_norm", of + "input_layernorm")

    def attention(self, to: str, of: str) -> list[Planned]:
        n_qkv = (self.n_head + 2 * self.n_head_kv) * self.head_dim
        order = ungrouped_qkv(self.n_head, self.n_head_kv, self.head_dim)
        return [
            *self.linear(to + "attn_qkv", of + "self_attention.query_key_value", n_qkv, self.n_embd, order),
            *self.linear(to + "attn_output", of + "self_attention.dense", self.n_embd, self.n_embd),
        ]

    def ffn(self, to: str, of: str) -> list[Planned]:
        return [
            *self.linear(to + "ffn_up", of + "mlp.dense_h_to_4h", self.n_ff, self.n_embd),
            *self.linear(to + "ffn_down", of + "mlp.dense_4h_to_h", self.n_embd, self.n_ff),
        ]
