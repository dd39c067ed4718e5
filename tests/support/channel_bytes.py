"""Bytes that weights by channel take and products read, from the tensors of a model's file."""

from __future__ import annotations

from pathlib import Path

import gguf

KINDS = {
    "attn_q": "qkv",
    "attn_k": "qkv",
    "attn_v": "qkv",
    "attn_output": "o",
    "ffn_gate": "up",
    "ffn_up": "up",
    "ffn_down": "down",
    "ffn_gate_exps": "up",
    "ffn_up_exps": "up",
    "ffn_down_exps": "down",
}
# Of model_file(): a model of a type that can't be stored by channel.
NO_CHANNELS = {"kind": "llama", "quantized": "q2_k", "n_embd": 256, "n_ff": 512}
GROUP = 128  # outputs; the last group of a matrix is filled up


def weights_by_kind(path: Path | str) -> dict[str, dict[int, int]]:
    """By the kind of their input, the bytes of a layer's matrices, of all experts, as products read all of them."""
    found: dict[str, dict[int, int]] = {}
    for tensor in gguf.GGUFReader(str(path)).tensors:
        parts = tensor.name.split(".")
        if len(parts) == 4 and parts[3] == "weight" and parts[2] in KINDS:
            n_out = int(tensor.shape[1])
            filled = -(-n_out // GROUP) * GROUP
            layers = found.setdefault(KINDS[parts[2]], {})
            layer = int(parts[1])
            layers[layer] = layers.get(layer, 0) + int(tensor.n_bytes) // n_out * filled
    return found


def ffn_bytes(path: Path | str) -> int:
    """What the products of all FFN blocks read for one token."""
    kinds = weights_by_kind(path)
    return sum(sum(kinds[kind].values()) for kind in ("up", "down"))
