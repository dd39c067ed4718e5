"""Families of models: one class per Hugging Face architecture on the shared base in `base`."""

from __future__ import annotations

import re

from ..settings import Json
from .base import Family
from .cohere import Cohere
from .falcon import Falcon
from .gemma import Gemma2, Gemma3
from .gpt2 import GPT2
from .gptneox import GPTNeoX
from .granite import Granite
from .llama import Llama, Mistral, Mixtral, SmolLM3
from .olmo2 import Olmo2
from .phi3 import Phi3
from .qwen import Qwen2, Qwen2Moe, Qwen3, Qwen3Moe
from .stablelm import StableLM
from .starcoder2 import StarCoder2

__all__ = ["FAMILIES", "Family", "find_family"]

# architectures[0] of config.json -> its class
FAMILIES: dict[str, type[Family]] = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Mistral,
    "MixtralForCausalLM": Mixtral,
    "Qwen2ForCausalLM": Qwen2,
    "Qwen2MoeForCausalLM": Qwen2Moe,
    "Qwen3ForCausalLM": Qwen3,
    "Qwen3MoeForCausalLM": Qwen3Moe,
    "Gemma2ForCausalLM": Gemma2,
    "Gemma3ForCausalLM": Gemma3,
    "Gemma3ForConditionalGeneration": Gemma3,
    "Phi3ForCausalLM": Phi3,
    "Olmo2ForCausalLM": Olmo2,
    "GraniteForCausalLM": Granite,
    "StableLmForCausalLM": StableLM,
    "FalconForCausalLM": Falcon,
    "GPT2LMHeadModel": GPT2,
    "GPTNeoXForCausalLM": GPTNeoX,
    "Starcoder2ForCausalLM": StarCoder2,
    "CohereForCausalLM": Cohere,
    "SmolLM3ForCausalLM": SmolLM3,
}


def find_family(config: Json) -> Family:
    """The family of `config`, its settings read and checked.

    Raises:
        ValueError: The architecture is unknown (the message lists the known ones), or a setting is missing, of the
            wrong type, or without counterpart in llama.cpp.
    """
    names: list[str] = config.get("architectures") or []
    headless = {without_head(name): family for name, family in FAMILIES.items()}
    known: dict[str, type[Family]] = {**FAMILIES, **headless, "Gemma3TextModel": Gemma3}
    if not isinstance(names, list) or len(names) != 1 or names[0] not in known:
        found = ", ".join(map(str, names)) if names and isinstance(names, list) else repr(names)
        raise ValueError(f"config.json: unsupported architecture {found}; known: {', '.join(FAMILIES)}")
    return known[names[0]](config)


def without_head(name: str) -> str:
    """What transformers calls the same model without its output matrix, which is all of it where that is tied."""
    return re.sub("(ForCausalLM|LMHeadModel|ForConditionalGeneration)$", "Model", name)
