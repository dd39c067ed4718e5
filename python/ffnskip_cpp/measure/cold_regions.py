"""The cold regions that a curve of similarities suggests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["cold_regions"]

FALL = 0.01  # of the mean similarity, from its maximum on: a "decreasing trend" rather than noise


def cold_regions(mean: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Cold regions from the ends of the mean curve where it is not rising (FFN-SkipLLM, observation 3 and section 3.2).

    At the beginning, up to and including the lowest layer of the first half of those checked: from there on the curve
    rises. At the end, from where it has fallen by more than 0.01 below its maximum for good.

    Args:
        mean: float [n_layer], mean similarity; NaN where a layer was not checked, as the last one never is.
    Returns:
        cold_s and cold_e: layers [0, cold_s) and [cold_e, n_layer) are cold. 0 <= cold_s < cold_e < n_layer.
    Raises:
        ValueError: Fewer than two layers, or none of them checked.
    """
    layers = np.flatnonzero(~np.isnan(mean))
    layers = layers[layers < len(mean) - 1]
    if len(layers) == 0:
        raise ValueError("no layer was checked")
    first_half = layers[: len(layers) // 2]
    cold_s = int(first_half[mean[first_half].argmin()]) + 1 if len(first_half) else 0
    rest = layers[layers >= cold_s]
    high = rest[mean[rest] >= mean[rest].max() - FALL]
    return cold_s, int(high[-1]) + 1
