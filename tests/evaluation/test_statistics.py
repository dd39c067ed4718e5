"""Intervals and paired tests agree with every resample and every exchange written out, and with textbook formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ffnskip_cpp.evaluation import statistics
from ffnskip_cpp.evaluation.statistics import bootstrap, figures, holm, paired
from ffnskip_cpp.evaluation.tasks.base import Metric, Record

MEAN = Metric("match", "match", percent=True)
RATIO = Metric("nll", "nll", "n_tokens", higher_is_better=False)
PERPLEXITY = Metric("perplexity", "nll", "n_tokens", exponential=True, higher_is_better=False)
SAMPLED = 0.012  # of a share near 2.5 % counted in 2,000 draws: more than three standard errors


def records_of(values, group="", **more):
    return [
        Record(f"item-{i}", group, {"match": float(value), **{name: column[i] for name, column in more.items()}}, 1, 1)
        for i, value in enumerate(values)
    ]


def token_records(nll, n_tokens):
    return [
        Record(f"item-{i}", "", {"nll": float(a), "n_tokens": float(b)}, 1, 1)
        for i, (a, b) in enumerate(zip(nll, n_tokens))
    ]


def by_hand(metric, rows):
    """The metric of (value, weight) pairs."""
    quotient = math.fsum(value for value, _ in rows) / math.fsum(weight for _, weight in rows)
    return math.exp(quotient) if metric.exponential else quotient


@pytest.mark.parametrize("metric", [MEAN, RATIO, PERPLEXITY])
def test_the_interval_cuts_the_tails_of_all_resamples(metric):
    values = np.array([0.3, 2.0, 5.1, 0.9, 3.3])
    weights = np.ones(5) if metric is MEAN else np.array([1.0, 3.0, 2.0, 2.0, 1.0])
    all_of_them = np.array(
        [by_hand(metric, rows) for rows in itertools.product(list(zip(values, weights)), repeat=len(values))]
    )
    low, high = bootstrap(metric, values, weights)
    for end, tail in ((low, 0.025), (high, 0.975)):
        assert (all_of_them < end - 1e-9).mean() - SAMPLED <= tail <= (all_of_them <= end + 1e-9).mean() + SAMPLED


def test_of_many_items_the_interval_is_that_of_the_normal_distribution():
    right = np.random.default_rng(1).random(2000) < 0.3
    low, high = bootstrap(MEAN, right.astype(float), np.ones(2000))
    half = 1.96 * right.std() / math.sqrt(2000)
    assert (low, high) == pytest.approx((right.mean() - half, right.mean() + half), abs=half / 8)


def test_more_items_than_fit_into_a_block_are_drawn_all_the_same(monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK_ELEMENTS", 100)
    monkeypatch.setattr(statistics, "KEPT_ELEMENTS", 0)
    right = np.random.default_rng(1).random(300) < 0.3
    low, high = bootstrap(MEAN, right.astype(float), np.ones(300))
    half = 1.96 * right.std() / math.sqrt(300)
    assert (low, high) == pytest.approx((right.mean() - half, right.mean() + half), abs=half / 8)


def test_equal_seeds_draw_alike_and_others_do_not():
    values, weights = np.random.default_rng(2).random(50), np.ones(50)
    assert bootstrap(MEAN, values, weights, seed=3) == bootstrap(MEAN, values, weights, seed=3)
    assert bootstrap(MEAN, values, weights, seed=3) != bootstrap(MEAN, values, weights, seed=4)


def test_draws_that_are_kept_are_those_that_are_not(monkeypatch):
    a, b = np.random.default_rng(2).random((2, 40))
    kept = [paired(MEAN, records_of(a), records_of(b)) for _ in range(2)]
    monkeypatch.setattr(statistics, "KEPT_ELEMENTS", 0)
    assert kept == [paired(MEAN, records_of(a), records_of(b))] * 2
    assert paired(MEAN, records_of(a), records_of(b), seed=1) != kept[0]


def test_one_item_has_an_interval_of_itself_and_none_is_refused():
    assert bootstrap(MEAN, np.array([0.25]), np.ones(1)) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no items"):
        bootstrap(MEAN, np.array([]), np.array([]))


def test_figures_of_a_run_and_of_its_groups():
    records = [*records_of([1, 0, 1, 1], "b"), *records_of([0, 0], "a"), *records_of([1], "")]
    metrics, groups = figures([MEAN, RATIO], records)
    assert list(metrics) == ["match"]  # no record has what the other is made from
    assert (metrics["match"].value, metrics["match"].n) == (4 / 7, 7)
    assert list(groups) == ["a", "b"]
    assert (groups["b"]["match"].value, groups["b"]["match"].n) == (0.75, 4)
    assert groups["a"]["match"].low == groups["a"]["match"].high == 0
    assert groups["b"]["match"].low < 0.75 < groups["b"]["match"].high


def test_a_record_without_the_value_does_not_count():
    records = [*token_records([2.0, 4.0], [1, 3]), Record("another", "", {"nll": 9.0}, 1, 1)]
    metrics, groups = figures([RATIO], records)
    assert (metrics["nll"].value, metrics["nll"].n, groups) == (1.5, 2, {})


def test_where_no_token_counts_there_is_no_figure():
    assert figures([PERPLEXITY], token_records([0.0, 0.0], [0, 0])) == ({}, {})


def exchanged_by_hand(metric, a, b):
    """p: of all ways to exchange items, the share that parts the two as far."""
    seen = abs(by_hand(metric, a) - by_hand(metric, b))
    far = total = 0
    for ways in itertools.product((False, True), repeat=len(a)):
        one = [y if way else x for x, y, way in zip(a, b, ways)]
        other = [x if way else y for x, y, way in zip(a, b, ways)]
        far += abs(by_hand(metric, one) - by_hand(metric, other)) >= seen - 1e-12
        total += 1
    return far / total


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_is_the_share_of_all_exchanges(seed):
    a, b = np.random.default_rng(seed).integers(0, 2, (2, 10)).astype(float)
    expected = exchanged_by_hand(MEAN, [(x, 1) for x in a], [(x, 1) for x in b])
    result = paired(MEAN, records_of(a), records_of(b))
    assert result.p == pytest.approx(expected)
    assert result.difference == pytest.approx(a.mean() - b.mean())


def test_mcnemar_of_known_counts():
    only_a, only_b, both, neither = 9, 1, 30, 20
    a = [1] * only_a + [0] * only_b + [1] * both + [0] * neither
    b = [0] * only_a + [1] * only_b + [1] * both + [0] * neither
    for one, other, sign in ((a, b, 1), (b, a, -1)):
        result = paired(MEAN, records_of(one), records_of(other))
        assert result.p == 2 * (1 + 10) / 1024
        assert result.difference == pytest.approx(sign * 8 / 60)
        assert result.n == 60


def test_mcnemar_of_thousands_of_items():
    n, fewer = 6000, 2880
    a = [1] * (n - fewer) + [0] * fewer
    p = paired(MEAN, records_of(a), records_of([1 - x for x in a])).p
    z = (n / 2 - fewer - 0.5) / math.sqrt(n / 4)  # the normal distribution, with correction for continuity
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-2)


@pytest.mark.parametrize("metric", [RATIO, PERPLEXITY])
@pytest.mark.parametrize("same_weights", [True, False])
def test_few_items_are_exchanged_in_every_way(metric, same_weights):
    random = np.random.default_rng(7)
    weights_a = random.integers(1, 6, 8)
    weights_b = weights_a if same_weights else weights_a + random.integers(1, 6, 8)
    a, b = random.random((2, 8)) * 5
    b[[2, 5]] = a[[2, 5]]  # with other weights these count all the same
    result = paired(metric, token_records(a, weights_a), token_records(b, weights_b))
    expected = exchanged_by_hand(metric, list(zip(a, weights_a)), list(zip(b, weights_b)))
    assert result.p == pytest.approx(expected)


def test_many_items_are_exchanged_in_some_ways(monkeypatch):
    a, b = np.random.default_rng(9).random((2, 12))
    exact = paired(MEAN, records_of(a), records_of(b)).p
    monkeypatch.setattr(statistics, "N_PERMUTATIONS", 4000)  # fewer than there are ways
    monkeypatch.setattr(statistics, "BLOCK_ELEMENTS", 5000)
    drawn = paired(MEAN, records_of(a), records_of(b)).p
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))


def test_a_clear_difference_of_many_items_is_as_rare_as_can_be_seen():
    random = np.random.default_rng(9)
    b = random.random(400)
    assert paired(MEAN, records_of(b + 0.5), records_of(b)).p == 1 / 10_001


def test_without_a_difference_p_is_1():
    values = np.random.default_rng(3).random(40)
    result = paired(MEAN, records_of(values), records_of(values))
    assert (result.difference, result.low, result.high, result.p) == (0, 0, 0, 1)
    assert paired(MEAN, records_of([1, 0]), records_of([1, 0])).p == 1


def test_the_interval_of_a_difference_is_that_of_items_drawn_for_both():
    random = np.random.default_rng(5)
    hard = random.normal(0, 10, 500)  # what both runs share
    a, b = hard + random.normal(1, 1, 500), hard + random.normal(0, 1, 500)
    result = paired(MEAN, records_of(a), records_of(b))
    half = 1.96 * (a - b).std() / math.sqrt(500)
    expected = ((a - b).mean() - half, (a - b).mean() + half)
    assert (result.low, result.high) == pytest.approx(expected, abs=half / 8)


def test_items_are_joined_by_their_ids_in_any_order():
    a = records_of([1, 1, 0, 1])
    b = [*reversed(records_of([0, 1, 0])), Record("another", "", {"match": 1.0}, 1, 1)]
    result = paired(MEAN, a, b)
    assert (result.n, result.difference, result.p) == (3, pytest.approx(1 / 3), 1)


def test_runs_without_an_item_in_common_are_refused():
    with pytest.raises(ValueError, match="no item in common that counts for match"):
        paired(MEAN, records_of([1]), [Record("another", "", {"match": 1.0}, 1, 1)])
    with pytest.raises(ValueError, match="no item in common that counts for nll"):
        paired(RATIO, token_records([0.0], [0]), token_records([0.0], [0]))


def test_holm_of_a_known_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
