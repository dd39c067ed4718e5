"""What is chosen of the settings that were compared on held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..measure.quality import standard_error
from ..skip_config import SkipConfig
from .evaluation import Score

__all__ = ["TOLERANCE", "Row", "beats", "best", "equal", "most_within", "row_of"]

TOLERANCE = 0.01  # by which a setting may save less than is wanted


@dataclass(frozen=True)
class Row:
    """A setting and what it does on some text, past the warm-up."""

    policy: str
    text: str
    """"held out" or "calibration"."""
    skip_ratio: float
    """Of the weight bytes of FFN blocks, or of what else is calibrated."""
    saved: float
    """Of what these cost: where costs are given, of their time; else the same."""
    speed_up: float
    """That the costs foretell."""
    kl: float
    """KL divergence from the dense model, nats per token."""
    kl_error: float
    """Its standard error over chunks of text; NaN where there is one chunk alone."""
    top1_agreement: float
    perplexity_ratio: float
    checks: float
    """Per token."""
    n_tokens: int
    config: SkipConfig
    kl_of_rows: npt.NDArray[np.float64] = field(repr=False, compare=False)
    """float64 [n_tokens]"""
    chunk: npt.NDArray[np.int64] = field(repr=False, compare=False)
    """int64 [n_tokens]: the chunk of text that each token is of."""
    channels_kept: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 4)), compare=False)
    """float64 [n_layer, 4]: share kept of the channels of each input; NaN where none may be left out. No layers but
    with policy "channels"."""


def row_of(score: Score, policy: str, text: str) -> Row:
    quality = score.quality
    return Row(
        policy,
        text,
        score.skip_ratio,
        score.saved,
        score.speed_up,
        quality.kl,
        quality.kl_error,
        quality.top1_agreement,
        quality.perplexity_ratio,
        score.checks,
        quality.n_rows,
        score.config,
        score.kl,
        score.chunk,
        score.channels_kept,
    )


def equal(one: Row, other: Row) -> bool:
    """Within the standard error of their difference in KL divergence, which is that of the same tokens and so far
    smaller than the error of either."""
    difference = one.kl_of_rows - other.kl_of_rows
    error = standard_error(difference, one.chunk)
    return bool(abs(difference.mean()) <= (0.0 if np.isnan(error) else error))


def beats(one: Row, other: Row) -> bool:
    """Saves at least as much at a KL divergence that is lower by more than the standard error."""
    return one.saved >= other.saved and one.kl < other.kl and not equal(one, other)


def best(rows: Sequence[Row], share: float) -> Row:
    """The row to choose where `share` is to be saved: of those that save so much or more, the one of least KL
    divergence; of those equal to it the simplest. Where none saves so much, the same of the one that saves most."""
    kept = _kept(rows)
    enough = [row for row in kept if row.saved >= share - TOLERANCE]
    if not enough:
        most = max(row.saved for row in kept)
        enough = [row for row in kept if row.saved >= most - TOLERANCE]
    least = min(enough, key=lambda row: row.kl)
    as_good = [row for row in enough if row is least or equal(row, least)]
    as_good = [row for row in as_good if not any(beats(other, row) for other in rows)] or [least]
    return min(as_good, key=lambda row: (row.checks > 0, row.checks, row.kl))


def most_within(rows: Sequence[Row], max_kl: float) -> Row | None:
    """The row that saves most at no higher KL divergence; None where all cost more."""
    within = [row for row in _kept(rows) if row.kl <= max_kl]
    return max(within, key=lambda row: (round(row.saved, 3), -row.kl), default=None)


def _kept(rows: Sequence[Row]) -> list[Row]:
    """Those whose settings a profile holds: no random policy, no channels by thresholds that each text has anew."""
    kept = ("ffn_skip", "skip_decode")
    return [row for row in rows if row.config.policy in kept or row.config.channel_thresholds is not None]
