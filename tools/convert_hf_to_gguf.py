#!/usr/bin/env python3
"""Convert a Hugging Face checkpoint directory to one GGUF file for llama.cpp.

    ffnskip convert ./Llama-3.2-1B -o llama-3.2-1b-f16.gguf --outtype f16
    python tools/convert_hf_to_gguf.py ./Llama-3.2-1B -o llama-3.2-1b-q8_0.gguf --outtype q8_0

Reads   config.json, generation_config.json     shape of the model, end tokens
        model.safetensors, or shards + index    F32, F16 or BF16 weights
        tokenizer.json and/or tokenizer.model   byte-level BPE, or SentencePiece BPE
        tokenizer_config.json, *.jinja          special tokens, chat template
Writes  one GGUF v3 file: metadata, tokenizer, then every tensor as F32, F16, BF16 or Q8_0.

Order of work: read the settings, check every tensor name and shape, read the tokenizer; only then write, one tensor
at a time, to a temporary file that is renamed at the end. What llama.cpp could not reproduce is refused by name.
Needs numpy and gguf; neither PyTorch nor transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import math
import os
import re
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from gguf import TokenType
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OUTTYPES", "add_arguments", "convert", "main", "run"]

log = logging.getLogger("ffnskip_cpp.convert")

# name on the command line -> (tensor type, general.file_type)
OUTTYPES = {
    "f32": (GGMLType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (GGMLType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}

Json = dict  # what json.loads gives for an object


def read_json(path: Path, *, required: bool = False) -> Json:
    """The object in `path`; an absent optional file is an empty object."""
    if not path.is_file():
        if required:
            raise FileNotFoundError(f"{path.parent}: no {path.name}; expected a Hugging Face checkpoint directory")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


@contextlib.contextmanager
def expected_form(what: str) -> Iterator[None]:
    """Files come from outside: an object where a list should be, or an absent key, is bad input and no bug."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{what}: not in the expected form ({type(error).__name__}: {error})") from error


# ----------------------------------------------------------------------------------------------------------------------
# config.json -> hyperparameters


@dataclass(frozen=True)
class Family:
    """What tells one supported Hugging Face architecture from another, as llama.cpp sees it."""

    arch: str  # general.architecture
    permute: bool = False  # llama.cpp rotates neighbouring pairs, transformers rotates halves
    rope_factors: bool = False  # llama.cpp reads rope_freqs.weight for this architecture
    qk_norm: bool = False
    always_qkv_bias: bool = False
    bias_allowed: bool = False  # attention_bias and mlp_bias of config.json have tensors in llama.cpp


FAMILIES = {
    "LlamaForCausalLM": Family("llama", permute=True, rope_factors=True, bias_allowed=True),
    "MistralForCausalLM": Family("llama", permute=True, rope_factors=True),
    "Qwen2ForCausalLM": Family("qwen2", always_qkv_bias=True),
    "Qwen3ForCausalLM": Family("qwen3", qk_norm=True),
}


@dataclass(frozen=True)
class Rope:
    """Rotary position settings. `kind` is one of default, linear, yarn, llama3."""

    kind: str
    theta: float
    factor: float = 1.0
    n_ctx_orig: int = 0
    attn_factor: float = 1.0  # yarn: what multiplies llama.cpp's own 1 + 0.1 ln(factor)
    divisors: tuple[float, ...] = ()  # llama3: one per rotated pair


@dataclass(frozen=True)
class Hyper:
    family: Family
    n_vocab: int
    n_ctx: int
    n_embd: int
    n_ff: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    eps: float
    rope: Rope
    tied: bool
    attention_bias: bool
    mlp_bias: bool


def read_hyper(config: Json) -> Hyper:
    """Check config.json and reduce it to what the GGUF needs.

    Raises:
        ValueError: A setting is missing, has the wrong type, or has no counterpart in llama.cpp.
    """
    family = find_family(config)
    refuse_unsupported(config, family)
    n_embd, n_head = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    head_dim = whole(config, "head_dim", default=n_embd // n_head if n_embd % n_head == 0 else None)
    n_head_kv = whole(config, "num_key_value_heads", default=n_head)
    n_ctx = whole(config, "max_position_embeddings")
    if n_head % n_head_kv:
        raise ValueError(f"config.json: {n_head} attention heads are not a multiple of {n_head_kv} key-value heads")
    if head_dim % 2:
        raise ValueError(f"config.json: head_dim {head_dim} is odd; rotary embeddings need an even one")
    if family.arch == "qwen2" and head_dim * n_head != n_embd:
        raise ValueError(
            f"config.json: head_dim {head_dim} x {n_head} heads must be hidden_size {n_embd} for llama.cpp's qwen2"
        )
    return Hyper(
        family=family,
        n_vocab=whole(config, "vocab_size"),
        n_ctx=n_ctx,
        n_embd=n_embd,
        n_ff=whole(config, "intermediate_size"),
        n_layer=whole(config, "num_hidden_layers"),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        eps=number(config, "rms_norm_eps", default=1e-6),
        rope=read_rope(config, family, head_dim, n_ctx),
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)) and family.bias_allowed,
        mlp_bias=bool(config.get("mlp_bias", False)) and family.bias_allowed,
    )


def find_family(config: Json) -> Family:
    names = config.get("architectures") or []
    if not isinstance(names, list) or len(names) != 1 or names[0] not in FAMILIES:
        found = ", ".join(names) if names and isinstance(names, list) else repr(names)
        raise ValueError(f"config.json: unsupported architecture {found}; known: {', '.join(FAMILIES)}")
    return FAMILIES[names[0]]


def refuse_unsupported(config: Json, family: Family) -> None:
    """Settings that change the computation in a way llama.cpp does not follow for this architecture."""
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ValueError(f"config.json: weights are already quantised ({method}); convert the original ones")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"config.json: hidden_act {config['hidden_act']!r}; llama.cpp's {family.arch} computes 'silu'")
    refuse_partial_rotary(config)
    if family.arch == "qwen3" and config.get("attention_bias"):
        raise ValueError("config.json: attention_bias is true; llama.cpp's qwen3 has no bias in its attention output")
    window = config.get("sliding_window")
    windowed = config.get("use_sliding_window", family.arch == "llama")  # Qwen names a window it does not use
    if window and windowed and window < config.get("max_position_embeddings", 0):
        log.warning("sliding_window %s: llama.cpp attends to the whole context; equal up to %s tokens", window, window)


def refuse_partial_rotary(settings: Json) -> None:
    factor = settings.get("partial_rotary_factor", 1.0)
    if factor != 1.0:
        raise ValueError(f"config.json: partial_rotary_factor {factor}; only 1.0 is supported")


def whole(config: Json, key: str, default: int | None = None) -> int:
    """A positive integer setting."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"config.json: {key} is {value!r}; expected a positive integer")
    return value


def number(settings: Json, key: str, default: float | None = None) -> float:
    """A positive finite setting."""
    value = settings.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"config.json: {key} is {value!r}; expected a positive number")
    return float(value)


def read_rope(config: Json, family: Family, head_dim: int, n_ctx: int) -> Rope:
    """Both spellings: `rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling` (before)."""
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if any(isinstance(value, dict) for value in settings.values()):
        raise ValueError(f"config.json: rope settings per layer type ({', '.join(settings)}) are not supported")
    theta = number(settings, "rope_theta", default=number(config, "rope_theta", default=10000.0))
    kind = settings.get("rope_type", settings.get("type")) or "default"
    settings.setdefault("original_max_position_embeddings", config.get("original_max_position_embeddings") or n_ctx)
    refuse_partial_rotary(settings)
    if kind == "default":
        return Rope(kind, theta)
    if kind == "linear":
        return Rope(kind, theta, number(settings, "factor"))
    if kind == "yarn":
        return yarn_rope(settings, theta)
    if kind == "llama3" and family.rope_factors:
        return Rope(kind, theta, divisors=llama3_divisors(settings, theta, head_dim))
    known = "default, linear, yarn" + (", llama3" if family.rope_factors else "")
    raise ValueError(f"config.json: rope scaling type {kind!r} is not supported for {family.arch}; known: {known}")


def yarn_rope(settings: Json, theta: float) -> Rope:
    factor = number(settings, "factor")
    for key, fixed in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True)):
        found = settings.get(key)
        if found is not None and found != fixed:
            raise ValueError(f"config.json: yarn {key} {found}; llama.cpp always uses {fixed} here")
    # transformers multiplies cos and sin by attention_factor; llama.cpp by attn_factor * (1 + 0.1 ln factor)
    built_in = yarn_mscale(factor, 1.0)
    wanted = settings.get("attention_factor")
    if wanted is None and settings.get("mscale") and settings.get("mscale_all_dim"):
        wanted = yarn_mscale(factor, settings["mscale"]) / yarn_mscale(factor, settings["mscale_all_dim"])
    attn_factor = 1.0 if wanted is None else wanted / built_in
    return Rope("yarn", theta, factor, whole(settings, "original_max_position_embeddings"), attn_factor)


def yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def llama3_divisors(settings: Json, theta: float, head_dim: int) -> tuple[float, ...]:
    """By what each frequency is divided: 1 for short wavelengths, `factor` for long ones, a blend between."""
    factor, low, high = (number(settings, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    n_ctx_orig = number(settings, "original_max_position_embeddings")
    divisors = []
    for i in range(0, head_dim, 2):
        turns = n_ctx_orig * theta ** (-i / head_dim) / (2 * math.pi)  # full turns over the original context
        keep = 1.0 if turns > high else 0.0 if turns < low else (turns - low) / (high - low)
        divisors.append(1.0 / (keep + (1.0 - keep) / factor))
    return tuple(divisors)


# ----------------------------------------------------------------------------------------------------------------------
# safetensors: an 8-byte length, a JSON header with (dtype, shape, byte range) per tensor, then the data

BYTES_PER_ELEMENT = {"F32": 4, "F16": 2, "BF16": 2}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class Stored:
    """Where one tensor of the checkpoint lies."""

    path: Path
    offset: int  # bytes from the start of the file
    dtype: str  # F32, F16 or BF16
    shape: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        return self.shape[0]

    @property
    def n_cols(self) -> int:
        return self.shape[1] if len(self.shape) == 2 else 1

    def read_rows(self, first: int, last: int) -> np.ndarray:
        """Rows [first, last) as stored; BF16, which numpy does not have, as its 16 bits."""
        dtype = np.dtype({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[self.dtype])
        count = (last - first) * self.n_cols
        data = np.fromfile(self.path, dtype, count, offset=self.offset + first * self.n_cols * dtype.itemsize)
        if data.size != count:
            raise ValueError(f"{self.path}: ended while being read; was it replaced?")
        return data.reshape(last - first, self.n_cols)


def read_checkpoint(model_dir: Path) -> dict[str, Stored]:
    """Every tensor of the directory by name. Reads headers only."""
    index_path = model_dir / "model.safetensors.index.json"
    single = model_dir / "model.safetensors"
    if index_path.is_file():
        return read_shards(model_dir, read_json(index_path))
    if single.is_file():
        return read_header(single)
    if list(model_dir.glob("*.bin")) or list(model_dir.glob("*.pth")):
        raise ValueError(
            f"{model_dir}: only pickled weights (.bin, .pth), which can run code when opened; save as safetensors first"
        )
    raise FileNotFoundError(f"{model_dir}: no model.safetensors and no {index_path.name}")


def read_shards(model_dir: Path, index: Json) -> dict[str, Stored]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError("model.safetensors.index.json: no weight_map from tensor names to file names")
    tensors: dict[str, Stored] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not (model_dir / shard).is_file():
            raise FileNotFoundError(f"model.safetensors.index.json names {shard!r}, which is not in {model_dir}")
        for name, stored in read_header(model_dir / shard).items():
            if name in tensors:
                raise ValueError(f"{shard}: tensor {name!r} is also in {tensors[name].path.name}")
            tensors[name] = stored
    for name, shard in weight_map.items():
        if name not in tensors:
            raise ValueError(f"{shard}: tensor {name!r} is missing, though the index says it is there")
    return tensors


def read_header(path: Path) -> dict[str, Stored]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"{path}: not a safetensors file, or truncated (header of {length} bytes in {size})")
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            return {name: locate(path, 8 + length, size, name, **entry) for name, entry in entries.items()}
        except (AttributeError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: damaged safetensors header ({error})") from None


def locate(path: Path, data_start: int, size: int, name: str, *, dtype: str, shape: list, data_offsets: list) -> Stored:
    """Check one header entry against the file."""
    if len(data_offsets) != 2 or not 0 <= data_offsets[0] <= data_offsets[1]:
        raise ValueError(f"{path}: tensor {name!r} has the impossible byte range {data_offsets}")
    first, last = data_offsets
    if last > size - data_start:
        raise ValueError(f"{path}: truncated: {name!r} ends at byte {data_start + last}, the file has {size}")
    if dtype in BYTES_PER_ELEMENT and math.prod(shape) * BYTES_PER_ELEMENT[dtype] != last - first:
        raise ValueError(f"{path}: tensor {name!r} of shape {shape} {dtype} cannot take {last - first} bytes")
    return Stored(path, data_start + first, dtype, tuple(shape))


# ----------------------------------------------------------------------------------------------------------------------
# Which tensor goes where


@dataclass(frozen=True)
class Planned:
    """One tensor of the GGUF and the tensor of the checkpoint it comes from."""

    name: str
    source: str
    shape: tuple[int, ...]
    rotary: bool = False  # rows of each head are reordered for llama.cpp's rope


def plan_tensors(h: Hyper) -> list[Planned]:
    """All tensors of the model, in file order."""
    plan = [
        Planned("token_embd.weight", "model.embed_tokens.weight", (h.n_vocab, h.n_embd)),
        Planned("output_norm.weight", "model.norm.weight", (h.n_embd,)),
    ]
    if not h.tied:
        plan.append(Planned("output.weight", "lm_head.weight", (h.n_vocab, h.n_embd)))
    for il in range(h.n_layer):
        plan += plan_layer(h, f"blk.{il}.", f"model.layers.{il}.")
    return plan


def plan_layer(h: Hyper, to: str, of: str) -> list[Planned]:
    n_q, n_kv, rotary = h.n_head * h.head_dim, h.n_head_kv * h.head_dim, h.family.permute
    qkv_bias = h.attention_bias or h.family.always_qkv_bias
    # gguf stem, checkpoint stem, rows, columns, rotary, bias
    matrices = [
        ("attn_q", "self_attn.q_proj", n_q, h.n_embd, rotary, qkv_bias),
        ("attn_k", "self_attn.k_proj", n_kv, h.n_embd, rotary, qkv_bias),
        ("attn_v", "self_attn.v_proj", n_kv, h.n_embd, False, qkv_bias),
        ("attn_output", "self_attn.o_proj", h.n_embd, n_q, False, h.attention_bias),
        ("ffn_gate", "mlp.gate_proj", h.n_ff, h.n_embd, False, h.mlp_bias),
        ("ffn_up", "mlp.up_proj", h.n_ff, h.n_embd, False, h.mlp_bias),
        ("ffn_down", "mlp.down_proj", h.n_embd, h.n_ff, False, h.mlp_bias),
    ]
    norms = [("attn_norm", "input_layernorm", h.n_embd), ("ffn_norm", "post_attention_layernorm", h.n_embd)]
    if h.family.qk_norm:
        norms += [("attn_q_norm", "self_attn.q_norm", h.head_dim), ("attn_k_norm", "self_attn.k_norm", h.head_dim)]
    plan = [Planned(f"{to}{name}.weight", f"{of}{source}.weight", (size,)) for name, source, size in norms]
    for name, source, n_rows, n_cols, turned, bias in matrices:
        plan.append(Planned(f"{to}{name}.weight", f"{of}{source}.weight", (n_rows, n_cols), turned))
        if bias:
            plan.append(Planned(f"{to}{name}.bias", f"{of}{source}.bias", (n_rows,), turned))
    return plan


def check_plan(plan: list[Planned], tensors: dict[str, Stored], h: Hyper) -> None:
    """Every planned tensor is there with its shape and a known type, and nothing else is.

    Raises:
        ValueError: Names the first tensor that is missing, misshapen, of another type, or unknown.
    """
    for entry in plan:
        stored = tensors.get(entry.source)
        if stored is None:
            hint = "; config.json does not say tie_word_embeddings" if entry.source == "lm_head.weight" else ""
            raise ValueError(f"tensor {entry.source!r} is missing{hint}")
        if stored.shape != entry.shape:
            raise ValueError(
                f"tensor {entry.source!r} has shape {list(stored.shape)}; config.json calls for {list(entry.shape)}"
            )
        if stored.dtype not in BYTES_PER_ELEMENT:
            raise ValueError(f"tensor {entry.source!r} is {stored.dtype}; expected {', '.join(BYTES_PER_ELEMENT)}")
    known = {entry.source for entry in plan} | ({"lm_head.weight"} if h.tied else set())
    for name in tensors:
        # old checkpoints store the rotary frequencies, which follow from config.json
        if name not in known and not name.endswith("rotary_emb.inv_freq"):
            raise ValueError(f"tensor {name!r} has no place in this architecture; refusing to leave it out")


# ----------------------------------------------------------------------------------------------------------------------
# Tokenizer


@dataclass
class Vocabulary:
    """The tokenizer.ggml.* part of the file."""

    model: str  # gpt2: byte-level BPE; llama: SentencePiece BPE
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    special: dict[str, int] = field(default_factory=dict)  # bos, eos, eot, eom, unk, pad -> id
    add_bos: bool = False
    add_eos: bool = False
    chat_template: Any = None  # a string, or a list of {"name", "template"}


def read_vocabulary(model_dir: Path, config: Json, n_vocab: int) -> Vocabulary:
    """Read the tokenizer of `model_dir` and pad it to the `n_vocab` rows of the embedding.

    Raises:
        FileNotFoundError: There is no tokenizer.
        ValueError: llama.cpp would give other token ids, or the files contradict each other.
    """
    settings = read_json(model_dir / "tokenizer_config.json")
    tokenizer = read_json(model_dir / "tokenizer.json")
    sentencepiece = model_dir / "tokenizer.model"
    if tokenizer:
        base, added = read_tokenizer_json(tokenizer, sentencepiece)
    elif sentencepiece.is_file():
        base, added = read_sentencepiece_directory(sentencepiece, settings)
    else:
        raise FileNotFoundError(f"{model_dir}: no tokenizer; expected tokenizer.json or tokenizer.model")
    vocab = complete(base, added, n_vocab)
    generation = read_json(model_dir / "generation_config.json")
    vocab.special = special_ids(vocab, settings, config, generation)
    vocab.add_bos, vocab.add_eos = added_around(tokenizer, settings, vocab)
    # Without this key llama.cpp assumes a fixed id, which here may be an ordinary token.
    vocab.special.setdefault("bos", vocab.special["eos"])
    vocab.chat_template = read_chat_template(model_dir, settings)
    return vocab


@dataclass(frozen=True)
class AddedToken:
    text: str
    special: bool
    strips: bool = False


@dataclass
class BaseVocabulary:
    """A tokenizer before added tokens and padding."""

    model: str
    pre: str
    ids: dict[str, int]
    types: dict[int, TokenType] = field(default_factory=dict)  # those that are not NORMAL
    scores: dict[int, float] | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None


def complete(base: BaseVocabulary, added: dict[int, AddedToken], n_vocab: int) -> Vocabulary:
    """Lay the tokens out by id, add the added ones, and name the rows of the embedding that no token has."""
    tokens: list[str | None] = [None] * n_vocab
    types = [TokenType.UNUSED] * n_vocab
    scores = [-10000.0] * n_vocab
    for text, i in base.ids.items():
        if not 0 <= i < n_vocab:
            raise ValueError(f"token {text!r} has id {i}, but the embedding has {n_vocab} rows")
        if tokens[i] is not None:
            raise ValueError(f"tokens {tokens[i]!r} and {text!r} both have id {i}")
        tokens[i], types[i] = text, base.types.get(i, TokenType.NORMAL)
        scores[i] = (base.scores or {}).get(i, 0.0)
    for i, token in sorted(added.items()):
        if not isinstance(i, int) or i < 0:
            raise ValueError(f"added token {token.text!r} has id {i!r}; expected a row of the embedding")
        if i >= n_vocab:
            log.warning(
                "added token %r: id %d is beyond the %d rows of the embedding; left out", token.text, i, n_vocab
            )
            continue
        if token.strips:
            log.warning("added token %r strips the space around it in transformers, not in llama.cpp", token.text)
        tokens[i], types[i], scores[i] = token.text, added_type(token, base.types.get(i)), -1000.0
    named = [f"[PAD{i}]" if text is None else text for i, text in enumerate(tokens)]
    refuse_duplicates(named)
    is_spm = base.scores is not None
    return Vocabulary(
        base.model, base.pre, named, types, scores if is_spm else None, base.merges, base.add_space_prefix
    )


def added_type(token: AddedToken, base_type: TokenType | None) -> TokenType:
    if base_type is TokenType.UNKNOWN:
        return base_type
    # Some tokenizers do not flag their chat and infilling marks; llama.cpp treats the ones it knows as control tokens.
    marked = re.fullmatch(r"<\|.*\|>|<｜.*｜>", token.text, re.DOTALL)
    return TokenType.CONTROL if token.special or marked else TokenType.USER_DEFINED


def refuse_duplicates(tokens: list[str]) -> None:
    """llama.cpp aborts the process when two ids share a text."""
    seen: dict[str, int] = {}
    for i, text in enumerate(tokens):
        if text in seen:
            raise ValueError(f"token {text!r} has two ids, {seen[text]} and {i}")
        seen[text] = i


def added_token(entry: Json) -> AddedToken:
    """One entry of added_tokens or added_tokens_decoder."""
    strips = bool(entry.get("lstrip") or entry.get("rstrip"))
    return AddedToken(entry["content"], bool(entry.get("special")), strips)


def read_tokenizer_json(tokenizer: Json, sentencepiece: Path) -> tuple[BaseVocabulary, dict[int, AddedToken]]:
    model = tokenizer.get("model") or {}
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise ValueError(f"tokenizer.json: model type {model.get('type')!r}; only BPE is supported")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise ValueError(f"tokenizer.json: {key} {model[key]!r} has no counterpart in llama.cpp")
    added = {entry["id"]: added_token(entry) for entry in tokenizer.get("added_tokens") or []}
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    # An added token keeps its id when the vocabulary lists it too, and is never the result of a merge.
    added_texts = {token.text for token in added.values()}
    ids = {text: i for text, i in model["vocab"].items() if text not in added_texts or i not in added}
    if model.get("byte_fallback"):
        return spm_from_json(tokenizer, ids, merges, added_texts, sentencepiece), added
    return bpe_from_json(tokenizer, ids, merges), added


# --- byte-level BPE

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def split(regex: str) -> tuple:
    return ("split", regex, "Isolated", False)


@dataclass(frozen=True)
class PreTokenizer:
    """How one tokenizer.ggml.pre of llama.cpp cuts text into words; `steps` as pre_tokenizer_steps() spells them."""

    name: str
    steps: tuple[tuple, ...]
    ignore_merges: bool = False  # a word that is a token is taken whole


PRE_TOKENIZERS = (
    PreTokenizer("gpt-2", (("bytes", True),)),
    PreTokenizer("smollm", (("digits", True), ("bytes", True))),
    PreTokenizer("llama-bpe", (split(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"), ("bytes", False)), True),
    PreTokenizer("smaug-bpe", (split(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"), ("bytes", False))),
    PreTokenizer("qwen2", (split(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}"), ("bytes", False))),
    # llama.cpp's own expression for tekken tells upper from lower case in ASCII only: few words differ
    PreTokenizer(
        "tekken",
        (
            split(
                rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|"
                r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            ("bytes", False),
        ),
        True,
    ),
)


def bpe_from_json(tokenizer: Json, ids: dict[str, int], merges: list[tuple]) -> BaseVocabulary:
    steps = pre_tokenizer_steps(tokenizer.get("pre_tokenizer"))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    candidates = [pre for pre in PRE_TOKENIZERS if pre.steps == steps]
    candidates.sort(key=lambda pre: pre.ignore_merges != ignore_merges)
    if not candidates or not is_plain_normalizer(tokenizer.get("normalizer")):
        raise unknown_pre_tokenizer(tokenizer)
    if any(len(merge) != 2 or " " in merge[0] + merge[1] for merge in merges):
        raise ValueError("tokenizer.json: a merge is not two pieces without spaces, as byte-level BPE has them")
    pre = candidates[0]
    if pre.ignore_merges != ignore_merges:
        refuse_unreachable(ids, merges, pre.name, ignore_merges)
    return BaseVocabulary("gpt2", pre.name, ids, merges=[" ".join(merge) for merge in merges])


def pre_tokenizer_steps(pre: Json | None) -> tuple[tuple, ...]:
    """The pre_tokenizer of tokenizer.json without what does not change token ids (offsets, spelling)."""
    if pre is None:
        return ()
    kind = pre.get("type")
    if kind == "Sequence":
        return tuple(step for part in pre.get("pretokenizers", []) for step in pre_tokenizer_steps(part))
    if kind == "Split" and "Regex" in pre.get("pattern", {}):
        return (("split", pre["pattern"]["Regex"], pre.get("behavior"), pre.get("invert", False)),)
    if kind == "Digits":
        return (("digits", pre.get("individual_digits", False)),)
    if kind == "ByteLevel" and not pre.get("add_prefix_space", True):
        return (("bytes", pre.get("use_regex", True)),)
    return (("unknown", json.dumps(pre, sort_keys=True)),)


def is_plain_normalizer(normalizer: Json | None) -> bool:
    """None, or NFC, which llama.cpp does not apply: nearly all text is NFC already and not changed by it."""
    if normalizer is None or normalizer.get("type") == "NFC":
        return True
    return normalizer.get("type") == "Sequence" and all(map(is_plain_normalizer, normalizer.get("normalizers", [])))


def unknown_pre_tokenizer(tokenizer: Json) -> ValueError:
    parts = {key: tokenizer.get(key) for key in ("normalizer", "pre_tokenizer")}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    known = ", ".join(pre.name for pre in PRE_TOKENIZERS)
    return ValueError(
        f"tokenizer.json: unknown pre-tokenizer (sha256 of its normalizer and pre_tokenizer {digest[:16]}); "
        f"known: {known}. A guess would give other token ids"
    )


def refuse_unreachable(ids: dict[str, int], merges: list[tuple], pre: str, ignore_merges: bool) -> None:
    """`pre` of llama.cpp does the opposite of ignore_merges: harmless only where merging reaches every token."""
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    for text in ids:
        if len(merge_all(list(text), ranks)) > 1:
            raise ValueError(
                f"tokenizer.json: ignore_merges is {str(ignore_merges).lower()}, the opposite of {pre} in llama.cpp, "
                f"and token {text!r} depends on it"
            )


def merge_all(parts: list[str], ranks: dict[tuple, int]) -> list[str]:
    """Plain BPE on one word: apply the lowest-ranked merge until none is left."""
    while len(parts) > 1:
        rank, at = min((ranks.get(pair, math.inf), i) for i, pair in enumerate(zip(parts, parts[1:])))
        if rank == math.inf:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


# --- SentencePiece BPE

SPACE = "\u2581"  # SentencePiece's visible space
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def spm_from_json(
    tokenizer: Json, ids: dict[str, int], merges: list[tuple], added: set[str], sentencepiece: Path
) -> BaseVocabulary:
    """A SentencePiece BPE model that tokenizer.json spells as merges with byte fallback."""
    prefix = spm_space_prefix(tokenizer)
    types = {i: TokenType.BYTE for text, i in ids.items() if BYTE_PIECE.fullmatch(text)}
    refuse_missing_bytes(ids)
    scores = model_scores(sentencepiece, ids)
    if scores is None:
        scores = merge_scores(ids, merges, added)
    with_added = {**ids, **{entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []}}
    unknown = with_added.get(tokenizer["model"].get("unk_token"))
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    return BaseVocabulary("llama", "default", ids, types, scores, add_space_prefix=prefix)


def spm_space_prefix(tokenizer: Json) -> bool:
    """Whether a space is put before the text. Accepts the spellings of SentencePiece that transformers writes."""
    normalizer, pre = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    if pre is None and steps in ([prepend, replace], [replace]):
        return steps[0] == prepend
    if not steps and pre and pre.get("type") == "Metaspace" and pre.get("replacement") == SPACE:
        scheme = pre.get("prepend_scheme", "always" if pre.get("add_prefix_space", True) else "never")
        if scheme in ("always", "first", "never") and not pre.get("split", True):
            if scheme != "never":
                log.warning(
                    "Metaspace %r: llama.cpp also puts a space before text that starts with one%s",
                    scheme,
                    ", and after each special token" if scheme == "first" else "",
                )
            return scheme != "never"
    raise unknown_pre_tokenizer(tokenizer)


def merge_scores(ids: dict[str, int], merges: list[tuple], added: set[str]) -> dict[int, float]:
    """Scores under which llama.cpp, which ranks a merge by its result, makes the merges of tokenizer.json.

    Possible when all merges with one result are neighbours in rank and every split of a token into two tokens is a
    merge, as in files made from a SentencePiece model. Anything else is refused: ids would differ.
    """
    scores: dict[int, float] = {}
    previous = None
    for left, right in merges:
        text = left + right
        if text != previous and text not in added:
            if ids.get(text) in scores:
                raise ValueError(f"tokenizer.json: merges into {text!r} are scattered; llama.cpp cannot rank them")
            scores[ids[text]] = -float(len(scores) + 1)
        previous = text
    listed = set(merges)
    for text in ids:
        for cut in range(1, len(text)):
            pair = (text[:cut], text[cut:])
            if pair not in listed and pair[0] in ids and pair[1] in ids:
                raise ValueError(f"tokenizer.json: {pair[0]!r} + {pair[1]!r} is no merge, but llama.cpp would merge it")
    return scores


def model_scores(sentencepiece: Path, ids: dict[str, int]) -> dict[int, float] | None:
    """The scores of tokenizer.model, where there is one and it lists the same pieces as tokenizer.json."""
    if not sentencepiece.is_file():
        return None
    pieces = read_sentencepiece(sentencepiece).pieces
    if any(i >= len(pieces) or pieces[i][0] != text for text, i in ids.items()):
        log.warning("tokenizer.model and tokenizer.json list different pieces; using tokenizer.json")
        return None
    return {i: score for i, (_, score, _) in enumerate(pieces)}


def refuse_missing_bytes(ids: dict[str, int]) -> None:
    for byte in range(256):
        if f"<0x{byte:02X}>" not in ids:
            raise ValueError(f"tokenizer: no byte piece <0x{byte:02X}>; llama.cpp needs all 256 for unknown characters")


@dataclass
class SentencePieceModel:
    pieces: list[tuple[str, float, TokenType]]
    trainer: dict[int, Any]  # protobuf field number -> value
    normalizer: dict[int, Any]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """The protobuf message ModelProto: 1 = pieces {1 text, 2 score, 3 type}, 2 = trainer, 3 = normalizer."""
    model = SentencePieceModel([], {}, {})
    try:
        for number_, value in protobuf_fields(path.read_bytes()):
            if number_ == 1:
                piece = dict(protobuf_fields(value))
                score = struct.unpack("<f", piece.get(2, b"\0\0\0\0"))[0]
                model.pieces.append((piece[1].decode("utf-8"), score, TokenType(piece.get(3, TokenType.NORMAL))))
            elif number_ == 2:
                model.trainer = dict(protobuf_fields(value))
            elif number_ == 3:
                model.normalizer = dict(protobuf_fields(value))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error):
        raise ValueError(f"{path}: not a SentencePiece model, or damaged") from None
    if not model.pieces:
        raise ValueError(f"{path}: not a SentencePiece model, or damaged")
    return model


def protobuf_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one message; a value is an int (varint) or bytes."""
    at = 0
    value: Any
    while at < len(data):
        key, at = protobuf_varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = protobuf_varint(data, at)
        else:
            if wire == 2:
                length, at = protobuf_varint(data, at)
            else:
                length = {1: 8, 5: 4}[wire]
            value, at = data[at : at + length], at + length
            if at > len(data):
                raise ValueError("message ends inside a field")
        yield key >> 3, value


def protobuf_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def read_sentencepiece_directory(path: Path, settings: Json) -> tuple[BaseVocabulary, dict[int, AddedToken]]:
    """tokenizer.model alone, as checkpoints without tokenizer.json have it."""
    model = read_sentencepiece(path)
    unigram, bpe = 1, 2
    if model.trainer.get(3, unigram) != bpe:
        raise ValueError(f"{path.name}: a unigram or word model; llama.cpp's 'llama' tokenizer needs SentencePiece BPE")
    if model.normalizer.get(2) or model.normalizer.get(4, 1) or not model.normalizer.get(5, 1):
        raise ValueError(f"{path.name}: normalises text or squeezes spaces, which llama.cpp does not do for this type")
    if model.trainer.get(24):
        raise ValueError(f"{path.name}: treats whitespace as a suffix, which llama.cpp does not do")
    ids: dict[str, int] = {}
    for i, (text, _, _) in enumerate(model.pieces):
        if text in ids:
            raise ValueError(f"{path.name}: piece {text!r} has two ids, {ids[text]} and {i}")
        ids[text] = i
    refuse_missing_bytes(ids)
    base = BaseVocabulary("llama", "default", ids, add_space_prefix=bool(model.normalizer.get(3, 1)))
    base.types = {i: kind for i, (_, _, kind) in enumerate(model.pieces)}
    base.scores = {i: score for i, (_, score, _) in enumerate(model.pieces)}
    return base, added_beside_sentencepiece(path.parent, settings)


def added_beside_sentencepiece(model_dir: Path, settings: Json) -> dict[int, AddedToken]:
    added = {i: AddedToken(text, False) for text, i in read_json(model_dir / "added_tokens.json").items()}
    for i, entry in (settings.get("added_tokens_decoder") or {}).items():
        added[int(i)] = added_token(entry)
    return added


# --- special tokens and chat template

# Marks that end a turn rather than the text, by the names llama.cpp knows.
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
END_OF_MESSAGE = "<|eom_id|>"


def special_ids(vocab: Vocabulary, settings: Json, config: Json, generation: Json) -> dict[str, int]:
    """Ids by role: named in tokenizer_config.json, else numbered in config.json or generation_config.json."""
    ids = {text: i for i, text in enumerate(vocab.tokens)}
    special = {}
    for role in ("bos", "eos", "unk", "pad"):
        named = settings.get(f"{role}_token")
        text = named.get("content") if isinstance(named, dict) else named
        if text in ids:
            special[role] = ids[text]
        elif numbered := numbered_ids(vocab, role, config, generation):
            special[role] = numbered[0]
    if "eos" not in special:
        raise ValueError("tokenizer_config.json: no eos_token, and config.json has no eos_token_id that is special")
    if END_OF_MESSAGE in ids:
        special["eom"] = ids[END_OF_MESSAGE]
    # Generation also ends at a turn's end, and at what else is listed as eos; llama.cpp has room for eot and eom.
    more_ends = [i for i in numbered_ids(vocab, "eos", generation, config) if i != special["eos"]]
    turns = [ids[text] for text in END_OF_TURN if text in ids] + more_ends
    if turns:
        special["eot"] = turns[0]
    for i in more_ends:
        if i != special["eot"]:
            special.setdefault("eom", i)
    return special


def numbered_ids(vocab: Vocabulary, role: str, *configs: Json) -> list[int]:
    """`role`_token_id of each config, a number or a list, as far as they are special tokens.

    config.json often carries the library's default ids, which in this vocabulary can be ordinary tokens.
    """
    values = [config.get(f"{role}_token_id") for config in configs]
    ids = [i for value in values for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]
    ordinary = (TokenType.NORMAL, TokenType.UNUSED, TokenType.BYTE)
    return [i for i in ids if 0 <= i < len(vocab.tokens) and vocab.types[i] not in ordinary]


def added_around(tokenizer: Json, settings: Json, vocab: Vocabulary) -> tuple[bool, bool]:
    """Whether bos is put before and eos after a text.

    As in transformers: the template of tokenizer.json decides; the flags of tokenizer_config.json only without it.
    """
    if not tokenizer:
        return bool(settings.get("add_bos_token", True)), bool(settings.get("add_eos_token", False))
    before, after = template_ends(tokenizer.get("post_processor"))
    for role, found in (("bos", before), ("eos", after)):
        # a template names bos where tokenizer_config.json does not
        if len(found) > 1 or (found and vocab.special.setdefault(role, found[0]) != found[0]):
            texts = [vocab.tokens[i] for i in found]
            raise ValueError(f"tokenizer.json: its template adds {texts}; llama.cpp can only add the {role} token")
    return bool(before), bool(after)


def template_ends(post: Json | None) -> tuple[list[int], list[int]]:
    """Ids that the post-processor adds before and after a single text."""
    before: list[int] = []
    after: list[int] = []
    kind = post["type"] if post else "ByteLevel"
    if kind == "ByteLevel":  # changes offsets only
        return before, after
    if post and kind == "Sequence":
        for part in post["processors"]:
            for end, ids in zip((before, after), template_ends(part)):
                end.extend(ids)
        return before, after
    if not post or kind != "TemplateProcessing":
        raise ValueError(f"tokenizer.json: unknown post-processor {kind!r}; known: ByteLevel, TemplateProcessing")
    end = before
    for item in post["single"]:
        if "Sequence" in item:
            end = after
        else:
            end.extend(post["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    return before, after


def read_chat_template(model_dir: Path, settings: Json) -> Any:
    """chat_template.jinja, with named ones beside it, comes before tokenizer_config.json, as in transformers."""
    file = model_dir / "chat_template.jinja"
    if not file.is_file():
        return settings.get("chat_template")
    template = file.read_text(encoding="utf-8")
    more = sorted((model_dir / "additional_chat_templates").glob("*.jinja"))
    if not more:
        return template
    named = [{"name": path.stem, "template": path.read_text(encoding="utf-8")} for path in more]
    return [{"name": "default", "template": template}, *named]


# ----------------------------------------------------------------------------------------------------------------------
# Writing

F32 = np.dtype(np.float32)
CHUNK_BYTES = 16 << 20  # of F32 values converted at a time


def tensor_type(name: str, shape: tuple[int, ...], wanted: GGMLType) -> GGMLType:
    """Norms and biases stay F32; a row that is no whole number of blocks falls back to F16."""
    if len(shape) == 1 or name.endswith("_norm.weight"):
        return GGMLType.F32
    block_size, _ = gguf.GGML_QUANT_SIZES[wanted]
    return GGMLType.F16 if shape[-1] % block_size else wanted


def tensor_bytes(shape: tuple[int, ...], kind: GGMLType) -> int:
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block_size * block_bytes


def encode(stored: Stored, entry: Planned, kind: GGMLType, head_dim: int) -> np.ndarray:
    """The tensor's bytes in the GGUF. Holds the result and one chunk of the source in memory."""
    out = np.empty((stored.n_rows, tensor_bytes(entry.shape, kind) // stored.n_rows), np.uint8)
    # A chunk is a whole number of heads, so that it can be reordered on its own.
    n_heads = max(1, CHUNK_BYTES // (4 * stored.n_cols * head_dim))
    for first in range(0, stored.n_rows, n_heads * head_dim):
        last = min(first + n_heads * head_dim, stored.n_rows)
        rows = stored.read_rows(first, last)
        if entry.rotary:
            rows = interleave_halves(rows, head_dim)
        values = rows_to_f32(rows, stored.dtype)
        refuse_unrepresentable(values, entry, kind)
        same = kind.name == stored.dtype
        coded = rows if same else gguf.quants.quantize(values, kind)
        out[first:last] = np.ascontiguousarray(coded).view(np.uint8).reshape(last - first, -1)
    return out


def interleave_halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """transformers rotates row i of a head with row i + head_dim/2, llama.cpp's llama rotates row 2i with 2i + 1.

    0 1 2 | 3 4 5  ->  0 3 | 1 4 | 2 5
    """
    halves = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def rows_to_f32(rows: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":  # the upper half of an F32
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32, copy=False)


def refuse_unrepresentable(values: np.ndarray, entry: Planned, kind: GGMLType) -> None:
    peak = max(float(values.max()), -float(values.min()))
    if not math.isfinite(peak):
        raise ValueError(f"tensor {entry.source!r} holds infinities or NaN; the checkpoint is damaged")
    if kind is GGMLType.F16 and peak > float(np.finfo(np.float16).max):
        raise ValueError(f"tensor {entry.source!r} holds {peak:g}, beyond F16; use --outtype bf16 or f32")


def add_metadata(writer: gguf.GGUFWriter, h: Hyper, name: str, n_params: int, file_type: int) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_size_label(gguf.size_label(n_params, n_params, 0, 0))
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(h.n_layer)
    writer.add_context_length(h.n_ctx)
    writer.add_embedding_length(h.n_embd)
    writer.add_feed_forward_length(h.n_ff)
    writer.add_head_count(h.n_head)
    writer.add_head_count_kv(h.n_head_kv)
    writer.add_key_length(h.head_dim)
    writer.add_value_length(h.head_dim)
    writer.add_layer_norm_rms_eps(h.eps)
    writer.add_vocab_size(h.n_vocab)
    writer.add_rope_dimension_count(h.head_dim)
    writer.add_rope_freq_base(h.rope.theta)
    if h.rope.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(h.rope.kind))
        writer.add_rope_scaling_factor(h.rope.factor)
    if h.rope.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(h.rope.n_ctx_orig)
        writer.add_rope_scaling_attn_factors(h.rope.attn_factor)


def add_vocabulary(writer: gguf.GGUFWriter, vocab: Vocabulary) -> None:
    writer.add_tokenizer_model(vocab.model)
    writer.add_tokenizer_pre(vocab.pre)
    writer.add_token_list(vocab.tokens)
    writer.add_token_types(vocab.types)
    if vocab.scores is not None:
        writer.add_token_scores(vocab.scores)
    if vocab.merges is not None:
        writer.add_token_merges(vocab.merges)
    if vocab.add_space_prefix is not None:
        writer.add_add_space_prefix(vocab.add_space_prefix)
    for role, i in vocab.special.items():
        getattr(writer, f"add_{role}_token_id")(i)
    writer.add_add_bos_token(vocab.add_bos)
    writer.add_add_eos_token(vocab.add_eos)
    if vocab.chat_template:
        writer.add_chat_template(vocab.chat_template)


def write_gguf(
    path: Path, h: Hyper, vocab: Vocabulary, plan: list[Planned], tensors: dict[str, Stored], outtype: str, name: str,
    bar: tqdm,
) -> None:  # fmt: skip
    """Write the whole file at `path`: header and metadata, then the tensors in plan order."""
    wanted, file_type = OUTTYPES[outtype]
    writer = gguf.GGUFWriter(path, h.family.arch)
    try:
        add_metadata(writer, h, name, sum(math.prod(entry.shape) for entry in plan), file_type)
        add_vocabulary(writer, vocab)
        divisors = np.array(h.rope.divisors, F32)
        if divisors.size:
            writer.add_tensor_info("rope_freqs.weight", divisors.shape, divisors.dtype, divisors.nbytes)
        kinds = {entry.name: tensor_type(entry.name, entry.shape, wanted) for entry in plan}
        for entry in plan:
            kind = kinds[entry.name]
            writer.add_tensor_info(entry.name, entry.shape, F32, tensor_bytes(entry.shape, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if divisors.size:
            writer.write_tensor_data(divisors)
        for entry in plan:
            data = encode(tensors[entry.source], entry, kinds[entry.name], h.head_dim)
            writer.write_tensor_data(data)
            bar.update(data.nbytes)
    finally:
        writer.close()


def convert(model_dir: str | Path, out: str | Path, outtype: str = "f16", *, progress: bool = True) -> Path:
    """Convert the Hugging Face checkpoint in `model_dir` to the GGUF file `out`.

    Nothing is written before settings, tensors and tokenizer have passed their checks. The file appears under its name
    only when complete; on any error or interrupt there is no new file, and an existing `out` is as it was.

    Args:
        model_dir: Directory with config.json, safetensors weights and a tokenizer.
        out: The file to write; its directory must exist. An existing file is replaced.
        outtype: f32, f16, bf16 or q8_0, in any case. Norms and biases are always F32.
        progress: Show a progress bar on stderr.
    Returns:
        The path of the file.
    Raises:
        FileNotFoundError: A directory, config.json, the weights, a shard or the tokenizer is missing.
        ValueError: An unknown `outtype`, or a checkpoint that llama.cpp could not reproduce; the message says why.
    """
    model_dir, out, outtype = Path(model_dir), Path(out), outtype.lower()
    check_arguments(model_dir, out, outtype)
    config = read_json(model_dir / "config.json", required=True)
    with expected_form("config.json"):
        hyper = read_hyper(config)
    tensors = read_checkpoint(model_dir)
    plan = plan_tensors(hyper)
    check_plan(plan, tensors, hyper)
    with expected_form("tokenizer files"):
        vocab = read_vocabulary(model_dir, config, hyper.n_vocab)
    total = sum(tensor_bytes(e.shape, tensor_type(e.name, e.shape, OUTTYPES[outtype][0])) for e in plan)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc=out.name, disable=not progress) as bar:
            write_gguf(part, hyper, vocab, plan, tensors, outtype, model_dir.resolve().name, bar)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return out


def check_arguments(model_dir: Path, out: Path, outtype: str) -> None:
    if outtype not in OUTTYPES:
        raise ValueError(f"unknown outtype {outtype!r}; known: {', '.join(OUTTYPES)}")
    if not model_dir.is_dir():
        raise FileNotFoundError(f"{model_dir}: no such directory; expected a Hugging Face checkpoint")
    if out.is_dir():
        raise ValueError(f"{out}: is a directory; give the name of the .gguf file")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such directory for the output")


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    parser.add_argument("model_dir", metavar="DIR", help="Hugging Face checkpoint directory")
    parser.add_argument("-o", "--output", metavar="OUT.gguf", required=True, help="file to write")
    parser.add_argument("--outtype", default="f16", help=f"{', '.join(OUTTYPES)} (default: %(default)s)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "example:\n  ffnskip convert ./Llama-3.2-1B -o llama-3.2-1b-f16.gguf --outtype f16\n\n"
        f"architectures: {', '.join(FAMILIES)}"
    )


def run(args: argparse.Namespace) -> int:
    """Do what parsed `args` ask; 0 on success, 2 with one line on stderr otherwise, 130 when interrupted."""
    try:
        out = convert(args.model_dir, args.output, args.outtype, progress=not args.no_progress)
    except (ValueError, OSError) as error:
        print(f"ffnskip convert: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ffnskip convert: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert a Hugging Face checkpoint directory to GGUF.")
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
