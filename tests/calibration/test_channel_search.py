"""The search for channel thresholds, part by part: against the core's own choice of channels, plain loops, and settings
drawn at random."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from ffnskip_cpp import Llama, SkipConfig, _core
from ffnskip_cpp.calibration.cache import open_cache
from ffnskip_cpp.calibration.channels import GROWTH, ChannelSearch, groups
from ffnskip_cpp.calibration.costs import FFN, byte_costs
from ffnskip_cpp.calibration.effort import EFFORTS
from ffnskip_cpp.calibration.evaluation import Evaluator, Score
from ffnskip_cpp.calibration.race import Race
from ffnskip_cpp.calibration.reaches import MOST, Inputs
from ffnskip_cpp.measure.policies import all_kept
from ffnskip_cpp.measure.text import Chunk

WARM_UP = 4
N_LAYER = 16
TOKENS = [[(7 * i * i + 3 * i + seed) % 250 for i in range(40)] for seed in (1, 2, 3)]
CHUNKS = [Chunk(tokens, list(range(40))) for tokens in TOKENS]
EDGES = _core.reach_edges().astype(float)


class Told:
    def expect(self, n):
        pass

    def __call__(self, n):
        pass

    def found(self, n):
        pass


@pytest.fixture
def llm(model_file):
    with Llama(str(model_file("llama", n_layer=N_LAYER)), skip=None, n_ctx=256, verbose=False) as llm:
        yield llm


# ---- what is recorded ----


@pytest.mark.parametrize("kind", [2, 3])
@pytest.mark.parametrize("il", [0, 7, 15])
def test_as_many_channels_are_counted_below_a_threshold_as_the_core_leaves_out(llm, il, kind):
    """Of one input alone: what it holds is what it holds in the dense model."""
    with llm.skipping(all_kept(N_LAYER, "ffn", WARM_UP)), llm.trace(reaches=True) as dense:
        logits = llm.forward(TOKENS[0], [i >= WARM_UP for i in range(40)])
    with llm.dense():
        assert (logits == llm.forward(TOKENS[0])).all()
    counts = dense.reaches[il, kind]
    n_channels = counts.sum() // (40 - WARM_UP)
    assert n_channels in (64, 128, 176, 192, 256) and (dense.reaches[:, :2] == 0).all()
    for share in (0.2, 0.5, 0.8):
        first = int(np.searchsorted(counts.cumsum(), share * counts.sum()))
        thresholds = np.zeros((N_LAYER, 4))
        thresholds[il, kind] = EDGES[first]
        config = SkipConfig("channels", channel_thresholds=thresholds.ravel().tolist())
        with llm.skipping(config), llm.trace() as trace:
            llm.forward(TOKENS[0], [i >= WARM_UP for i in range(40)])
        left_out = round(float((1 - trace.kept[:, il, kind].astype(float)).sum() * n_channels))
        assert left_out == counts[:first].sum()


def test_reaches_of_one_token_at_a_time_are_those_of_a_batch(llm):
    config = all_kept(N_LAYER, "ffn", warm_up_index=0)
    with llm.skipping(config), llm.trace(reaches=True) as batch:
        llm.forward(TOKENS[0][:12])
    with llm.skipping(config), llm.trace(reaches=True) as single:
        for i in range(12):
            llm.forward(TOKENS[0][: i + 1], keep=i)
    assert single.reaches.sum() == batch.reaches.sum() > 0
    moved = np.abs(single.reaches.astype(float).cumsum(axis=-1) - batch.reaches.astype(float).cumsum(axis=-1))
    assert moved.max() <= 3  # from one bin to the next, by rounding


def test_nobody_counts_who_is_not_asked_to(llm):
    with llm.skipping(SkipConfig("channels")), llm.trace() as trace:
        llm.forward(TOKENS[0])
    assert trace.reaches.shape == (0, 4, 256)


# ---- what is saved ----


def made_up(seed=0, n_layer=6, kinds=(2, 3), n_tokens=50):
    """Inputs of lognormal reaches, 100 channels of x and 300 of z, and the reaches themselves by layer and kind."""
    rng = np.random.default_rng(seed)
    n_bytes = np.zeros((n_layer, 4, 2))
    counts = np.zeros((n_layer, 4, 256), np.uint64)
    values = {}
    for il in range(n_layer):
        for kind in kinds:
            n = 300 if kind == 3 else 100
            values[il, kind] = rng.lognormal(rng.normal(-3, 1), 1.2, n_tokens * n)
            counts[il, kind] = np.histogram(values[il, kind], EDGES)[0]
            n_bytes[il, kind] = (2000, 2000 + 80 * n)
    blocks = np.zeros((n_layer, 3))
    blocks[:, FFN] = n_bytes[:, 2:, 1].sum(axis=1)
    return Inputs(n_bytes, counts, n_tokens, byte_costs(2 * blocks.sum(), blocks)), n_bytes, values


def test_what_thresholds_save_is_what_counting_channels_says():
    inputs, n_bytes, values = made_up()
    rng = np.random.default_rng(1)
    thresholds = np.zeros((6, 4))
    for index in values:
        thresholds[index] = np.quantile(values[index], rng.uniform(0, 0.9))
    saved = sum((v < thresholds[index]).mean() * np.ptp(n_bytes[index]) for index, v in values.items())
    assert inputs.saved(thresholds) == pytest.approx(saved / n_bytes[..., 1].sum(), abs=0.003)
    energy = inputs.energy(thresholds)
    for index, v in values.items():
        assert energy[index] == pytest.approx((v[v < thresholds[index]] ** 2).sum() / 50, rel=0.05)
        assert inputs.below(0.3)[index] == pytest.approx(np.quantile(v, 0.3), rel=0.02)
    whole = n_bytes[2, 2:, 1].sum() + sum(
        (v < thresholds[index]).mean() * np.ptp(n_bytes[index]) for index, v in values.items() if index[0] != 2
    )
    assert inputs.saved(thresholds, [2]) == pytest.approx(whole / n_bytes[..., 1].sum(), abs=0.003)


@pytest.mark.parametrize("layers", [(), (1, 4)])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.6, 0.9])
def test_thresholds_in_any_proportions_save_what_is_wanted_or_nothing_can(ratio, layers):
    inputs, _, _ = made_up()
    shape = np.random.default_rng(2).uniform(0.5, 2, (6, 4))
    thresholds = inputs.saving(shape, ratio, layers)
    possible = ratio > 2 / 6 if layers else ratio < 0.8
    assert (thresholds is not None) == (possible and ratio < 0.9)
    if thresholds is None:
        return
    assert inputs.saved(thresholds, layers) == pytest.approx(ratio, abs=1e-4)
    assert (thresholds[:, :2] == 0).all() and (thresholds[list(layers), 2:] == 0).all()
    proportion = thresholds / shape
    free = (proportion > 0) & (inputs.left_out(thresholds) < MOST - 0.01)
    assert np.ptp(proportion[free]) < 1e-3 * proportion[free].mean()
    assert inputs.left_out(thresholds).max() <= MOST + 1e-3


# ---- what is found ----


def test_the_ends_are_groups_by_themselves():
    assert groups(np.ones(12, bool), 4) == [[0], [1, 2, 3, 4], [5, 6, 7], [8, 9, 10], [11]]
    assert groups(np.arange(12) % 2 == 1, 2) == [[1], [3, 5], [7, 9], [11]]
    assert groups(np.ones(2, bool), 4) == [[0], [1]] and groups(np.zeros(3, bool), 4) == []


class Additive:
    """Evaluates nothing: what inputs cost adds up, as the search takes it to; rounding costs, too."""

    def __init__(self, inputs, costs, rounding=0.003):
        self._inputs, self._costs, self._rounding = inputs, costs, rounding
        self.n_evaluated = 0

    def at_most(self, n_tokens):
        return contextlib.nullcontext()

    def kl(self, config):
        thresholds = np.reshape(config.channel_thresholds, (-1, 4))
        return self._rounding + float((self._costs * self._inputs.energy(thresholds)).sum())

    def scores(self, configs, chunks):
        self.n_evaluated += len(configs) * len(chunks)
        return [self._score(config, len(chunks)) for config in configs]

    def score(self, config, chunks):
        return self.scores([config], chunks)[0]

    def _score(self, config, n_chunks):
        text = np.random.default_rng(0).gamma(2, 0.5, 160)[: 10 * n_chunks]  # the same for all settings
        score = Score(config)
        score.kl = self.kl(config) * text / text.mean()
        score.saved = self._inputs.saved(np.reshape(config.channel_thresholds, (-1, 4)))
        score.quality = type("Quality", (), {"kl": float(score.kl.mean())})()
        return score


def searching(inputs, costs, effort="normal"):
    evaluator = Additive(inputs, costs)
    race = Race(evaluator, [Chunk([0] * 10, list(range(10)))] * 16, 1)
    return ChannelSearch(evaluator, inputs, race, EFFORTS[effort], 30), evaluator


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_no_setting_drawn_at_random_that_saves_as_much_costs_less(ratio, effort):
    inputs, _, _ = made_up(n_layer=3)  # so that each layer is a group
    rng = np.random.default_rng(3)
    costs = rng.lognormal(0, 1.5, (3, 4))
    search, evaluator = searching(inputs, costs, effort)
    found = search.candidate(ratio)
    assert found.score.saved == pytest.approx(ratio, abs=0.004)
    at_ratio = evaluator.kl(search.saving(found, ratio).config)
    others = [inputs.saving(rng.lognormal(-3, 1, (3, 4)), ratio) for _ in range(300)]
    kl = [evaluator.kl(found.config.replace(channel_thresholds=other.ravel().tolist())) for other in others]
    assert at_ratio <= min(kl) * 1.01
    equal = inputs.below(min(1, ratio * 1.2) * np.array([0, 0, 1, 1]))
    assert at_ratio < evaluator.kl(found.config.replace(channel_thresholds=equal.ravel().tolist()))


def test_the_evaluations_are_foretold():
    inputs, _, _ = made_up(n_layer=12)
    for effort in EFFORTS:
        search, evaluator = searching(inputs, np.ones((12, 4)), effort)
        expected = search.n_evaluations()
        search.candidate(0.3)
        assert 0.3 * expected < evaluator.n_evaluated <= expected


def test_another_ratio_uses_what_was_found_and_costs_little():
    inputs, _, _ = made_up(n_layer=12)
    search, evaluator = searching(inputs, np.random.default_rng(4).lognormal(0, 1, (12, 4)))
    one = search.candidate(0.3)
    before = evaluator.n_evaluated
    other = search.candidate(0.4)
    assert evaluator.n_evaluated - before <= 2 * 16
    assert other.score.kl.mean() > one.score.kl.mean()
    again = search.saving(other, 0.3)
    assert np.allclose(again.config.channel_thresholds, search.saving(one, 0.3).config.channel_thresholds)


def test_a_divergence_is_met_where_costs_add_up():
    inputs, _, _ = made_up(n_layer=12)
    costs = np.random.default_rng(5).lognormal(0, 1, (12, 1)) * np.ones(4)
    search, evaluator = searching(inputs, costs, "thorough")
    for limit in (0.5, 2.0):
        ratio = search.expected_ratio(limit)
        by_cost = inputs.saving(np.sqrt(inputs.saved_per_channel / search.costs), ratio)
        config = SkipConfig("channels", channel_thresholds=by_cost.ravel().tolist())
        assert evaluator.kl(config) - 0.003 == pytest.approx(limit, rel=0.35)
    assert GROWTH > 1


# ---- on a model ----


def test_what_a_score_says_is_left_out_is_what_the_core_counts(llm, tmp_path):
    thresholds = np.tile([0.0, 0.0, 0.02, 0.02], (N_LAYER, 1))
    config = SkipConfig("channels", channel_thresholds=thresholds.ravel().tolist(), layers=[3], warm_up_index=WARM_UP)
    with open_cache(tmp_path / "j", "m", "p") as cache:
        evaluator = Evaluator(llm, cache, WARM_UP, Told())
        n_bytes = evaluator.inputs("ffn")
        blocks = np.zeros((N_LAYER, 3))
        blocks[:, FFN] = n_bytes[:, 2:, 1].sum(axis=1)
        costs = byte_costs(2 * blocks.sum(), blocks)
        evaluator.weigh(costs, costs)
        score = evaluator.score(config, CHUNKS)
    assert (n_bytes[:, 2:, 1] > n_bytes[:, 2:, 0]).all() and (n_bytes[:, :2] == 0).all()
    rows = range(WARM_UP, 39)
    with llm.skipping(config):
        llm.reset_stats()
        for tokens in TOKENS:
            llm.forward(tokens[:39], [i in rows for i in range(39)])
        stats = llm.stats
    assert score.skip_ratio == pytest.approx(stats.bytes_left_out / stats.bytes_total, rel=1e-4)
    assert 1 / N_LAYER < score.skip_ratio < 0.9
    assert (score.channels_kept[3, 2:] == 0).all() and np.isnan(score.channels_kept[:, :2]).all()
    kept = stats.channels_kept[:, 2:] / stats.channels_total[:, 2:]
    assert np.allclose(score.channels_kept[:, 2:], kept, atol=1e-5)
