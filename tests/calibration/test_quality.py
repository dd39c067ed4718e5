"""KL divergence, agreement and perplexity agree with sums written out in plain Python, whatever the logits' size."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from ffnskip_cpp.measure import quality
from ffnskip_cpp.measure.quality import Quality, Reference, compare, standard_error

ROUNDING = 1e-12  # of float64 sums over some hundred terms


def log_softmax(row):
    """By the textbook, in Python's exact sums."""
    largest = max(map(float, row))
    total = math.log(math.fsum(math.exp(float(x) - largest) for x in row))
    return [float(x) - largest - total for x in row]


def expected_kl(p, q):
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(log_softmax(p), log_softmax(q)))


def random_logits(n_rows, n_vocab, scale=5.0, seed=0):
    rng = np.random.default_rng(seed)
    dense = (rng.standard_normal((n_rows, n_vocab)) * scale).astype(np.float32)
    other = (dense + rng.standard_normal((n_rows, n_vocab))).astype(np.float32)
    return dense, other, rng.integers(n_vocab, size=n_rows).tolist()


@pytest.mark.parametrize("n_rows", [1, 31, 32, 33])
@pytest.mark.parametrize("block_elements", [1, 500, 2**21])
def test_measures_agree_with_sums_written_out(monkeypatch, n_rows, block_elements):
    monkeypatch.setattr(quality, "BLOCK_ELEMENTS", block_elements)
    dense, other, targets = random_logits(n_rows, 50)
    rows = compare(dense, other, targets)
    np.testing.assert_allclose(rows.kl, [expected_kl(p, q) for p, q in zip(dense, other)], rtol=ROUNDING)
    for logits, nll in ((dense, rows.nll_dense), (other, rows.nll)):
        expected = [-log_softmax(row)[target] for row, target in zip(logits, targets)]
        np.testing.assert_allclose(nll, expected, rtol=ROUNDING)
    same = [max(range(50), key=p.__getitem__) == max(range(50), key=q.__getitem__) for p, q in zip(dense, other)]
    assert rows.same_top1.tolist() == same


@pytest.mark.parametrize("scale", [0.1, 5.0, 40.0])
@pytest.mark.parametrize("n_vocab", [2, 50, 50_000])
def test_a_kept_reference_says_the_same_within_1e_5(n_vocab, scale):
    dense, other, targets = random_logits(8, n_vocab, scale)
    exact, kept = compare(dense, other, targets), Reference(dense, targets).compare(other)
    assert kept.same_top1.tolist() == exact.same_top1.tolist()
    for name in ("kl", "nll", "nll_dense"):
        np.testing.assert_allclose(getattr(kept, name), getattr(exact, name), atol=1e-5, rtol=1e-6, err_msg=name)
    assert (Reference(dense, targets).compare(dense).kl < 1e-5).all()


def test_logits_that_are_not_finite_cost_everything_and_make_no_reference():
    dense, other, targets = random_logits(3, 10)
    other[1, 3], other[2, 0] = np.nan, np.inf
    assert np.isinf(Reference(dense, targets).compare(other).kl).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="the dense model's logits are not finite"):
        Reference(other, targets)


def test_a_case_by_hand():
    dense = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    other = np.log(np.array([[0.25, 0.5, 0.25]], np.float32))
    rows = compare(dense, other, [1])
    assert rows.kl[0] == pytest.approx(0.25 * math.log(2), rel=1e-6)  # 0.5 ln 2 - 0.25 ln 2; float32 logarithms
    assert (rows.nll_dense[0], rows.nll[0]) == pytest.approx((math.log(4), math.log(2)), rel=1e-6)
    assert not rows.same_top1[0]


def test_equal_logits_differ_by_nothing_at_all():
    dense, _, targets = random_logits(8, 1000)
    rows = compare(dense, dense.copy(), targets)
    assert (rows.kl == 0).all() and rows.same_top1.all()
    np.testing.assert_array_equal(rows.nll, rows.nll_dense)


def test_kl_of_nearly_equal_logits_keeps_its_digits():
    """A difference d of one logit of probability p gives p (1 - p) d**2 / 2, far below float32's resolution of 1."""
    dense = np.zeros((1, 2), np.float32)
    other = np.array([[0.0, 1e-5]], np.float32)
    assert compare(dense, other, [0]).kl[0] == pytest.approx(0.125e-10, rel=1e-4)


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_logits_of_any_size_neither_overflow_nor_lose_the_tail(shift):
    dense = np.array([[0.0, -200.0, 100.0]], np.float32) + np.float32(shift)
    other = np.array([[50.0, 0.0, 0.0]], np.float32) + np.float32(shift)
    rows = compare(dense, other, [1])
    assert rows.kl[0] == pytest.approx(50.0, rel=ROUNDING)
    assert (rows.nll_dense[0], rows.nll[0]) == (300.0, 50.0)


def test_tokens_that_are_ruled_out_count_for_nothing_unless_they_are_needed():
    inf = math.inf
    dense = np.array([[0.0, 0.0, -inf], [0.0, 0.0, -inf], [0.0, 0.0, 0.0]], np.float32)
    other = np.array([[0.0, 0.0, -inf], [0.0, 0.0, 0.0], [0.0, 0.0, -inf]], np.float32)
    rows = compare(dense, other, [0, 0, 2])
    assert rows.kl.tolist() == pytest.approx([0.0, math.log(1.5), inf])
    assert rows.nll.tolist() == pytest.approx([math.log(2), math.log(3), inf])


def test_nan_shows():
    dense, other, targets = random_logits(3, 10)
    other[1, 4] = np.nan
    rows = compare(dense, other, targets)
    assert np.isnan(rows.kl).tolist() == [False, True, False]
    assert np.isnan(rows.nll).tolist() == [False, True, False]


def test_means_are_those_of_all_rows_added():
    dense, other, targets = random_logits(40, 30)
    total = Quality()
    for part in (slice(0, 7), slice(7, 40)):
        total.add(compare(dense[part], other[part], targets[part]))
    rows = compare(dense, other, targets)
    assert total.n_rows == 40
    assert total.kl_error == pytest.approx(standard_error(rows.kl, np.repeat([0, 1], [7, 33])))
    assert total.kl == pytest.approx(rows.kl.mean())
    assert total.top1_agreement == pytest.approx(rows.same_top1.mean())
    assert total.perplexity == pytest.approx(math.exp(rows.nll.mean()))
    assert total.perplexity_dense == pytest.approx(math.exp(rows.nll_dense.mean()))
    assert total.perplexity_ratio == pytest.approx(total.perplexity / total.perplexity_dense)


def test_uniform_logits_have_the_vocabulary_for_perplexity():
    total = Quality()
    total.add(compare(np.zeros((4, 128), np.float32), np.zeros((4, 128), np.float32), [0, 1, 2, 127]))
    assert (total.perplexity, total.perplexity_ratio) == (pytest.approx(128), 1)


def test_no_rows_have_no_means():
    total = Quality()
    total.add(compare(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32), []))
    assert total.n_rows == 0
    for name in ("kl", "top1_agreement", "perplexity", "perplexity_ratio"):
        assert math.isnan(getattr(total, name))
    assert math.isnan(Quality().kl_error)


def test_rows_past_the_last_target_are_passed_over():
    dense, other, targets = random_logits(5, 10)
    rows = compare(dense, other, targets[:4])
    assert len(rows) == 4
    np.testing.assert_array_equal(rows.kl, compare(dense[:4], other[:4], targets[:4]).kl)
    np.testing.assert_array_equal(rows[1:].kl, rows.kl[1:])


def test_a_large_vocabulary_takes_a_bounded_amount_of_memory():
    """In float64 at once, 256 rows of 128k would be 268 MB, several times over."""
    dense = np.zeros((256, 131072), np.float32)
    tracemalloc.start()
    try:
        compare(dense, dense, [0] * 256)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * quality.BLOCK_ELEMENTS * 8


@pytest.mark.parametrize(
    ("shapes", "targets", "message"),
    [
        (((2, 4), (2, 5)), [0], r"shape \(2, 4\) and \(2, 5\); expected the same"),
        (((4,), (4,)), [0], r"shape \(4,\) and \(4,\); expected the same \[n_rows, n_vocab\]"),
        (((2, 4), (2, 4)), [0, 0, 0], "targets: 3 for 2 rows"),
        (((2, 4), (2, 4)), [0, 4], r"ids must be in \[0, 4\); got 0 to 4"),
        (((2, 4), (2, 4)), [-1, 0], r"ids must be in \[0, 4\); got -1 to 0"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, targets, message):
    dense, other = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        compare(dense, other, targets)
