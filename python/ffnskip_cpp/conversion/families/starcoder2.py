"""StarCoder2: LayerNorm, biases everywhere, an FFN without a gate."""

from __future__ import annotations

from ..plan import Planned
from .base import GPTFamily


class StarCoder2(GPTFamily):
    arch = "starcoder2"
    norm_eps_keys = ("norm_epsilon",)
    ties_by_default = True
    uses_window = True

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        self.require("use_bias", True, "all projections have biases")
        self.require("norm_type", "layer_norm", "norms are LayerNorm")
        self.require("mlp_type", "default", "the FFN has no gate")

    @property
    def qkv_bias(self) -> bool:
        return True

    @property
    def output_bias(self) -> bool:
        return True

    def ffn(self, to: str, of: str) -> list[Planned]:
        return [
            *self.linear(to + "ffn_up", of + "mlp.c_fc", self.n_ff, self.n_embd, bias=True),
            *self.linear(to + "ffn_down", of + "mlp.c_proj", self.n_embd, self.n_ff, bias=True),
        ]
