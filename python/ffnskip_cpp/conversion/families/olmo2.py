"""OLMo 2: norms after each block instead of before, and over all of q and of k."""

from __future__ import annotations

from typing import ClassVar

from ..plan import Planned
from .base import Family


class Olmo2(Family):
    arch = "olmo2"
    head_dim_is_free = False
    needs_output = True
    names: ClassVar[dict[str, str]] = {
        **Family.names,
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        self.require("attention_bias", False, "there is none")

    def norms(self, to: str, of: str) -> list[Planned]:
        return [
            *self.norm(to + "attn_q_norm", of + "self_attn.q_norm", self.n_head * self.head_dim),
            *self.norm(to + "attn_k_norm", of + "self_attn.k_norm", self.n_head_kv * self.head_dim),
            *self.norm(to + "post_attention_norm", of + self.names["post_attention_norm"]),
            *self.norm(to + "post_ffw_norm", of + self.names["post_ffw_norm"]),
        ]
