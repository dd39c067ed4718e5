"""Whether skipping is worth it. It is, if

1. it is at least 1.1 times as fast,
2. the perplexity rises by at most a tenth, and
3. no smaller quantisation of the model gives the same speed for less KL divergence. What one costs is taken to grow in
   proportion to the speed it gains, so that one which is faster than needed is charged for what is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .rows import Row

__all__ = ["LEAST_SPEED_UP", "MOST_PERPLEXITY", "better_quantisation", "judge", "verdict"]

LEAST_SPEED_UP = 1.1
MOST_PERPLEXITY = 1.1  # times the dense model's
AS_FAST = 0.02  # below a speed-up that still counts as the same


def verdict(rows: Sequence[Row]) -> str:
    """One line: what each ratio gives and costs at its best setting, and whether that is worth it."""
    quantised = [row for row in rows if row.kind == "quantisation"]
    parts = [judge(row, quantised) for row in best_settings(rows)]
    return "; ".join(part for part in parts if part) or "nothing was measured"


def best_settings(rows: Iterable[Row]) -> list[Row]:
    """Of each ratio the setting that costs least, the smallest ratio first."""
    best: dict[str, Row] = {}
    for row in rows:
        if row.kind != "quantisation" and not math.isnan(row.kl):
            before = best.get(row.label)
            best[row.label] = row if before is None or row.kl < before.kl else before
    return sorted(best.values(), key=lambda row: row.skip_ratio)


def judge(row: Row, quantised: Sequence[Row]) -> str:
    """What `verdict` says of a setting."""
    if math.isnan(row.speed_up):
        return f"{row.name}: perplexity x{row.perplexity_ratio:.2f}, speed not measured"
    facts = f"{row.name}: {row.speed_up:.2f} times as fast, perplexity x{row.perplexity_ratio:.2f}"
    better = better_quantisation(row, quantised)
    if better is not None:
        return f"{facts}: not worth it ({_of_quantisation(better)})"
    if row.speed_up < LEAST_SPEED_UP:
        return f"{facts}: not worth it (hardly faster)"
    if row.perplexity_ratio > MOST_PERPLEXITY:
        return f"{facts}: not worth it (too much is lost)"
    return f"{facts}: worth it"


def better_quantisation(row: Row, quantised: Iterable[Row]) -> Row | None:
    """The one that costs least at the speed of `row`, if it costs less than `row`; None if there is none."""
    if row.speed_up <= 1:
        return None
    costs = [
        (other.kl * min((row.speed_up - 1) / (other.speed_up - 1), 1.0), other)
        for other in quantised
        if other.speed_up > 1 and other.speed_up >= row.speed_up - AS_FAST
    ]
    cost, best = min(costs, key=lambda pair: pair[0], default=(math.inf, None))
    return best if cost < row.kl else None


def _of_quantisation(row: Row) -> str:
    says = "would be" if row.quoted else "is"
    return f"{row.label} {says} {row.speed_up:.2f} times as fast at perplexity x{row.perplexity_ratio:.2f}"
