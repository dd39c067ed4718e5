"""Command-R and Command-R+: LayerNorm without bias, attention and FFN in parallel, scaled logits."""

from __future__ import annotations

import gguf

from ..plan import Planned, planned
from ..settings import Json, number
from .base import Family

NORMED_FROM = 64  # layers: llama.cpp expects norms of q and k from there on


class Cohere(Family):
    """transformers rotates neighbours here, as llama.cpp does."""

    arch = "command-r"
    context_keys = ("model_max_length", "max_position_embeddings")  # the latter is too small in the first checkpoints
    norm_eps_keys = ("layer_norm_eps",)
    head_dim_is_free = False
    ties_by_default = True
    layer_norm = True

    def __init__(self, config: Json) -> None:
        super().__init__(config)
        self.normed = bool(self.config.get("use_qk_norm"))
        if not self.tied:
            raise ValueError("config.json: tie_word_embeddings is false; llama.cpp's command-r has no output matrix")
        if self.normed != (self.n_layer >= NORMED_FROM):
            raise ValueError(
                f"config.json: use_qk_norm is {str(self.normed).lower()} with {self.n_layer} layers; llama.cpp's "
                f"command-r has norms of q and k from {NORMED_FROM} layers on"
            )

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        self.require("attention_bias", False, "there is none in the attention output")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_logit_scale(number(self.config, "logit_scale", default=0.0625))

    def norms(self, to: str, of: str) -> list[Planned]:
        plan = self.norm(to + "attn_norm", of + self.names["attn_norm"])
        if self.normed:
            for part, n_head in (("q", self.n_head), ("k", self.n_head_kv)):
                source = f"{of}self_attn.{part}_norm.weight"
                plan.append(planned(f"{to}attn_{part}_norm.weight", source, (n_head, self.head_dim)))
        return plan
