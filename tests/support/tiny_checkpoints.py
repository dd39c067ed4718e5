"""Tiny random checkpoints made by transformers, and how far the results are apart.

model = random_model("LlamaForCausalLM", {"hidden_size": 64, ...})
path = convert(save_checkpoint(tmp_path / "hf", model, tokenizer), tmp_path / "m.gguf", "f32")
assert relative_logit_error(model, path) < LOGIT_TOLERANCE
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "convert_hf_to_gguf.py"

# Largest difference of logits over largest logit. Both sides compute in F32; what is left is the order of summation,
# and for gelu llama.cpp's table of it in F16.
LOGIT_TOLERANCE = 1e-3


def random_model(architecture: str, options: dict[str, Any], seed: int = 0) -> Any:
    """A transformers model whose every parameter is random, biases and norms too.

    `options` are those of its configuration; parameters of vectors that normalise lie around what leaves a value as
    it is, all others around 0.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # at this size threads only wait for each other
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**options)
    model = model_class._from_config(config, attn_implementation="eager").eval()
    neutral = 0.0 if architecture.startswith("Gemma") else 1.0  # Gemma adds 1 itself
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            if is_norm_weight(name):
                parameter.add_(neutral)
    return model


def is_norm_weight(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    return kind == "weight" and ("norm" in module or module.rpartition(".")[2].startswith("ln_"))


def save_checkpoint(path: Path, model: Any, tokenizer: Any, **options: Any) -> Path:
    """`options` are those of save_pretrained."""
    model.save_pretrained(path, **options)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|begin|>", "eos_token": "<|stop|>"}))
    return path


def relative_logit_error(model: Any, path: Path, n_tokens: int = 200, **options: Any) -> float:
    """Largest difference between the logits of transformers and llama.cpp on random tokens, over the largest logit."""
    import torch

    tokens = random_tokens(n_tokens, vocab_size_of(model))
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].float().numpy()
    f32_cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    options = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **f32_cache, **options}
    llama = llama_cpp.Llama(str(path), logits_all=True, **options)
    llama.eval(tokens)
    return float(np.abs(llama.scores[:n_tokens] - expected).max() / np.abs(expected).max())


def vocab_size_of(model: Any) -> int:
    return model.config.get_text_config().vocab_size


def random_tokens(n: int, n_vocab: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, n_vocab, n).tolist()
