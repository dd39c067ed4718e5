"""GPT-2: learnt positions, LayerNorm, biases everywhere, matrices stored the other way round."""

from __future__ import annotations

import re
from typing import ClassVar

from ..plan import Planned, planned
from ..rope import Rope
from ..settings import whole
from .base import GPTFamily


class GPT2(GPTFamily):
    arch = "gpt2"
    hidden_size_keys = ("n_embd",)
    head_count_keys = ("n_head",)
    layer_count_keys = ("n_layer",)
    context_keys = ("n_positions", "n_ctx")
    norm_eps_keys = ("layer_norm_epsilon",)
    activation_keys = ("activation_function",)
    ties_by_default = True
    prefixes = ("transformer.",)
    names: ClassVar[dict[str, str]] = {
        "token_embd": "wte",
        "position_embd": "wpe",
        "output_norm": "ln_f",
        "layer": "h",
        "attn_norm": "ln_1",
        "ffn_norm": "ln_2",
    }

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        self.require("scale_attn_weights", True, "attention scores are scaled")
        self.require("scale_attn_by_inverse_layer_idx", False, "all layers scale attention alike")
        self.require("add_cross_attention", False, "there is none")

    def read_head_count_kv(self) -> int:
        return self.n_head

    def read_ffn_length(self) -> int:
        return whole(self.config, "n_inner", default=4 * self.n_embd)

    def read_rope(self) -> Rope | None:
        return None

    def passed_over(self, name: str) -> bool:
        mask = re.search(r"\.attn\.(masked_)?bias$", name)  # of attention, not a parameter
        return super().passed_over(name) or mask is not None

    def embeddings(self) -> list[Planned]:
        positions = f"{self.source('position_embd')}.weight"
        return [*super().embeddings(), planned("position_embd.weight", positions, (self.n_ctx, self.n_embd))]

    def attention(self, to: str, of: str) -> list[Planned]:
        n = self.n_embd
        return [
            *self.linear(to + "attn_qkv", of + "attn.c_attn", 3 * n, n, bias=True, transposed=True),
            *self.linear(to + "attn_output", of + "attn.c_proj", n, n, bias=True, transposed=True),
        ]

    def ffn(self, to: str, of: str) -> list[Planned]:
        return [
            *self.linear(to + "ffn_up", of + "mlp.c_fc", self.n_ff, self.n_embd, bias=True, transposed=True),
            *self.linear(to + "ffn_down", of + "mlp.c_proj", self.n_embd, self.n_ff, bias=True, transposed=True),
        ]
