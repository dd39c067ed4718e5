"""Texts whose tokens leave channels out, in a model that rounding hardly matters to, and what is compared of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ffnskip_cpp import SkipConfig
from support.channels_reference import KINDS, ReferenceChannels
from support.running import SKIPPABLE_ROW, WARM_UP_ROW, feed_one_by_one

WARM_UP = 10
TOKENS = np.random.default_rng(7).integers(0, 256, 110).tolist()
ROWS = [WARM_UP_ROW] * WARM_UP + [SKIPPABLE_ROW] * (len(TOKENS) - WARM_UP)
MAY_SKIP = np.arange(len(TOKENS)) >= WARM_UP

N_LAYER = 4
TYPES = ["f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k_s", "q5_k_s", "q6_k"]

# Of logits, relative to the largest: in the middle of all tokens, and at most. Each block of this model adds little to
# the residual, so that what falls on one side here and on the other there, an 8-bit code or a channel near its
# threshold, changes little, too.
DAMPED = {"n_layer": N_LAYER, "n_embd": 256, "n_ff": 512, "embedding_rms": 128.0}
TYPICAL, AT_MOST = 1.5e-4, 1e-3

# Kinds of inputs, by SkipConfig.tensors.
TENSORS = {"ffn": ("up", "down"), "all": KINDS}


def channels(thresholds, **options: Any) -> SkipConfig:
    return SkipConfig(policy="channels", channel_thresholds=thresholds, **{"warm_up_index": WARM_UP, **options})


def only(thresholds, *kinds: str) -> list[float]:
    """The others keep all."""
    flat = np.asarray(thresholds).reshape(-1, len(KINDS))
    return np.where(np.isin(KINDS, kinds), flat, 0.0).ravel().tolist()


def thresholds_of(path, share: float, **options: Any) -> list[float]:
    """With which TOKENS keep about this share of every input's channels; options of the reference."""
    reference = ReferenceChannels(path, **options)
    reference.evaluate(TOKENS)
    return reference.thresholds_that_keep(share)


def differences(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of each row, relative to the largest logit."""
    return np.abs(got - expected).max(axis=1) / np.abs(expected).max()


def shares(trace) -> np.ndarray:
    """Kept, (n_tokens, n_layer, 4); all where none may be left out."""
    return np.nan_to_num(trace.kept, nan=1.0)


def one_by_one(llm) -> np.ndarray:
    return feed_one_by_one(llm, TOKENS, ROWS)


def as_a_batch(llm) -> np.ndarray:
    return llm.forward(TOKENS)


WAYS = {"one by one": one_by_one, "batch": as_a_batch}
