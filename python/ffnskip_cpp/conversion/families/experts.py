"""Mixtures of experts: a router, and three stacks with the matrices of all experts of a layer.

Checkpoints hold the experts one by one, or, as transformers 5 has them in memory, fused: gate and up of all experts in
one tensor (n_expert, 2 n_ff, n_embd), down in another. Either way a stack is written expert by expert.
"""

from __future__ import annotations

from collections.abc import Container
from typing import ClassVar

import gguf

from ..plan import Planned, part_of_each, planned
from ..settings import Json, whole
from .base import MAX_WIDTH, Family

MAX_EXPERTS = 1024  # of llama.cpp


class MixtureOfExperts(Family):
    """Every layer's FFN is a mixture of experts. Metadata and tensors of the experts; the rest is `Family`'s."""

    expert_count_keys: ClassVar[tuple[str, ...]] = ("num_experts", "num_local_experts")
    expert_ffn_keys: ClassVar[tuple[str, ...]] = ("moe_intermediate_size",)
    router: ClassVar[str] = "mlp.gate"
    one_expert: ClassVar[dict[str, str]] = {  # llama.cpp's part -> matrix of expert {}
        "gate": "mlp.experts.{}.gate_proj.weight",
        "up": "mlp.experts.{}.up_proj.weight",
        "down": "mlp.experts.{}.down_proj.weight",
    }
    fused_router: ClassVar[str] = "mlp.gate"
    fused_gate_up: ClassVar[str] = "mlp.experts.gate_up_proj"
    fused_down: ClassVar[str] = "mlp.experts.down_proj"

    def __init__(self, config: Json) -> None:
        super().__init__(config)
        self.n_expert = whole(self.config, *self.expert_count_keys, most=MAX_EXPERTS)
        self.n_expert_used = whole(self.config, "num_experts_per_tok")
        self.n_ff_expert = whole(self.config, *self.expert_ffn_keys, most=MAX_WIDTH)
        self.fused = False
        if self.n_expert_used > self.n_expert:
            raise ValueError(f"config.json: {self.n_expert_used} experts per token, but there are {self.n_expert}")
        if self.config.get("mlp_only_layers") or self.config.get("decoder_sparse_step", 1) != 1:
            raise ValueError(
                f"config.json: some layers are dense (mlp_only_layers, decoder_sparse_step); llama.cpp's {self.arch} "
                "has experts in all layers"
            )

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_expert_count(self.n_expert)
        writer.add_expert_used_count(self.n_expert_used)
        writer.add_expert_feed_forward_length(self.n_ff_expert)

    def locate(self, available: Container[str]) -> None:
        super().locate(available)
        self.fused = f"{self.source('layer')}.0.{self.fused_down}" in available

    def ffn(self, to: str, of: str) -> list[Planned]:
        router = self.fused_router if self.fused else self.router
        return [
            *self.linear(to + "ffn_gate_inp", of + router, self.n_expert, self.n_embd),
            self.stack(to, of, "gate"),
            self.stack(to, of, "up"),
            self.stack(to, of, "down"),
        ]

    def stack(self, to: str, of: str, part: str) -> Planned:
        n_ff, n_embd = self.n_ff_expert, self.n_embd
        one = (n_embd, n_ff) if part == "down" else (n_ff, n_embd)
        name, shape = f"{to}ffn_{part}_exps.weight", (self.n_expert, *one)
        if not self.fused:
            return planned(name, [of + self.one_expert[part].format(i) for i in range(self.n_expert)], shape, one)
        if part == "down":
            return planned(name, of + self.fused_down, shape)
        first = 0 if part == "gate" else n_ff
        order = part_of_each(2 * n_ff, self.n_expert, first, first + n_ff)
        return planned(name, of + self.fused_gate_up, shape, (self.n_expert, 2 * n_ff, n_embd), order)
