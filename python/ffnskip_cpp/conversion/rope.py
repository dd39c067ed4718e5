"""Rotary position embeddings: what config.json says about them, as llama.cpp wants to be told.

Both spellings are read: `rope_parameters` (transformers 5), and `rope_theta` with `rope_scaling` (before).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import gguf
import numpy as np

from .settings import Json, first_of, number, whole


@dataclass(frozen=True)
class Rope:
    """`kind` is one of default, linear, yarn, llama3, longrope."""

    kind: str
    theta: float
    n_rot: int  # rotated dimensions of each head
    factor: float = 1.0
    n_ctx_orig: int = 0
    attn_factor: float = 1.0  # yarn: what multiplies llama.cpp's own 1 + 0.1 ln(factor); longrope: cos and sin
    divisors: tuple[float, ...] = ()  # llama3: by what each frequency is divided, one per rotated pair
    short_divisors: tuple[float, ...] = ()  # longrope: up to n_ctx_orig tokens, and beyond
    long_divisors: tuple[float, ...] = ()

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        writer.add_rope_dimension_count(self.n_rot)
        writer.add_rope_freq_base(self.theta)
        if self.kind in ("linear", "yarn", "longrope"):
            writer.add_string(f"{writer.arch}.rope.scaling.type", self.kind)
        if self.kind in ("linear", "yarn"):
            writer.add_rope_scaling_factor(self.factor)
        if self.kind in ("yarn", "longrope"):
            writer.add_rope_scaling_orig_ctx_len(self.n_ctx_orig)
            writer.add_rope_scaling_attn_factors(self.attn_factor)

    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors that llama.cpp reads frequency divisors from."""
        found = {
            "rope_freqs.weight": self.divisors,
            "rope_factors_long.weight": self.long_divisors,
            "rope_factors_short.weight": self.short_divisors,
        }
        return {name: np.array(values, np.float32) for name, values in found.items() if values}


def read_rope(
    config: Json, arch: str, kinds: tuple[str, ...], head_dim: int, n_ctx: int, share: float | None = None
) -> Rope:
    """`kinds` are the scaling types that llama.cpp follows for `arch`.

    `share` of each head is rotated where config.json does not say; None where llama.cpp only rotates whole heads.

    Raises:
        ValueError: The settings are incomplete, or llama.cpp has no counterpart for them.
    """
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if any(isinstance(value, dict) for value in settings.values()):
        raise ValueError(f"config.json: rope settings per layer type ({', '.join(settings)}) are not supported")
    theta = number(settings, "rope_theta", default=number(config, "rope_theta", "rotary_emb_base", default=10000.0))
    kind = settings.get("rope_type", settings.get("type")) or "default"
    kind = {"su": "longrope"}.get(kind, kind)  # Phi-3's first name for it
    if kind not in kinds:
        raise ValueError(
            f"config.json: rope scaling type {kind!r} is not supported for {arch}; known: {', '.join(kinds)}"
        )
    settings.setdefault("original_max_position_embeddings", config.get("original_max_position_embeddings") or n_ctx)
    plain = Rope("default", theta, rotated_dimensions({**config, **settings}, arch, head_dim, share))
    if kind == "linear":
        return replace(plain, kind=kind, factor=number(settings, "factor"))
    if kind == "yarn":
        return yarn_rope(settings, plain)
    if kind == "longrope":
        return longrope(settings, plain, n_ctx)
    if kind == "llama3":
        return replace(plain, kind=kind, divisors=llama3_divisors(settings, theta, plain.n_rot))
    return plain


def rotated_dimensions(settings: Json, arch: str, head_dim: int, share: float | None) -> int:
    key, value = first_of(settings, ("partial_rotary_factor", "rotary_pct", "rope_pct"))
    found = number(settings, key, default=1.0 if share is None else share)
    if share is None and found != 1.0:
        raise ValueError(f"config.json: {key} {value}; only 1.0 is supported, llama.cpp's {arch} rotates whole heads")
    n_rot = int(head_dim * found)
    if not 0 < n_rot <= head_dim or n_rot % 2:
        raise ValueError(
            f"config.json: {key} {found} rotates {n_rot} of {head_dim} dimensions; expected an even number"
        )
    return n_rot


def yarn_rope(settings: Json, plain: Rope) -> Rope:
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
    return replace(
        plain,
        kind="yarn",
        factor=factor,
        n_ctx_orig=whole(settings, "original_max_position_embeddings"),
        attn_factor=1.0 if wanted is None else wanted / built_in,
    )


def yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def llama3_divisors(settings: Json, theta: float, n_rot: int) -> tuple[float, ...]:
    """By what each frequency is divided: 1 for short wavelengths, `factor` for long ones, a blend between."""
    factor, low, high = (number(settings, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    n_ctx_orig = number(settings, "original_max_position_embeddings")
    divisors = []
    for i in range(0, n_rot, 2):
        turns = n_ctx_orig * theta ** (-i / n_rot) / (2 * math.pi)  # full turns over the original context
        keep = 1.0 if turns > high else 0.0 if turns < low else (turns - low) / (high - low)
        divisors.append(1.0 / (keep + (1.0 - keep) / factor))
    return tuple(divisors)


def longrope(settings: Json, plain: Rope, n_ctx: int) -> Rope:
    """One list of divisors up to the original context length, one for longer contexts.

    llama.cpp chooses between them by the context length it is asked for, transformers by the length of the text.
    """
    n_ctx_orig = whole(settings, "original_max_position_embeddings")
    factor = number(settings, "factor", default=n_ctx / n_ctx_orig)
    attn_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(n_ctx_orig))
    return replace(
        plain,
        kind="longrope",
        n_ctx_orig=n_ctx_orig,
        attn_factor=number(settings, "attention_factor", default=attn_factor),
        short_divisors=divisor_list(settings, "short_factor", plain.n_rot),
        long_divisors=divisor_list(settings, "long_factor", plain.n_rot),
    )


def divisor_list(settings: Json, key: str, n_rot: int) -> tuple[float, ...]:
    values = settings.get(key)
    if not isinstance(values, list) or len(values) != n_rot // 2:
        found = len(values) if isinstance(values, list) else repr(values)
        raise ValueError(
            f"config.json: longrope {key} has {found} entries; expected {n_rot // 2}, one per rotated pair"
        )
    return tuple(map(float, values))
