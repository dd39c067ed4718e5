"""Granite 3: Llama with four scales, on the embeddings, attention scores, residuals and logits."""

from __future__ import annotations

import gguf

from ..settings import number
from .llama import Llama

# key of the GGUF -> setting of config.json
SCALES = {
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


class Granite(Llama):
    arch = "granite"

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        for key, setting in SCALES.items():
            writer.add_float32(f"{self.arch}.{key}", number(self.config, setting, default=1.0))
