"""The page that `ffnskip calibrate` prints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..stats import INPUT_KINDS
from ..table import markdown
from .choice import Row, beats, equal

if TYPE_CHECKING:
    from .calibration import Calibration

__all__ = ["describe", "page"]

COLUMNS: dict[str, Callable[[Row], str]] = {
    "policy": lambda row: row.policy,
    "skipped": lambda row: f"{row.skip_ratio:.1%}",
    "speed-up": lambda row: f"x{row.speed_up:.2f}",
    "KL": lambda row: _kl(row),
    "same top token": lambda row: f"{row.top1_agreement:.2%}",
    "perplexity": lambda row: f"x{row.perplexity_ratio:.4f}",
    "checks": lambda row: f"{row.checks:.1f}",
    "settings": lambda row: describe(row),
}


def page(calibration: Calibration) -> str:
    chosen, held_out = calibration.chosen, calibration.candidates
    lines = [
        f"On {chosen.n_tokens} tokens of held-out text, the best of each policy of {len(calibration.tried)} settings "
        "tried on other text:",
        "",
        _table(held_out),
        "",
        f"chosen: {chosen.policy}, {describe(chosen)}",
    ]
    as_good = [row.policy for row in held_out if row is not chosen and equal(row, chosen)]
    if as_good:
        lines.append(f"equal to it in KL, within the standard error: {', '.join(as_good)}")
    algorithm_1 = next((row for row in held_out if row.policy == "ffn_skip"), None)
    if algorithm_1 is not None and beats(chosen, algorithm_1):
        lines.append(
            f"Algorithm 1 is not the best here: KL {_kl(algorithm_1)} at {algorithm_1.skip_ratio:.1%}, "
            f"against {_kl(chosen)} at {chosen.skip_ratio:.1%}"
        )
    lines += [f"note: {note}" for note in calibration.notes]
    return "\n".join([*lines, f"written to {calibration.path}"])


def describe(row: Row) -> str:
    """The values of a setting that differ from one candidate to the next."""
    config = row.config
    parts = [] if config.layers is None else [f"layers {','.join(map(str, config.layers))}"]
    if config.attention_layers is not None and config.attention_layers != config.layers:
        parts.append(f"attention of {','.join(map(str, config.attention_layers))}")
    if config.policy == "channels":
        parts.append(f"kept: {_kept(row)}")
    elif config.max_skip != 0 and config.cold_s is not None:
        parts.append(f"[{config.cold_s}, {config.cold_e}) max_skip {config.max_skip}")
        if config.layer_thresholds is None:
            parts.append(f"threshold {config.sim_threshold:.5g}")
    return ", ".join(parts)


def _kept(row: Row) -> str:
    """The share of the channels that is, of each kind of input."""
    shares = {}
    for kind, of_layers in zip(INPUT_KINDS, row.channels_kept.T):
        if not np.isnan(of_layers).all():
            shares[kind] = float(np.nanmean(of_layers))
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())


def _table(rows: Sequence[Row]) -> str:
    cells = [[cell(row) for cell in COLUMNS.values()] for row in rows]
    return markdown(list(COLUMNS), cells, left=("policy", "settings"))


def _kl(row: Row) -> str:
    """With its standard error."""
    return f"{row.kl:.4g}" if math.isnan(row.kl_error) else f"{row.kl:.4g} ± {row.kl_error:.2g}"
