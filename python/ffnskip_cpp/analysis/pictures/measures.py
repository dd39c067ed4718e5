"""The measures of quality, as pictures draw them and as tables list them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ...measure.quality import Quality
from ..report import Column, decimals, percent

__all__ = ["MEASURES", "Measure", "quality_columns"]


@dataclass(frozen=True)
class Measure:
    """A measure of quality as it is drawn."""

    label: str
    value: Callable[[Quality], float]
    dense: float  # of the dense model
    linear_width: float  # where values of very different size are drawn together, linear up to here, then logarithmic


MEASURES = (
    Measure("KL from dense (nats per token)", lambda quality: quality.kl, 0.0, 0.01),
    Measure("same top token as dense (%)", lambda quality: 100 * quality.top1_agreement, 100.0, math.inf),
    Measure("perplexity above dense (%)", lambda quality: 100 * (quality.perplexity_ratio - 1), 0.0, 1.0),
)


def quality_columns(suffix: str = "") -> list[Column]:
    """
    Args:
        suffix: Of the keys of the rows.
    """
    return [
        Column(f"kl{suffix}", "KL (nats/token)", decimals(4)),
        Column(f"top1_agreement{suffix}", "same top token", percent(1)),
        Column(f"perplexity{suffix}", "perplexity", decimals(3)),
        Column(f"perplexity_ratio{suffix}", "ratio to dense", decimals(4)),
        Column(f"n_rows{suffix}", "tokens", decimals(0)),
    ]
