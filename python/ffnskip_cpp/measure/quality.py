"""How far a skipping model is from the dense one: KL divergence, top-1 agreement and perplexity, from logits.

    quality = Quality()
    for tokens in chunks:
        with llm.dense():
            dense = llm.forward(tokens)
        quality.add(compare(dense, llm.forward(tokens), tokens[1:]))
    print(quality.kl, quality.top1_agreement, quality.perplexity_ratio)

Logits are float32 [n_rows, n_vocab]; sums are taken in float64, a block of rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..llama import Llama
from .text import Chunk

__all__ = [
    "Comparison",
    "Quality",
    "Reference",
    "compare",
    "logits_of",
    "standard_error",
]

Logits = npt.NDArray[np.float32]
PerRow = npt.NDArray[np.float64]

BLOCK_ELEMENTS = 2**21  # logits that are held in float64 at once: 16 MiB of each intermediate array


@dataclass(frozen=True)
class Comparison:
    """Of each row, the dense model's prediction and the other's. A slice or a mask gives a part of the rows."""

    kl: PerRow
    """float64 [n_rows]: KL(dense || other), in nats."""
    same_top1: npt.NDArray[np.bool_]
    """bool [n_rows]: the most likely token is the same."""
    nll_dense: PerRow
    """float64 [n_rows]: negative log-likelihood of the row's target under the dense model, in nats."""
    nll: PerRow
    """float64 [n_rows]: the same under the other model."""

    def __len__(self) -> int:
        return len(self.kl)

    def __getitem__(self, rows: Any) -> Comparison:
        return Comparison(self.kl[rows], self.same_top1[rows], self.nll_dense[rows], self.nll[rows])


class Quality:
    """Means over all rows added, NaN before there is one. What is added at a time is a chunk of text."""

    def __init__(self) -> None:
        self.n_rows = 0
        self._sums = np.zeros(4)
        self._chunks: list[tuple[float, int]] = []  # of each the sum of KL divergences, and the rows

    def add(self, rows: Comparison) -> None:
        self.n_rows += len(rows)
        self._sums += [rows.kl.sum(), rows.same_top1.sum(), rows.nll_dense.sum(), rows.nll.sum()]
        self._chunks.append((rows.kl.sum(), len(rows)))

    @property
    def kl_error(self) -> float:
        """Standard error of `kl`, over chunks; NaN for less than two of them."""
        sums, n_rows = np.array(self._chunks).reshape(-1, 2).T
        return _error_of_mean(sums, n_rows)

    def _mean(self, i: int) -> float:
        return float(self._sums[i] / self.n_rows) if self.n_rows else math.nan

    @property
    def kl(self) -> float:
        """Mean KL divergence of the other model from the dense one, in nats per token."""
        return self._mean(0)

    @property
    def top1_agreement(self) -> float:
        """Share of rows with the same most likely token, [0, 1]."""
        return self._mean(1)

    @property
    def perplexity_dense(self) -> float:
        return _exp(self._mean(2))

    @property
    def perplexity(self) -> float:
        return _exp(self._mean(3))

    @property
    def perplexity_ratio(self) -> float:
        """perplexity / perplexity_dense; 1 where nothing is lost."""
        return _exp(self._mean(3) - self._mean(2))


def compare(dense: Logits, other: Logits, targets: Sequence[int]) -> Comparison:
    """Compares two models' predictions of the same tokens.

    Args:
        dense, other: Logits, [n_rows, n_vocab]; rows past the last target count for nothing, so that those of
            `Llama.forward(tokens)` go with `tokens[1:]`.
        targets: The token that each row should predict.
    Raises:
        ValueError: The shapes differ or are no logits, or a target is not among them.
    """
    ids = _check(dense, other, targets)
    n = len(ids)
    result = Comparison(np.empty(n), np.empty(n, np.bool_), np.empty(n), np.empty(n))
    for rows in _blocks(n, dense.shape[1]):
        log_p, log_q = _log_softmax(dense[rows]), _log_softmax(other[rows])
        at = (np.arange(len(log_p)), ids[rows])
        result.nll_dense[rows], result.nll[rows] = -log_p[at], -log_q[at]
        result.same_top1[rows] = log_p.argmax(axis=1) == log_q.argmax(axis=1)
        result.kl[rows] = _kl(log_p, log_q)
    return result


class Reference:
    """The dense model's predictions, kept to compare many settings with: `compare` at a tenth of its time and half of
    its memory, in float32. A KL divergence is within 1e-5 nats of what `compare` gives.

    Args:
        logits: float32 [n_rows, n_vocab], of the dense model.
        targets: [n_rows], the token that each row should predict.
    Raises:
        ValueError: A row of logits holds NaN or infinity.
    """

    def __init__(self, logits: Logits, targets: Sequence[int]):
        if not np.isfinite(logits).all():
            raise ValueError("the dense model's logits are not finite")
        self._targets = _check(logits, logits, targets)
        self._p = np.empty_like(logits)
        self._top1 = logits.argmax(axis=1)
        self._log_p = np.empty(len(logits))  # the mean over p of log p: the entropy, negative
        self.nll = np.empty(len(logits))
        for i, row in enumerate(logits):
            shifted = row - row[self._top1[i]]
            p = np.exp(shifted, out=self._p[i])
            total = p.sum()
            p /= total
            self._log_p[i] = p @ shifted - np.log(total)
            self.nll[i] = np.log(total) - shifted[self._targets[i]]

    @classmethod
    def of(cls, llm: Llama, chunk: Chunk, warm_up_index: int) -> Reference:
        """What the model predicts when it runs dense, of the tokens of a chunk that may skip."""
        with llm.dense():
            logits = logits_of(llm, chunk, warm_up_index)
        return cls(logits, [chunk.tokens[i + 1] for i in chunk.rows(warm_up_index)])

    @property
    def nbytes(self) -> int:
        return self._p.nbytes

    def compare(self, logits: Logits) -> Comparison:
        """Of another model, [n_rows, n_vocab]. Logits that are not finite cost an infinite KL divergence."""
        _check(self._p, logits, self._targets)
        n = len(logits)
        result = Comparison(np.empty(n), np.empty(n, np.bool_), self.nll, np.empty(n))
        for i, row in enumerate(logits):
            top1 = int(row.argmax())
            with np.errstate(invalid="ignore"):  # inf - inf
                shifted = row - row[top1]
            log_total = np.log(np.exp(shifted).sum())
            result.kl[i] = self._log_p[i] - self._p[i] @ shifted + log_total
            result.same_top1[i] = top1 == self._top1[i]
            result.nll[i] = log_total - shifted[self._targets[i]]
        result.kl[~np.isfinite(result.kl)] = np.inf
        np.maximum(result.kl, 0.0, out=result.kl)
        return result


def logits_of(llm: Llama, chunk: Chunk, warm_up_index: int) -> Logits:
    """Teacher-forced, as the model skips now: [n_rows, n_vocab], of the tokens of a chunk that may skip."""
    return llm.forward(chunk.tokens, chunk.eligible(warm_up_index), rows=chunk.rows(warm_up_index))


def standard_error(values: PerRow, chunk: npt.NDArray[np.int64]) -> float:
    """Of the mean of `values`, [n_rows]; `chunk`, [n_rows], is the piece of text that a row is of. The tokens of a
    piece depend on one another, so pieces are what varies; NaN where there is one alone."""
    return _error_of_mean(np.bincount(chunk, values), np.bincount(chunk))


def _error_of_mean(sums: npt.NDArray[Any], n_rows: npt.NDArray[Any]) -> float:
    """Of chunks, each with a sum of values and so many of them; those without are none."""
    n_chunks = int((n_rows > 0).sum())
    if n_chunks < 2:
        return math.nan
    deviations = sums - n_rows * (sums.sum() / n_rows.sum())
    return float(np.sqrt((deviations**2).sum() * n_chunks / (n_chunks - 1)) / n_rows.sum())


def _check(dense: Logits, other: Logits, targets: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    ids = np.array(targets, np.int64)
    if dense.shape != other.shape or dense.ndim != 2:
        raise ValueError(f"logits of shape {dense.shape} and {other.shape}; expected the same [n_rows, n_vocab]")
    if len(ids) > len(dense):
        raise ValueError(f"targets: {len(ids)} for {len(dense)} rows of logits")
    if len(ids) and not 0 <= ids.min() <= ids.max() < dense.shape[1]:
        raise ValueError(f"targets: ids must be in [0, {dense.shape[1]}); got {ids.min()} to {ids.max()}")
    return ids


def _blocks(n_rows: int, n_vocab: int) -> Iterator[slice]:
    size = max(1, BLOCK_ELEMENTS // max(n_vocab, 1))
    for first in range(0, n_rows, size):
        yield slice(first, min(first + size, n_rows))


def _log_softmax(logits: Logits) -> PerRow:
    """float64 [n_rows, n_vocab]. A logit of -inf is a token that is ruled out; NaN makes NaN of its row."""
    shifted = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _kl(log_p: PerRow, log_q: PerRow) -> PerRow:
    """Overwrites log_q."""
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.subtract(log_p, log_q, out=log_q)  # of a token that dense rules out: -inf, or NaN
        terms *= p
    terms[p == 0] = 0.0
    kl: PerRow = np.maximum(terms.sum(axis=1), 0.0)  # not below 0 by rounding; NaN stays
    return kl


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf if value == value else math.nan
