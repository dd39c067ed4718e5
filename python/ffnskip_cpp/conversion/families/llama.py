"""Llama 2, 3 and 3.x, Mistral, Mixtral, SmolLM3, and the many models that share their architecture."""

from __future__ import annotations

from typing import ClassVar

from .base import Family
from .experts import MixtureOfExperts


class Llama(Family):
    arch = "llama"
    rope_kinds = ("default", "linear", "yarn", "llama3")
    pairs_neighbours = True

    @property
    def qkv_bias(self) -> bool:
        return bool(self.config.get("attention_bias"))

    @property
    def output_bias(self) -> bool:
        return self.qkv_bias

    @property
    def ffn_bias(self) -> bool:
        return bool(self.config.get("mlp_bias"))


class Mistral(Family):
    arch = "llama"
    rope_kinds = ("default", "linear", "yarn", "llama3")
    pairs_neighbours = True
    uses_window = True


class Mixtral(MixtureOfExperts):
    arch = "llama"
    rope_kinds = ("default", "linear", "yarn", "llama3")
    pairs_neighbours = True
    uses_window = True
    expert_count_keys = ("num_local_experts",)
    expert_ffn_keys = ("intermediate_size",)
    router = "block_sparse_moe.gate"
    one_expert: ClassVar[dict[str, str]] = {
        "gate": "block_sparse_moe.experts.{}.w1.weight",
        "up": "block_sparse_moe.experts.{}.w3.weight",
        "down": "block_sparse_moe.experts.{}.w2.weight",
    }


class SmolLM3(Family):
    """Llama without rotation in every fourth layer."""

    arch = "smollm3"
    pairs_neighbours = True
    ties_by_default = True

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        self.require("attention_bias", False, "there is none in the attention output")
        self.require("mlp_bias", False, "there is none")
        rotated = self.config.get("no_rope_layers")  # 1 where positions are rotated, 0 where not
        expected = [int((il + 1) % 4 != 0) for il in range(len(rotated or ()))]
        if rotated and rotated != expected:
            raise ValueError(
                f"config.json: no_rope_layers {rotated}; llama.cpp's smollm3 leaves out every fourth layer"
            )
        if not rotated:
            self.require("no_rope_layer_interval", 4, "every fourth layer is not rotated")
