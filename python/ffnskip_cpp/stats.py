"""What happened while a `Llama` generated: counts, and a record token by token."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ._core import SkipStats

__all__ = ["INPUT_KINDS", "SkipStats", "Trace"]

INPUT_KINDS = ("qkv", "o", "up", "down")
"""Inputs of a layer whose channels may be left out, in the order of all arrays [..., 4]."""


@dataclass
class Trace:
    """What happened to each generated token, in the order decoded; filled when the `Llama.trace()` block ends."""

    similarity: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """float32 [n_tokens, n_layer]: cosine of the residual before and after the FFN block; NaN where unchecked."""
    skipped: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty((0, 0), np.bool_))
    """bool [n_tokens, n_layer]: the FFN block was skipped."""
    attention_skipped: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty((0, 0), np.bool_))
    """bool [n_tokens, n_layer]: the attention block was skipped."""
    kept: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 4), np.float32))
    """float32 [n_tokens, n_layer, 4]: policy "channels", share kept of the input channels of Q, K and V, of attention's
    output matrix, of gate and up, and of down; NaN where none may be left out. No rows with other policies."""
    reaches: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty((0, 4, 0), np.uint64))
    """uint64 [n_layer, 4, n_bins]: of the same inputs, the channels of all tokens by how far they reach, which is what
    `channel_thresholds` are compared with; bin i is from `_core.reach_edges()[i]` on. No layers unless asked for."""
    layer_similarity: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """float32 [n_tokens, n_layer]: cosine of what goes into a layer and what comes out of it, where its FFN block was
    checked; NaN elsewhere. No rows unless asked for."""
