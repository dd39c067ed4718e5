"""How sure figures are: intervals by the bootstrap, and what tells two runs on the same items apart.

    metrics, groups = figures(task.metrics, records)
    difference = paired(task.metrics[0], records, dense_records)
    print(difference.difference, difference.low, difference.high, difference.p)

Items are what is drawn: a run on others of the same kind would have come to figures within the interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .runs import Figure
from .tasks.base import Metric, Record

__all__ = ["Paired", "bootstrap", "figures", "holm", "paired"]

Array = npt.NDArray[np.float64]

N_RESAMPLES = 2000
TAILS = (0.025, 0.975)  # of what 95 % lie between
N_PERMUTATIONS = 10_000
BLOCK_ELEMENTS = 2**20  # drawn at once
KEPT_ELEMENTS = 2**23  # of draws that are kept for the next run on as many items: 16 MiB and 8 MiB
ROUNDING = 1e-9  # of a difference: as large as another that is the same but for rounding


@dataclass(frozen=True)
class Paired:
    """How one run's figure differs from another's, on the items that both have."""

    difference: float
    """The one's less the other's, in the metric's own unit."""
    low: float
    high: float
    """Its 95 % bootstrap interval, items drawn."""
    p: float
    """Two-sided, of no difference: McNemar's exact test where items are right or wrong, else a permutation test that
    exchanges the two runs' values of an item."""
    n: int
    """Items that both have."""


def figures(
    metrics: Sequence[Metric], records: Sequence[Record], seed: int = 0
) -> tuple[dict[str, Figure], dict[str, dict[str, Figure]]]:
    """The figures of a run, and those of each of its groups, by name.

    A record without a metric's value does not count for it. A metric that nothing counts for has no figure.

    Args:
        seed: Of the draws. Equal records have equal intervals.
    """
    groups = sorted({record.group for record in records} - {""})
    of_groups = {name: [record for record in records if record.group == name] for name in groups}
    return _figures(metrics, records, seed), {
        name: _figures(metrics, of_group, seed) for name, of_group in of_groups.items()
    }


def _figures(metrics: Sequence[Metric], records: Sequence[Record], seed: int) -> dict[str, Figure]:
    found = {}
    for metric in metrics:
        values, weights = _sums([record for record in records if _counts(metric, record)], metric)
        if weights.sum() > 0:
            low, high = bootstrap(metric, values, weights, seed)
            found[metric.name] = Figure(float(metric.of(values, weights)), low, high, len(values))
    return found


def _counts(metric: Metric, record: Record) -> bool:
    return metric.value in record.values and (metric.weight is None or metric.weight in record.values)


def _sums(records: Sequence[Record], metric: Metric) -> tuple[Array, Array]:
    """What the metric sums above and below the line, a number for each record."""
    values = np.array([record.values[metric.value] for record in records], np.float64)
    if metric.weight is None:
        return values, np.ones(len(values))
    return values, np.array([record.values[metric.weight] for record in records], np.float64)


def bootstrap(metric: Metric, values: Array, weights: Array, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of a figure, from 2,000 resamples of its items.

    Args:
        values, weights: [n_items], what the metric sums above and below the line; weights are ones for a mean.
        seed: Of the draws.
    Returns:
        Its ends. NaN where no resample has a weight.
    """
    values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    drawn = [_of_sums(metric, times @ values, times @ weights) for times in _resamples(len(values), seed)]
    return _interval(np.concatenate(drawn))


def _of_sums(metric: Metric, values: Array, weights: Array) -> Array:
    """A figure for each pair of sums."""
    return metric.of(values[:, None], weights[:, None])


def _resamples(n: int, seed: int) -> Iterator[Array]:
    """float64 [a block of resamples, n]: how many times each item is in it."""
    if n == 0:
        raise ValueError("there are no items to draw from")
    kept = N_RESAMPLES * n <= KEPT_ELEMENTS
    for times in _kept_resamples(n, N_RESAMPLES, seed) if kept else _drawn_resamples(n, N_RESAMPLES, seed):
        yield times.astype(np.float64)


@lru_cache(maxsize=1)
def _kept_resamples(n: int, total: int, seed: int) -> tuple[npt.NDArray[np.uint16], ...]:
    return tuple(times.astype(np.uint16) for times in _drawn_resamples(n, total, seed))


def _drawn_resamples(n: int, total: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    for size in _blocks(total, n):
        items = random.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(items.ravel(), minlength=size * n).reshape(size, n)


def _blocks(total: int, n: int) -> Iterator[int]:
    """Sizes of blocks with `n` elements in each row."""
    size = max(1, BLOCK_ELEMENTS // n)
    for start in range(0, total, size):
        yield min(size, total - start)


def _interval(estimates: Array) -> tuple[float, float]:
    known = estimates[~np.isnan(estimates)]
    if len(known) == 0:
        return math.nan, math.nan
    low, high = np.quantile(known, TAILS)
    return float(low), float(high)


def paired(metric: Metric, a_records: Sequence[Record], b_records: Sequence[Record], seed: int = 0) -> Paired:
    """How the figure of run a differs from that of run b.

    Args:
        a_records, b_records: In any order; items that only one of them has don't count.
        seed: Of the draws.
    Raises:
        ValueError: They have no item in common that the metric counts.
    """
    others = {record.id: record for record in b_records if _counts(metric, record)}
    common = [record for record in a_records if record.id in others and _counts(metric, record)]
    a = _sums(common, metric)
    b = _sums([others[record.id] for record in common], metric)
    if a[1].sum() == 0 or b[1].sum() == 0:
        raise ValueError(f"the two runs have no item in common that counts for {metric.name}")
    drawn = [
        _of_sums(metric, times @ a[0], times @ a[1]) - _of_sums(metric, times @ b[0], times @ b[1])
        for times in _resamples(len(common), seed)
    ]
    low, high = _interval(np.concatenate(drawn))
    right_or_wrong = metric.weight is None and not metric.exponential and all(np.isin(x, (0, 1)).all() for x in (a, b))
    p = _mcnemar(a[0], b[0]) if right_or_wrong else _permutation(metric, a, b, seed)
    return Paired(float(metric.of(*a) - metric.of(*b)), low, high, p, len(common))


def _mcnemar(a: Array, b: Array) -> float:
    """If the runs were alike, an item that one has right and the other has not would be either's with even chances."""
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    n, fewer = only_a + only_b, min(only_a, only_b)
    ways = tail = 1  # whole numbers, so that no n is too large
    for k in range(fewer):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    share: float = tail / 2**n
    return min(1.0, 2 * share)


def _permutation(metric: Metric, a: tuple[Array, Array], b: tuple[Array, Array], seed: int) -> float:
    """Share of the ways to exchange the runs' values that part them as far as they are: of all ways where these are
    few, else of 10,000, themselves among them."""
    seen = abs(float(metric.of(*a) - metric.of(*b)))
    differs = (a[0] != b[0]) | (a[1] != b[1])
    n = int(differs.sum())
    all_ways = 2**n <= N_PERMUTATIONS
    moved = [(other - own)[differs] if all_ways else other - own for own, other in zip(a, b)]
    as_far = 0
    for exchanged in _every_way(n) if all_ways else _some_ways(len(differs), seed):
        shift = [exchanged @ of_item for of_item in moved]
        of_a = _of_sums(metric, *(own.sum() + by for own, by in zip(a, shift)))
        of_b = _of_sums(metric, *(other.sum() - by for other, by in zip(b, shift)))
        as_far += int((np.abs(of_a - of_b) >= seen * (1 - ROUNDING)).sum())
    return as_far / 2**n if all_ways else (1 + as_far) / (1 + N_PERMUTATIONS)


def _every_way(n: int) -> Iterator[Array]:
    """float64 [2**n, n]: 1 where an item's values are exchanged."""
    yield (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(np.float64)


def _some_ways(n: int, seed: int) -> Iterator[Array]:
    """float64 [a block of ways, n]."""
    kept = N_PERMUTATIONS * n <= KEPT_ELEMENTS
    for exchanged in _kept_ways(n, N_PERMUTATIONS, seed) if kept else _drawn_ways(n, N_PERMUTATIONS, seed):
        yield exchanged.astype(np.float64)


@lru_cache(maxsize=1)
def _kept_ways(n: int, total: int, seed: int) -> tuple[npt.NDArray[np.int8], ...]:
    return tuple(_drawn_ways(n, total, seed))


def _drawn_ways(n: int, total: int, seed: int) -> Iterator[npt.NDArray[np.int8]]:
    random = np.random.default_rng(seed)
    for size in _blocks(total, n):
        yield random.integers(0, 2, (size, n), np.int8)


def holm(p: Sequence[float]) -> list[float]:
    """p-values of several tests, made larger so that among all of them a false one below 0.05 is as rare as one test's
    (Holm 1979). In the order given."""
    adjusted = [0.0] * len(p)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted
