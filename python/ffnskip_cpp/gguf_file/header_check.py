"""Model files that llama.cpp would end the process over, refused before it is asked.

What llama.cpp refuses itself is left to it: its reason is in the error (load_error.py).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection
from typing import Any

from .header import Header, read_headers

__all__ = ["check_header"]

# Of LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS in llama.cpp; above them an assertion fails.
MAX_LAYERS = 512
MAX_EXPERTS = 1024

# general.type of files that are not models, and what is done with them.
NO_MODELS = {
    "adapter": "an adapter; give it beside its model, as lora_path or with --lora",
    "mmproj": "a picture or sound encoder; give the text model that it belongs to",
    "imatrix": "an importance matrix; ffnskip quantize takes it with --imatrix",
}


def check_header(path: str | os.PathLike[str], *, also: Collection[str] = ()) -> None:
    """Whether the file can be given to llama.cpp.

    Args:
        path: The model; the first part, if it is split.
        also: What is taken besides models, by its general.type.
    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no model, damaged, lacks a part, or has values in its metadata that llama.cpp aborts on.
    """
    header = read_headers(path)[0]
    kind = header.metadata.get("general.type")
    if kind in NO_MODELS and kind not in also:
        raise ValueError(f"{header.path}: not a model but {NO_MODELS[kind]}")
    if header.architecture == "ffnskip":
        raise ValueError(f"{header.path}: not a model but a skip profile; give it as skip= or with --profile")
    _check_vocabulary(header)
    _check_integer(header, "block_count", 1, MAX_LAYERS, "layers")
    n_expert = _check_integer(header, "expert_count", 0, MAX_EXPERTS, "experts")
    if n_expert is not None:
        least = min(n_expert, 1)
        _check_integer(header, "expert_used_count", least, n_expert, f"experts per token, of {n_expert}")
    if (head := _head_length(header)) is not None:
        n_rot = _check_integer(header, "rope.dimension_count", 0, head, f"dimensions of a head, of {head}")
        if n_rot is not None and n_rot % 2:
            raise _bad(header, "rope.dimension_count", n_rot, "an even number")
    for key in ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"):
        value = header.of_architecture(key, 0.0)
        if not isinstance(value, float) or not 0 <= value < math.inf:
            raise _bad(header, key, value, "a number, 0 or more")


def _check_vocabulary(header: Header) -> None:
    key = "tokenizer.ggml.tokens"
    tokens = next((entry.strings() for entry in header.entries if entry.key == key), [])
    named = [token for token in tokens if token]  # llama.cpp gives those without a text one
    if len(set(named)) < len(named):
        twice = next(token for token, n in Counter(named).items() if n > 1)
        raise ValueError(f"{header.path}: {key} has {twice.decode(errors='replace')!r} twice; llama.cpp takes it once")


def _head_length(header: Header) -> int | None:
    """Of a key; None where it differs from layer to layer, or nothing is said."""
    n_embd, n_head = header.of_architecture("embedding_length"), header.of_architecture("attention.head_count")
    known = type(n_embd) is int and type(n_head) is int and n_head > 0
    length = header.of_architecture("attention.key_length", n_embd // n_head if known else None)
    return length if type(length) is int else None


def _check_integer(header: Header, key: str, least: int, most: int, of_what: str) -> int | None:
    value = header.of_architecture(key)
    if value is not None and (type(value) is not int or not least <= value <= most):
        raise _bad(header, key, value, f"{least} to {most} {of_what}")
    return value


def _bad(header: Header, key: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{header.path}: {header.architecture}.{key} is {value!r}; llama.cpp takes {expected}")
