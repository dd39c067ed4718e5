"""Logits in NumPy alone, for expectations that owe nothing to the package."""

from __future__ import annotations

import numpy as np

__all__ = ["log_softmax"]


def log_softmax(logits):
    """float64 [n_rows, n_vocab]"""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
