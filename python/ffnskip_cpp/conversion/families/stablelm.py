"""StableLM 3B and StableLM 2: LayerNorm, a quarter of each head rotated, and in the 12B parallel residuals."""

from __future__ import annotations

from ..plan import Planned, planned
from .base import Family


class StableLM(Family):
    arch = "stablelm"
    norm_eps_keys = ("layer_norm_eps", "norm_eps")
    rotated_share = 0.25
    head_dim_is_free = False
    needs_output = True
    layer_norm = True
    norm_bias = True

    @property
    def qkv_bias(self) -> bool:
        return bool(self.config.get("use_qkv_bias"))

    def norms(self, to: str, of: str) -> list[Planned]:
        plan = self.norm(to + "attn_norm", of + self.names["attn_norm"])
        if not self.config.get("use_parallel_residual"):  # then both blocks read the same norm
            plan += self.norm(to + "ffn_norm", of + self.names["ffn_norm"])
        if self.config.get("qk_layernorm"):
            plan += self.head_norms(to + "attn_q_norm", of + "self_attn.q_layernorm", self.n_head)
            plan += self.head_norms(to + "attn_k_norm", of + "self_attn.k_layernorm", self.n_head_kv)
        return plan

    def head_norms(self, to: str, of: str, n_head: int) -> list[Planned]:
        """A norm without bias for each head, stored one by one."""
        sources = [f"{of}.norms.{i}.weight" for i in range(n_head)]
        return [planned(f"{to}.weight", sources, (n_head, self.head_dim), (self.head_dim,))]
