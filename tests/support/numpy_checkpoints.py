"""Tiny Llama checkpoints made with NumPy alone, so that conversion is tested where PyTorch is not installed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 259,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def random_tensors(config: dict[str, Any], prefix: str = "model.") -> dict[str, np.ndarray]:
    """By the names that transformers gives them; the same numbers whatever the prefix."""
    n_embd, n_ff, n_vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    n_kv = n_embd // config["num_attention_heads"] * config["num_key_value_heads"]
    of_layer = {
        "input_layernorm": (n_embd,),
        "post_attention_layernorm": (n_embd,),
        "self_attn.q_proj": (n_embd, n_embd),
        "self_attn.k_proj": (n_kv, n_embd),
        "self_attn.v_proj": (n_kv, n_embd),
        "self_attn.o_proj": (n_embd, n_embd),
        "mlp.gate_proj": (n_ff, n_embd),
        "mlp.up_proj": (n_ff, n_embd),
        "mlp.down_proj": (n_embd, n_ff),
    }
    shapes = {f"{prefix}embed_tokens": (n_vocab, n_embd), f"{prefix}norm": (n_embd,)}
    for il in range(config["num_hidden_layers"]):
        shapes.update({f"{prefix}layers.{il}.{name}": shape for name, shape in of_layer.items()})
    if not config["tie_word_embeddings"]:
        head = "language_model.lm_head" if prefix == "language_model.model." else "lm_head"
        shapes[head] = (n_vocab, n_embd)
    rng = np.random.default_rng(0)
    return {f"{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header, data = {}, b""
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.astype("<f4").tobytes()
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def byte_tokenizer() -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE with a token for each byte, and one for "th": printable bytes stand for
    themselves, the others for the characters from U+0100 on, as GPT-2 has it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 257 + i, "content": text, **special} for i, text in enumerate(("<|begin|>", "<|stop|>"))
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {**{letters[byte]: byte for byte in range(256)}, "th": 256},
            "merges": ["t h"],
        },
    }


def write_checkpoint(path: Path, tensors: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    """A directory as save_pretrained leaves it; `config` changes CONFIG, None taking a key out."""
    path.mkdir()
    config = {key: value for key, value in {**CONFIG, **config}.items() if value is not None}
    write_safetensors(path / "model.safetensors", random_tensors(config) if tensors is None else tensors)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|begin|>", "eos_token": "<|stop|>"}))
    return path
