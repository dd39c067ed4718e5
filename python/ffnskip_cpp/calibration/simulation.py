"""Algorithm 1 on recorded similarities: which FFN blocks a setting skips, and the threshold that saves what is wanted.

Before a token trips nothing of it is skipped, so similarities recorded in the dense model say where it would trip; all
that is left out is that the tokens before it have skipped too. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..measure.similarity import ALWAYS_TRIPS, NEVER_TRIPS

__all__ = ["Region", "ranks", "skipped", "solve", "thresholds_at_rank", "trips"]

Similarity = npt.NDArray[np.floating]
"""[n_tokens, n_layers]: of the layers of a region, in their order."""


@dataclass(frozen=True)
class Region:
    """The FFN blocks that Algorithm 1 decides about. Those that are always skipped, or can't be, are not among them."""

    layers: tuple[int, ...]
    max_skip: int

    @property
    def cold_s(self) -> int:
        return self.layers[0]

    @property
    def cold_e(self) -> int:
        return self.layers[-1] + 1


def trips(similarity: Similarity, threshold: float | Sequence[float]) -> npt.NDArray[np.int64]:
    """Of each token the first layer that reaches its threshold, as an index into the region; n_layers: none does."""
    reached = similarity >= np.asarray(threshold)
    first: npt.NDArray[np.int64] = np.where(reached.any(axis=1), reached.argmax(axis=1), similarity.shape[1])
    return first


def skipped(tripped: npt.NDArray[np.int64], region: Region) -> npt.NDArray[np.bool_]:
    """bool [n_tokens, n_layers]: the max_skip blocks after the trip."""
    after = np.arange(len(region.layers)) - tripped[:, None]
    return (after > 0) & (after <= region.max_skip)


def solve(similarity: Similarity, max_skip: int, gains: npt.NDArray[np.float64], wanted: float) -> tuple[float, float]:
    """The threshold at which a token saves `wanted` on average.

    Args:
        gains: [n_layers], what skipping the FFN block of a layer saves.
    Returns:
        The threshold, and what it does save: less where the region has not as much, and not exactly as much where
        similarities are equal.
    """
    before = np.append(0.0, np.cumsum(gains))
    first = np.minimum(np.arange(1, len(gains) + 2), len(gains))  # that is skipped, by the layer that trips
    saved_by = before[np.minimum(first + max_skip, len(gains))] - before[first]

    def saved(threshold: float) -> float:
        return float(saved_by[trips(similarity, threshold)].mean())

    most = saved(ALWAYS_TRIPS)
    if most <= wanted:
        return ALWAYS_TRIPS, most
    # A higher threshold trips later, and so saves no more where all gains are equal. Where they are not, this finds one
    # of the thresholds between which what is wanted is crossed.
    values = np.append(np.unique(similarity[np.isfinite(similarity)]), NEVER_TRIPS)
    low, high = 0, len(values) - 1  # values[low] saves too much, values[high] too little
    while high - low > 1:
        middle = (low + high) // 2
        if saved(float(values[middle])) > wanted:
            low = middle
        else:
            high = middle
    either = [(float(value), saved(float(value))) for value in values[low : high + 1]]
    return min(either, key=lambda found: abs(found[1] - wanted))


def ranks(similarity: Similarity) -> Similarity:
    """Each similarity as the share of tokens with a lower one in the same layer, [0, 1); NaN stays."""
    ordered = np.sort(similarity, axis=0)
    lower = [np.searchsorted(ordered[:, i], similarity[:, i]) for i in range(similarity.shape[1])]
    return np.where(np.isnan(similarity), np.nan, np.stack(lower, axis=1) / len(similarity))


def thresholds_at_rank(similarity: Similarity, rank: float) -> list[float]:
    """Of each layer the similarity that what `ranks` maps to `rank` or above reaches, and nothing else; infinite where
    there is none, as in a layer where all are equal."""
    if rank <= 0:
        return [ALWAYS_TRIPS] * similarity.shape[1]
    lowest: list[float] = np.where(ranks(similarity) >= rank, similarity, np.inf).min(axis=0).tolist()
    return lowest
