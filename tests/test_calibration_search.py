"""The parts of the search for settings, each against something that says the same in another way: loops over tokens and
layers, all thresholds there are, exhaustive greedy selection, the C++ core."""

from __future__ import annotations

import numpy as np
import pytest

from ffnskip_cpp import Llama, SkipConfig
from ffnskip_cpp.calibration.evaluation import Evaluator, Score
from ffnskip_cpp.calibration.journal import open_journal
from ffnskip_cpp.calibration.search import GreedySet, Model, Search, _regions
from ffnskip_cpp.calibration.simulation import Region, ranks, skipped, solve, thresholds_at_rank, trips
from ffnskip_cpp.calibration.work import Parts

WARM_UP = 4
TOKENS = [[(7 * i * i + 3 * i + seed) % 250 for i in range(40)] for seed in (1, 2, 3)]


def similarities(seed, n_tokens=60, n_layers=6, levels=None):
    values = np.random.default_rng(seed).uniform(0.5, 1, (n_tokens, n_layers)).astype(np.float32)
    return values if levels is None else np.round(values * levels) / np.float32(levels)


def algorithm_1(row, thresholds, max_skip):
    """Which layers one token skips."""
    for layer, (similarity, threshold) in enumerate(zip(row, thresholds)):
        if similarity >= threshold:
            return [after for after in range(layer + 1, len(row)) if after <= layer + max_skip]
    return []


# ---- simulation ----


@pytest.mark.parametrize("levels", [None, 8])
@pytest.mark.parametrize("max_skip", [1, 3, 9])
def test_the_simulation_is_algorithm_1(levels, max_skip):
    similarity = similarities(0, levels=levels)
    similarity[5, 2:] = np.nan
    thresholds = [0.95, 0.9, 2.0, 0.8, 0.85, 0.5]
    skips = skipped(trips(similarity, thresholds), Region(tuple(range(6)), max_skip))
    assert [np.flatnonzero(row).tolist() for row in skips] == [
        algorithm_1(row, thresholds, max_skip) for row in similarity
    ]
    assert 0 < skips.sum() < skips.size


@pytest.mark.parametrize("levels", [None, 8])
@pytest.mark.parametrize("max_skip", [1, 2, 5])
@pytest.mark.parametrize("wanted", [0.05, 0.7, 1.4, 4.0])
def test_no_threshold_comes_nearer_than_the_solution(levels, max_skip, wanted):
    similarity = similarities(1, levels=levels)

    def n_skipped(threshold):
        return np.mean([len(algorithm_1(row, [threshold] * 6, max_skip)) for row in similarity])

    threshold, found = solve(similarity, max_skip, wanted)
    assert found == pytest.approx(n_skipped(threshold))
    nearest = min(abs(n_skipped(value) - wanted) for value in [-1, 2, *similarity.ravel().tolist()])
    assert abs(found - wanted) <= nearest + 1e-9


@pytest.mark.parametrize("rank", [-1.0, 0.0, 0.013, 0.5, 0.75, 0.99])
def test_a_rank_stands_for_a_threshold_of_each_layer(rank):
    similarity = similarities(2)
    reached = similarity >= np.array(thresholds_at_rank(similarity, rank))
    assert (reached == (ranks(similarity) >= rank)).all()


@pytest.mark.parametrize(
    "config",
    [
        SkipConfig(sim_threshold=0.93, cold_s=2, cold_e=12, max_skip=3, warm_up_index=WARM_UP),
        SkipConfig("fixed_plus_ffn_skip", 0.95, cold_s=1, cold_e=13, max_skip=2, layers=[3, 6], warm_up_index=WARM_UP),
        SkipConfig(
            "ffn_skip_per_layer",
            layer_thresholds=[9, 9, 0.97, 0.9, *[0.95] * 8, *[9] * 4],
            cold_s=2,
            cold_e=12,
            max_skip=4,
            warm_up_index=WARM_UP,
        ),
    ],
    ids=lambda config: config.policy,
)
def test_it_skips_what_the_core_does_with_the_same_similarities(model_file, config):
    fixed = config.layers or []
    layers = [il for il in range(config.cold_s, config.cold_e) if il not in fixed]
    thresholds = [config.layer_thresholds[il] for il in layers] if config.layer_thresholds else config.sim_threshold
    with (
        Llama(str(model_file("llama", n_layer=16)), skip=config, n_ctx=256, verbose=False) as llm,
        llm.trace() as trace,
    ):
        for tokens in TOKENS:
            llm.forward(tokens)
    rows = np.arange(len(trace.skipped)) % 40 >= WARM_UP
    with np.errstate(invalid="ignore"):
        expected = skipped(
            trips(trace.similarity[rows][:, layers], np.float32(thresholds)), Region(tuple(layers), config.max_skip)
        )
    assert (trace.skipped[rows][:, layers] == expected).all()
    assert 0 < expected.sum() and len({tuple(row) for row in expected}) > 2


# ---- journal ----


def test_a_journal_keeps_entries_by_subject_and_key_until_all_is_done(tmp_path):
    path = tmp_path / "j"
    with pytest.raises(RuntimeError), open_journal(path, "model a") as journal:
        journal.add({"x": np.array([1.5, np.nan]), "flags": np.array([True])}, "key", 1)
        raise RuntimeError
    assert path.exists()
    with pytest.raises(RuntimeError), open_journal(path, "model b") as journal:
        assert journal.find("key", 1) is None
        raise RuntimeError
    with open_journal(path, "model a") as journal:
        assert journal.find("key", 2) is None
        found = journal.find("key", 1)
        assert np.array_equal(found["x"], [1.5, np.nan], equal_nan=True) and found["flags"].dtype == np.bool_
    assert not path.exists()


def test_a_file_that_is_no_journal_is_named_and_left(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b"something else, and long enough not to be taken for an empty database" * 20)
    with pytest.raises(OSError, match=str(path)), open_journal(path, "model"):
        pass
    assert path.read_bytes().startswith(b"something else")


# ---- evaluation ----


@pytest.fixture
def llm(model_file):
    with Llama(str(model_file("llama", n_layer=16)), skip=None, n_ctx=256, verbose=False) as llm:
        yield llm


def log_softmax(logits):
    logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_a_score_is_of_the_rows_past_the_warm_up_that_predict_a_known_token(llm, tmp_path):
    config = SkipConfig("fixed", layers=[2, 5, 9], warm_up_index=WARM_UP)
    with open_journal(tmp_path / "j", "m") as journal:
        score = Evaluator(llm, journal, WARM_UP, lambda n: None).score(config, TOKENS)
    kl, ratio = [], []
    for tokens in TOKENS:
        p = log_softmax(llm.forward(tokens))
        llm.skip = config
        q = log_softmax(llm.forward(tokens))
        llm.skip = None
        kl.append((np.exp(p) * (p - q)).sum(axis=1)[WARM_UP:-1])
        ratio.append((np.exp(q - p), tokens))
    assert np.allclose(score.kl, np.concatenate(kl), atol=1e-9) and score.quality.n_rows == 3 * (40 - WARM_UP - 1)
    log_ratio = np.concatenate(
        [np.log([row[token] for row, token in zip(r[WARM_UP:-1], t[WARM_UP + 1 :])]) for r, t in ratio]
    )
    assert score.quality.perplexity_ratio == pytest.approx(np.exp(-log_ratio.mean()))
    assert score.skip_ratio == 3 / 16 and score.checks == 0


def test_what_is_in_the_journal_is_not_evaluated_again(llm, tmp_path, monkeypatch):
    config, counted = SkipConfig("fixed", layers=[2], warm_up_index=WARM_UP), []
    with open_journal(tmp_path / "j", "m") as journal:
        first = Evaluator(llm, journal, WARM_UP, lambda n: None)
        score, similarity = first.score(config, TOKENS), first.similarity(TOKENS[0])
        monkeypatch.setattr(Llama, "_evaluate", lambda *_: pytest.fail("evaluated again"))
        again = Evaluator(llm, journal, WARM_UP, counted.append)
        assert (again.score(config, TOKENS).kl == score.kl).all()
        assert np.array_equal(again.similarity(TOKENS[0]), similarity, equal_nan=True)
    assert counted == [40, 40, 40, 40]
    assert similarity.shape == (40 - WARM_UP - 1, 16) and np.isnan(similarity).all(axis=0).tolist() == [False] * 15 + [
        True
    ]


# ---- the fixed set ----


def scored(kl):
    score = Score(SkipConfig(), 1)
    score.kl = np.asarray(kl, float)
    return score


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_set_is_that_of_measuring_every_block_each_time(seed):
    rng = np.random.default_rng(seed)
    alone, together = rng.uniform(0.1, 1, (12, 4)), rng.uniform(0, 0.3, (12, 12, 4))

    def cost(layers):  # each pair costs something besides: what a block adds only grows
        pairs = [together[a, b] for a in layers for b in layers if a < b]
        return sum((alone[il] for il in layers), np.zeros(4)) + sum(pairs, np.zeros(4))

    measured = []

    def measure(config):
        measured.append(config.layers)
        return scored(cost(config.layers))

    chosen = []
    for _ in range(5):
        left = [il for il in range(12) if il not in chosen]
        chosen.append(min(left, key=lambda il: cost(sorted([*chosen, il])).mean()))
    greedy = GreedySet(Model(14, 14, tuple(range(12)), (1, 12), 0), measure)
    assert greedy.layers(5) == chosen
    assert len(measured) < 12 + 11 + 10 + 9 + 8
    assert greedy.score(3).kl == pytest.approx(cost(sorted(chosen[:3])))
    assert greedy.alone == pytest.approx({il: alone[il].mean() for il in range(12)})
    assert np.isinf(greedy.costs_beside(chosen)[:, 12:]).all()


# ---- the search ----


@pytest.mark.parametrize("n_layer", [2, 3, 4, 16])
@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.6, 0.93])
def test_every_region_can_skip_what_is_wanted_and_holds_nothing_that_cannot(n_layer, ratio):
    skippable = tuple(il for il in range(n_layer - 1) if il != 5)
    model = Model(n_layer, n_layer - 1, skippable, (0, n_layer - 1), 0)
    regions = list(_regions(skippable, ratio * n_layer, model))
    assert bool(regions) == (np.ceil(ratio * n_layer) < len(skippable))
    for region in regions:
        assert set(region.layers) <= set(skippable) and list(region.layers) == sorted(region.layers)
        assert ratio * n_layer <= region.max_skip + 1e-9 and region.max_skip < len(region.layers)


def test_candidates_skip_what_was_asked_for_one_of_each_policy(llm, tmp_path):
    pieces = TOKENS[:2]
    with open_journal(tmp_path / "j", "m") as journal:
        evaluator = Evaluator(llm, journal, WARM_UP, lambda n: None)
        similarity = np.concatenate([evaluator.similarity(tokens) for tokens in TOKENS])
        search = Search(evaluator, Model(16, 16, tuple(range(15)), (1, 14), WARM_UP), similarity, pieces)
        candidates = search.candidates(0.2)
        assert [c.config.policy for c in candidates] == [
            *("fixed", "ffn_skip", "ffn_skip_per_layer", "fixed_plus_ffn_skip")
        ]
        assert len(candidates[0].config.layers) == 3
        for candidate in candidates[1:]:
            score = evaluator.score(candidate.config, pieces)
            assert score.skip_ratio == pytest.approx(0.2, abs=0.02), candidate.config
            more = evaluator.score(candidate.skipping_more(0.04, Model(16, 16, (), (1, 14), WARM_UP)).config, pieces)
            assert more.skip_ratio > score.skip_ratio
        assert len(search.block_costs) == 15


# ---- the text ----


@pytest.mark.parametrize("n_chunks", [2, 3, 20])
def test_no_chunk_is_both_searched_and_held_out(n_chunks):
    chunks = [[i] * 100 for i in range(n_chunks)]
    parts = Parts(chunks, seed=3)
    held_out, searched = parts.compared(), parts.searched(10, 4000, 4)
    assert {c[0] for c in held_out}.isdisjoint({c[0] for c in parts.recorded})
    assert {c[0] for c in searched} <= {c[0] for c in parts.recorded}
    assert held_out and searched and all(len(piece) >= 20 for piece in searched)
    assert {c[0] for c in Parts(chunks, seed=3).recorded} == {c[0] for c in parts.recorded}


def test_another_seed_holds_out_other_text():
    chunks = [[i] * 100 for i in range(20)]
    assert Parts(chunks, 0).compared() != Parts(chunks, 1).compared()
