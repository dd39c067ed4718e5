"""Gemma 2 and 3: norms before and after each block, alternating windows of attention, scaled embeddings."""

from __future__ import annotations

import math
from typing import ClassVar

import gguf

from ..plan import Planned
from ..rope import Rope
from ..settings import Json, number, whole
from .base import GELU, Family
from .qwen import NormedHeads

SLIDING = "sliding_attention"


class Gemma(Family):
    """What both have in common. llama.cpp multiplies the embeddings by sqrt(n_embd) itself."""

    rope_kinds = ("default", "linear")
    activations = tuple(kind for kind in GELU if kind != "gelu")  # exact in config.json, an approximation in llama.cpp
    activation_keys = ("hidden_activation", "hidden_act")
    norm_shift = 1.0
    ties_by_default = True
    names: ClassVar[dict[str, str]] = {
        **Family.names,
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    window_period: ClassVar[int]  # every so many layers, one attends to everything
    scaled_by_width_at: ClassVar[int]  # n_layer of the one model whose queries are scaled by n_embd / n_head

    def __init__(self, config: Json) -> None:
        super().__init__(config)
        self.n_window = whole(self.config, "sliding_window")
        self.sliding = self.read_layer_types()
        self.refuse_other_scale()

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        self.require("attention_bias", False, "there is none")
        if self.config.get("use_bidirectional_attention"):
            raise ValueError("config.json: use_bidirectional_attention is true; this is no model that generates text")

    def read_layer_types(self) -> list[bool]:
        """Per layer, whether it attends to a window only."""
        period = self.config.get("_sliding_window_pattern") or self.config.get("sliding_window_pattern")
        period = self.window_period if period is None else period
        types = self.config.get("layer_types") or [
            SLIDING if (il + 1) % period else "full_attention" for il in range(self.n_layer)
        ]
        if len(types) != self.n_layer:
            raise ValueError(f"config.json: layer_types has {len(types)} entries for {self.n_layer} layers")
        return [kind == SLIDING for kind in types]

    def refuse_other_scale(self) -> None:
        """llama.cpp scales queries by the head's width, whatever query_pre_attn_scalar says; with one exception."""
        scale = number(self.config, "query_pre_attn_scalar", default=256)
        expected = self.n_embd // self.n_head if self.n_layer == self.scaled_by_width_at else self.head_dim
        if not math.isclose(scale, expected):
            raise ValueError(
                f"config.json: query_pre_attn_scalar {scale:g}; llama.cpp's {self.arch} with {self.n_layer} layers "
                f"scales by {expected}"
            )

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_sliding_window(self.n_window)
        writer.add_array(f"{self.arch}.attention.sliding_window_pattern", self.sliding)

    def norms(self, to: str, of: str) -> list[Planned]:
        after = ("post_attention_norm", "post_ffw_norm")
        return [
            *super().norms(to, of),
            *(entry for name in after for entry in self.norm(to + name, of + self.names[name])),
        ]


class Gemma2(Gemma):
    """Attention scores and logits are squeezed by tanh."""

    arch = "gemma2"
    window_period = 2
    scaled_by_width_at = 46
    defaults: ClassVar[Json] = {"head_dim": 256, "sliding_window": 4096}

    def __init__(self, config: Json) -> None:
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if key in config and config[key] is None:
                raise ValueError(f"config.json: {key} is null; llama.cpp's gemma2 always applies it")
        super().__init__(config)
        if not self.tied:
            raise ValueError("config.json: tie_word_embeddings is false; llama.cpp's gemma2 has no output matrix")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_attn_logit_softcapping(number(self.config, "attn_logit_softcapping", default=50.0))
        writer.add_final_logit_softcapping(number(self.config, "final_logit_softcapping", default=30.0))


class Gemma3(Gemma, NormedHeads):
    """Norms of q and k; layers with a window rotate by another base. Of a model that also sees, the text part."""

    arch = "gemma3"
    window_period = 6
    scaled_by_width_at = 62
    defaults: ClassVar[Json] = {
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "rope_theta": 1e6,
    }
    prefixes = ("model.", "model.language_model.", "language_model.model.")
    vision: ClassVar[tuple[str, ...]] = ("vision_tower.", "multi_modal_projector.")

    def __init__(self, config: Json) -> None:
        self.sees = "text_config" in config
        tied = config.get("tie_word_embeddings")
        super().__init__({"tie_word_embeddings": tied, **config["text_config"]} if self.sees else config)

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.config.get("attn_logit_softcapping"):
            raise ValueError("config.json: attn_logit_softcapping is set; llama.cpp's gemma3 does not apply it")

    def read_rope(self) -> Rope:
        by_type = self.config.get("rope_parameters") or {}
        if "full_attention" not in by_type:
            self.window_theta = number(self.config, "rope_local_base_freq", default=10000.0)
            return self.rope_of(self.config)
        window = self.rope_of({"rope_parameters": {"rope_theta": 10000.0, **by_type.get(SLIDING, {})}})
        if window.kind != "default":
            raise ValueError(
                f"config.json: rope scaling {window.kind!r} of {SLIDING}; llama.cpp's gemma3 has none there"
            )
        self.window_theta = window.theta
        return self.rope_of({**self.config, "rope_parameters": by_type["full_attention"]})

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_float32(f"{self.arch}.rope.freq_base_swa", self.window_theta)
        if self.config.get("final_logit_softcapping"):
            writer.add_final_logit_softcapping(number(self.config, "final_logit_softcapping"))

    def passed_over(self, name: str) -> bool:
        return super().passed_over(name) or (self.sees and name.removeprefix("model.").startswith(self.vision))
