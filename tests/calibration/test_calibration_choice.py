"""Of the settings compared on held-out text none is chosen that another beats, at more skipped and less lost."""

from __future__ import annotations

import numpy as np
import pytest

from ffnskip_cpp import SkipConfig
from ffnskip_cpp.calibration.choice import Row, beats, best, equal, most_within

N_CHUNKS, OF_EACH = 12, 50
CHUNK = np.repeat(np.arange(N_CHUNKS), OF_EACH)
TEXT = np.random.default_rng(0).gamma(0.3, 1 / 0.3, N_CHUNKS * OF_EACH)  # what a token costs, whatever is skipped


def row(policy, ratio, kl, *, checks=0.0, own=0.02, seed=1, config=None):
    """`own` is the size of what is the setting's own, token by token, and not the text's."""
    noise = np.random.default_rng(seed).normal(size=TEXT.shape) * own
    values = kl * TEXT / TEXT.mean() + noise - noise.mean()
    config = config or SkipConfig(policy, layers=[1] if "fixed" in policy else None)
    return Row(
        policy,
        "held out",
        ratio,
        ratio,
        1.0,
        float(values.mean()),
        0.1,
        0.5,
        1.0,
        checks,
        len(values),
        config,
        values,
        CHUNK,
    )


FIXED = row("fixed", 0.267, 1.33)
ALGORITHM_1 = row("ffn_skip", 0.251, 3.02, checks=2, seed=2)


def test_a_set_that_skips_more_at_less_cost_wins_over_one_nearer_to_the_ratio():
    """As reported of SmolLM2."""
    assert best([ALGORITHM_1, FIXED], 0.25) is FIXED
    assert beats(FIXED, ALGORITHM_1) and not beats(ALGORITHM_1, FIXED)


def test_a_percentage_point_less_will_do_and_two_will_not():
    less = row("fixed", 0.2401, 0.8, seed=3)
    assert best([FIXED, less], 0.25) is less
    assert best([FIXED, row("fixed", 0.233, 0.8, seed=3)], 0.25) is FIXED


def test_the_papers_values_are_chosen_where_they_are_better():
    reference = row("ffn_skip, uncalibrated", 0.25, 0.4, checks=1, seed=4, config=SkipConfig(skip_ratio=0.25))
    assert best([FIXED, ALGORITHM_1, reference], 0.25) is reference


def test_no_random_policy_is_chosen():
    reference = row("random", 0.25, 0.1, seed=5, config=SkipConfig("random"))
    assert best([FIXED, ALGORITHM_1, reference], 0.25) is FIXED


@pytest.mark.parametrize("difference", [0.0005, -0.0005])
def test_of_equals_the_simpler_one_is_chosen(difference):
    adaptive = row("fixed_plus_ffn_skip", 0.25, 1.33 + difference, checks=1.5, seed=6)
    more_checks = row("ffn_skip", 0.25, 1.33 - 0.0004, checks=4, seed=7)
    assert equal(FIXED, adaptive)
    assert best([more_checks, adaptive, FIXED], 0.25) is FIXED
    assert best([more_checks, adaptive], 0.25) is adaptive


def test_a_small_difference_on_every_token_is_one_although_both_errors_are_large():
    """The errors of two settings on one text are nearly all the text's: what counts is that of the difference."""
    better = row("fixed_plus_ffn_skip", 0.267, 1.30, checks=1, seed=8)
    assert np.std([TEXT[CHUNK == i].mean() for i in range(N_CHUNKS)]) / np.sqrt(N_CHUNKS) > 0.03
    assert not equal(FIXED, better) and best([FIXED, better], 0.25) is better


def test_most_is_skipped_within_a_divergence_the_papers_values_included():
    reference = row("ffn_skip, uncalibrated", 0.3, 0.9, checks=1, seed=4, config=SkipConfig(skip_ratio=0.3))
    random = row("random", 0.5, 0.1, seed=5, config=SkipConfig("random"))
    cheaper = row("fixed", 0.2, 0.4)
    assert most_within([cheaper, FIXED, random], 1.0) is cheaper
    assert most_within([cheaper, FIXED, random, reference], 1.0) is reference
    assert most_within([FIXED, random], 0.5) is None


def test_what_cannot_be_reached_is_missed_by_the_least():
    rows = [row("fixed", 0.1, 0.1), row("fixed", 0.2, 0.4), row("ffn_skip", 0.2, 0.6, checks=1)]
    assert best(rows, 0.5) is rows[1]


@pytest.mark.parametrize("seed", range(200))
def test_the_chosen_row_is_never_beaten(seed):
    rng = np.random.default_rng(seed)
    rows = [
        row(str(policy), rng.uniform(0.2, 0.35), rng.choice([0.5, 1, 1.01, 2]), checks=rng.integers(3), own=0.3, seed=i)
        for i, policy in enumerate(rng.choice(["fixed", "ffn_skip", "fixed_plus_ffn_skip"], size=6))
    ]
    chosen = best(rows, 0.25)
    enough = [other for other in rows if other.skip_ratio >= 0.24]
    assert not any(beats(other, chosen) for other in rows)
    if enough:
        least = min(enough, key=lambda other: other.kl)
        assert chosen in enough and (chosen is least or equal(chosen, least))
