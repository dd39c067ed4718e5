"""Qwen 2 and 2.5, Qwen 3, and their mixtures of experts."""

from __future__ import annotations

import gguf

from ..plan import Planned, planned
from ..settings import Json, whole
from .base import Family
from .experts import MixtureOfExperts


class Qwen2(Family):
    """q, k and v have biases."""

    arch = "qwen2"
    head_dim_is_free = False

    @property
    def qkv_bias(self) -> bool:
        return True


class NormedHeads(Family):
    """q and k of each head have a norm before they are rotated."""

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.config.get("attention_bias"):
            raise ValueError(
                f"config.json: attention_bias is true; llama.cpp's {self.arch} has no bias in its attention output"
            )

    def norms(self, to: str, of: str) -> list[Planned]:
        heads = [
            *self.norm(to + "attn_q_norm", of + "self_attn.q_norm", self.head_dim),
            *self.norm(to + "attn_k_norm", of + "self_attn.k_norm", self.head_dim),
        ]
        return [*super().norms(to, of), *heads]


class Qwen3(NormedHeads):
    arch = "qwen3"


class Qwen2Moe(MixtureOfExperts):
    """Every layer also has a shared expert, behind a gate of its own."""

    arch = "qwen2moe"
    head_dim_is_free = False
    needs_output = True

    def __init__(self, config: Json) -> None:
        super().__init__(config)
        self.n_ff_shared = whole(self.config, "shared_expert_intermediate_size")
        self.require("norm_topk_prob", False, "the weights of the chosen experts are not normalised")

    @property
    def qkv_bias(self) -> bool:
        return bool(self.config.get("qkv_bias", True))

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_expert_shared_feed_forward_length(self.n_ff_shared)

    def ffn(self, to: str, of: str) -> list[Planned]:
        n_ff, n_embd, shared = self.n_ff_shared, self.n_embd, of + "mlp.shared_expert"
        return [
            *super().ffn(to, of),
            planned(to + "ffn_gate_inp_shexp.weight", f"{shared}_gate.weight", (n_embd,), (1, n_embd)),
            *self.linear(to + "ffn_gate_shexp", shared + ".gate_proj", n_ff, n_embd),
            *self.linear(to + "ffn_up_shexp", shared + ".up_proj", n_ff, n_embd),
            *self.linear(to + "ffn_down_shexp", shared + ".down_proj", n_embd, n_ff),
        ]


class Qwen3Moe(NormedHeads, MixtureOfExperts):
    arch = "qwen3moe"

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if not self.config.get("norm_topk_prob", False):
            raise ValueError(
                "config.json: norm_topk_prob is false; llama.cpp's qwen3moe normalises the weights of chosen experts"
            )
