"""How far the input channels of a model reach on some text, and with that what thresholds would leave out of them.

The reach of a channel is what its threshold is compared with: the size of what it adds to the outputs. What channels
add points into unrelated directions, so that leaving some out changes the outputs by the root of the sum of the squares
of their reaches; that sum is called their energy here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .. import _core
from .costs import FFN, FFN_INPUTS, Costs, LeftOut, PerInput

__all__ = ["MOST", "Inputs"]

MOST = 0.95  # share of the channels of an input that is left out at most
DIGITS = 5  # of a threshold
STEPS = 60  # of a bisection


class Inputs:
    """
    Args:
        n_bytes: [n_layer, 4, 2], as `Evaluator.inputs` has them.
        counts: [n_layer, 4, n_bins], as `Trace.reaches` has them.
        n_tokens: That were counted.
        costs: What leaving channels out is to save.
    """

    def __init__(self, n_bytes: npt.NDArray[np.float64], counts: npt.NDArray[np.uint64], n_tokens: int, costs: Costs):
        self._edges = _core.reach_edges().astype(np.float64)
        self._bytes: PerInput = np.ptp(n_bytes, axis=-1)
        self._costs = costs
        of_all = counts.sum(axis=-1, keepdims=True)
        self._share = _sums(counts) / np.maximum(of_all, 1)
        self._energy = _sums(counts * self._edges[:-1] * self._edges[1:]) / n_tokens
        n_channels = of_all[..., 0] / n_tokens
        self.usable: npt.NDArray[np.bool_] = (self._bytes > 0) & (n_channels > 0) & (costs.per_byte > 0)
        """bool [n_layer, 4]: channels of the input may be left out, and that saves something."""
        self.saved_per_channel: PerInput = costs.per_byte * self._bytes / np.maximum(n_channels, 1)
        """What one channel less saves."""

    def left_out(self, thresholds: PerInput) -> PerInput:
        """The share of its channels that a threshold leaves out of each input."""
        return self._at(self._share, thresholds)

    def energy(self, thresholds: PerInput) -> PerInput:
        """Of what they leave out, per token."""
        return self._at(self._energy, thresholds)

    def below(self, share: float | PerInput) -> PerInput:
        """The thresholds that leave out a share of the channels of each input; 0 where none may be."""
        shares = np.broadcast_to(share, self.usable.shape)
        result = np.zeros(self.usable.shape)
        for index in zip(*np.nonzero(self.usable)):
            result[index] = np.interp(shares[index], self._share[index], self._edges)
        return result

    def saved(self, thresholds: PerInput, layers: Sequence[int] = ()) -> float:
        """What is saved where the FFN blocks of `layers` are skipped besides, as a share of the costs of all blocks."""
        left_out = LeftOut.nothing(len(thresholds))
        left_out.bytes = self.left_out(thresholds) * self._bytes
        left_out.bytes[np.ix_(layers, FFN_INPUTS)] = 0.0
        left_out.blocks[list(layers), FFN] = 1.0
        return self._costs.share(left_out)

    def most(self, layers: Sequence[int] = ()) -> float:
        """What can be saved where the FFN blocks of `layers` are skipped besides."""
        thresholds = self.below(MOST)
        for il in layers:
            thresholds[il, FFN_INPUTS] = 0.0
        return self.saved(thresholds, layers)

    def saving(self, shape: PerInput, ratio: float, layers: Sequence[int] = ()) -> PerInput | None:
        """Thresholds in the proportions of `shape`, one factor for all, that save `ratio` where the FFN
        blocks of `layers` are skipped; None where they can't save so much, or the blocks alone save more."""
        shape = np.where(self.usable, shape, 0.0)
        for il in layers:
            shape[il, FFN_INPUTS] = 0.0
        most = self.below(MOST)

        def thresholds(factor: float) -> PerInput:
            return np.minimum(shape * factor, most)

        low, high = 1e-12, 1e12
        if not self.saved(thresholds(low), layers) <= ratio <= self.most(layers):
            return None
        for _ in range(STEPS):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if self.saved(thresholds(middle), layers) < ratio else (low, middle)
        return rounded(thresholds(high))

    def _at(self, curve: npt.NDArray[np.float64], thresholds: PerInput) -> PerInput:
        """Of curves [n_layer, 4, n_bins + 1] over the edges the values at thresholds."""
        i = np.clip(np.searchsorted(self._edges, thresholds, side="right") - 1, 0, len(self._edges) - 2)
        part = np.clip((thresholds - self._edges[i]) / (self._edges[i + 1] - self._edges[i]), 0.0, 1.0)
        before, after = (np.take_along_axis(curve, j[..., None], axis=-1)[..., 0] for j in (i, i + 1))
        return before + part * (after - before)


def rounded(thresholds: PerInput) -> PerInput:
    """To a few significant digits, so that they are the same when they were read back from text."""
    return np.array([float(f"{value:.{DIGITS}g}") for value in thresholds.ravel()]).reshape(thresholds.shape)


def _sums(counts: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Cumulative, with a 0 before them."""
    zeros = np.zeros((*counts.shape[:-1], 1))
    return np.concatenate([zeros, np.cumsum(counts, axis=-1, dtype=np.float64)], axis=-1)
