"""The parts of the search for settings, each against something that says the same in another way: loops over tokens and
layers, all thresholds there are, exhaustive greedy selection, the C++ core."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ffnskip_cpp import Llama, SkipConfig, TargetUnreachableError
from ffnskip_cpp.calibration import cache as cache_module
from ffnskip_cpp.calibration.cache import open_cache
from ffnskip_cpp.calibration.costs import FFN, byte_costs
from ffnskip_cpp.calibration.effort import EFFORTS
from ffnskip_cpp.calibration.evaluation import Evaluator
from ffnskip_cpp.calibration.parts import Parts
from ffnskip_cpp.calibration.race import Race, cost, rounds
from ffnskip_cpp.calibration.search import GreedySet, Model, Search, _regions
from ffnskip_cpp.calibration.simulation import Region, ranks, skipped, solve, thresholds_at_rank, trips
from ffnskip_cpp.measure.quality import standard_error
from ffnskip_cpp.measure.text import Chunk
from support.logits import log_softmax
from support.made_up import MadeUp

WARM_UP = 4
TOKENS = [[(7 * i * i + 3 * i + seed) % 250 for i in range(40)] for seed in (1, 2, 3)]
CHUNKS = [Chunk(tokens, list(range(40))) for tokens in TOKENS]


class Told:
    """What a progress bar would be."""

    def __init__(self):
        self.measured, self.not_needed = [], []

    def expect(self, n):
        pass

    def __call__(self, n):
        self.measured.append(n)

    def found(self, n):
        self.not_needed.append(n)


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

    threshold, found = solve(similarity, max_skip, np.ones(6), wanted)
    assert found == pytest.approx(n_skipped(threshold))
    nearest = min(abs(n_skipped(value) - wanted) for value in [-1, 2, *similarity.ravel().tolist()])
    assert abs(found - wanted) <= nearest + 1e-9


@pytest.mark.parametrize("max_skip", [1, 3])
@pytest.mark.parametrize("wanted", [0.5, 2.0, 9.0])
def test_a_threshold_saves_what_is_wanted_where_blocks_save_unlike_much(max_skip, wanted):
    similarity, gains = similarities(3, n_tokens=400), np.array([1.0, 1.0, 10.0, 0.5, 10.0, 1.0])

    def saved(threshold):
        return np.mean([gains[algorithm_1(row, [threshold] * 6, max_skip)].sum() for row in similarity])

    threshold, found = solve(similarity, max_skip, gains, wanted)
    assert found == pytest.approx(saved(threshold))
    if saved(-2) > wanted:
        assert found == pytest.approx(wanted, abs=0.05)
    else:
        assert threshold == -2


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


# ---- cache ----


def test_a_cache_keeps_entries_by_subject_and_key_until_all_is_done(tmp_path):
    path = tmp_path / "j"
    with pytest.raises(RuntimeError), open_cache(path, "model a", "p") as cache:
        cache.add({"x": np.array([1.5, np.nan]), "flags": np.array([True])}, "key", 1)
        raise RuntimeError
    assert path.exists()
    with pytest.raises(RuntimeError), open_cache(path, "model b", "p") as cache:
        assert cache.find("key", 1) is None
        raise RuntimeError
    with open_cache(path, "model a", "p") as cache:
        assert cache.find("key", 2) is None
        found = cache.find("key", 1)
        assert np.array_equal(found["x"], [1.5, np.nan], equal_nan=True) and found["flags"].dtype == np.bool_
    assert not path.exists()


def test_a_calibration_leaves_what_another_one_that_was_interrupted_will_need(tmp_path):
    path = tmp_path / "j"
    with pytest.raises(KeyboardInterrupt), open_cache(path, "m", "10 %") as cache:
        cache.add({"x": np.arange(3)}, "key")
        raise KeyboardInterrupt
    with open_cache(path, "m", "25 %") as cache:
        assert cache.find("key")["x"].tolist() == [0, 1, 2]
    with open_cache(path, "m", "10 %") as cache:
        assert cache.find("key")["x"].tolist() == [0, 1, 2]
    assert not path.exists()


def test_a_refusal_leaves_no_file_and_a_target_out_of_reach_what_was_measured(tmp_path):
    path = tmp_path / "j"
    for error, is_kept in ((ValueError, False), (TargetUnreachableError, True), (ValueError, True)):
        with pytest.raises(error), open_cache(path, "m", error.__name__) as cache:
            cache.add({"x": np.arange(3)}, "key")
            raise error
        assert path.exists() == is_kept


def test_a_file_that_was_removed_while_it_was_waited_for_is_not_used(tmp_path, monkeypatch):
    """Two processes with a file each would take one another's away."""
    path, opened = tmp_path / "j", cache_module.sqlite3.connect

    def removed(name, **options):
        monkeypatch.setattr(cache_module.sqlite3, "connect", opened)
        database = opened(name, **options)
        path.unlink()
        return database

    monkeypatch.setattr(cache_module.sqlite3, "connect", removed)
    with pytest.raises(RuntimeError), open_cache(path, "m", "p") as cache:
        cache.add({"x": np.arange(3)}, "key")
        raise RuntimeError
    with open_cache(path, "m", "p") as cache:
        assert cache.find("key") is not None


def test_a_file_that_is_no_cache_is_named_and_left(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b"something else, and long enough not to be taken for an empty database" * 20)
    with pytest.raises(OSError, match=str(path)), open_cache(path, "model", "p"):
        pass
    assert path.read_bytes().startswith(b"something else")


def test_a_damaged_cache_is_named_and_what_to_do(tmp_path):
    path = tmp_path / "j"
    with pytest.raises(RuntimeError), open_cache(path, "m", "p") as cache:
        for i in range(50):
            cache.add({"x": np.arange(1000)}, i)
        raise RuntimeError
    data = bytearray(path.read_bytes())
    data[4096 : 4096 * 8] = b"\xff" * (4096 * 7)
    path.write_bytes(bytes(data))
    with (
        pytest.raises(OSError, match=f"{path}: .*damaged.*remove it to begin anew"),
        open_cache(path, "m", "p") as cache,
    ):
        for i in range(50):
            cache.find(i)
    assert path.exists()


HOLDER = """
import sys
from pathlib import Path
from ffnskip_cpp.calibration.cache import open_cache
with open_cache(Path(sys.argv[1]), "m", "p") as cache:
    print("has it", flush=True)
    sys.stdin.read()
"""


def test_two_calibrations_do_not_share_a_cache(tmp_path):
    path = tmp_path / "j"
    words = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "has it\n"
        with pytest.raises(OSError, match=f"{path}: another calibration of this model is running"):
            with open_cache(path, "m", "p"):
                pass
        assert path.exists()
        other.stdin.close()
    assert other.returncode == 0 and not path.exists()


# ---- evaluation ----


def like_ffn(n_layer):
    """Costs of blocks of one size, and of a token a quarter more than these."""
    blocks = np.zeros((n_layer, 3))
    blocks[:, FFN] = 100.0
    return byte_costs(125.0 * n_layer, blocks)


def evaluator_of(llm, cache, told=None):
    evaluator = Evaluator(llm, cache, WARM_UP, told or Told())
    evaluator.weigh(like_ffn(16), like_ffn(16))
    return evaluator


@pytest.fixture
def llm(model_file):
    with Llama(str(model_file("llama", n_layer=16)), skip=None, n_ctx=256, verbose=False) as llm:
        yield llm


def test_a_score_is_of_the_rows_past_the_warm_up_that_predict_a_known_token(llm, tmp_path):
    config = SkipConfig("fixed", layers=[2, 5, 9], warm_up_index=WARM_UP)
    with open_cache(tmp_path / "j", "m", "p") as cache:
        score = evaluator_of(llm, cache).score(config, CHUNKS)
    kl, ratio = [], []
    for tokens in TOKENS:
        p = log_softmax(llm.forward(tokens))
        llm.skip = config
        q = log_softmax(llm.forward(tokens))
        llm.skip = None
        kl.append((np.exp(p) * (p - q)).sum(axis=1)[WARM_UP:-1])
        ratio.append((np.exp(q - p), tokens))
    assert np.allclose(score.kl, np.concatenate(kl), atol=1e-5) and score.quality.n_rows == 3 * (40 - WARM_UP - 1)
    log_ratio = np.concatenate(
        [np.log([row[token] for row, token in zip(r[WARM_UP:-1], t[WARM_UP + 1 :])]) for r, t in ratio]
    )
    assert score.quality.perplexity_ratio == pytest.approx(np.exp(-log_ratio.mean()), rel=1e-5)
    assert score.skip_ratio == pytest.approx(3 / 16) == score.saved and score.checks == 0
    assert score.speed_up == pytest.approx(1 / (1 - 3 / 20))
    assert score.chunk.tolist() == [i for i in range(3) for _ in range(40 - WARM_UP - 1)]


def test_of_a_chat_the_rows_are_those_of_answers_past_their_warm_up(llm, tmp_path):
    """Two answers: tokens 5 to 19, and 25 to the end."""
    generated = [i - 5 if 5 <= i < 20 else i - 25 if i >= 25 else -1 for i in range(40)]
    config = SkipConfig("fixed", layers=[2, 5, 9], warm_up_index=WARM_UP)
    with open_cache(tmp_path / "j", "m", "p") as cache:
        score = evaluator_of(llm, cache).score(config, [Chunk(TOKENS[0], generated)])
    rows = [*range(9, 20), *range(29, 39)]  # the last token predicts none
    p = log_softmax(llm.forward(TOKENS[0]))
    llm.skip = config
    q = log_softmax(llm.forward(TOKENS[0], [i in rows or i == 39 for i in range(40)]))
    llm.skip = None
    assert np.allclose(score.kl, (np.exp(p) * (p - q)).sum(axis=1)[rows], atol=1e-5)
    assert len(score.kl) == len(rows) and score.skip_ratio == pytest.approx(3 / 16)


def test_what_is_in_the_cache_is_not_evaluated_again(llm, tmp_path, monkeypatch):
    config, told = SkipConfig("fixed", layers=[2], warm_up_index=WARM_UP), Told()
    with open_cache(tmp_path / "j", "m", "p") as cache:
        first = evaluator_of(llm, cache)
        score, similarity = first.score(config, CHUNKS), first.similarity(CHUNKS[0])
        monkeypatch.setattr(Llama, "forward", lambda *_, **__: pytest.fail("evaluated again"))
        again = evaluator_of(llm, cache, told)
        for _ in range(2):
            assert (again.score(config, CHUNKS).kl == score.kl).all()
        assert np.array_equal(again.similarity(CHUNKS[0]), similarity, equal_nan=True)
    assert (told.measured, told.not_needed) == ([], [40, 40, 40, 40])
    assert similarity.shape == (40 - WARM_UP - 1, 16) and np.isnan(similarity).all(axis=0).tolist() == [False] * 15 + [
        True
    ]


def test_the_standard_error_of_equal_chunks_is_that_of_their_means():
    values = np.random.default_rng(0).normal(size=(7, 20))
    expected = values.mean(axis=1).std(ddof=1) / np.sqrt(7)
    assert standard_error(values.ravel(), np.repeat(np.arange(7), 20)) == pytest.approx(expected)
    assert np.isnan(standard_error(values.ravel(), np.zeros(140, int)))


# ---- races ----


def fixed(*layers):
    return SkipConfig("fixed", layers=layers)


def raced(kl_of, n_settings, n_chunks=16, first=1):
    evaluator = MadeUp(kl_of)
    race = Race(evaluator, [Chunk([0] * 10, list(range(10)))] * n_chunks, first)
    return race.run([fixed(il) for il in range(n_settings)], lambda score: score.kl), evaluator.asked, race


def test_half_of_equals_goes_on_to_twice_the_text():
    noise = np.random.default_rng(0).normal(size=(12, 160))
    result, asked, race = raced(lambda config: noise[config.layers[0]], 12)
    assert asked == [(12, 1), (6, 2), (3, 4), (2, 8), (2, 16)]
    assert sum(n * size for n, size in asked) > cost(12, 16, 1) == 12 + 6 + 3 * 2 + 2 * 4 + 2 * 8
    assert [len(score.kl) for score in result] == [160, 160, 40, *[20] * 3, *[10] * 6]
    assert result[0].kl.mean() <= result[1].kl.mean() and set(race.seen) == {fixed(il) for il in range(12)}
    assert rounds(13, 2) == [2, 4, 7, 13] and rounds(1, 4) == [1]


def test_what_is_clearly_worse_leaves_and_what_is_not_stays():
    noise = np.random.default_rng(0).normal(size=(12, 160)) * 0.1
    best, asked, _ = raced(lambda config: noise[config.layers[0]] + config.layers[0], 12)
    assert best[0].config == fixed(0) and asked == [(12, 1), (1, 2), (1, 4), (1, 8), (1, 16)]
    best, asked, _ = raced(lambda config: noise[config.layers[0]] + (config.layers[0] > 1), 12)
    assert asked[-1] == (2, 16)


# ---- the fixed set ----


def model_of(n_layer, skippable, cold_regions, warm_up_index, gains=None):
    costs = like_ffn(n_layer)
    if gains is not None:
        costs.per_block[:, FFN] = gains
    return Model(n_layer, tuple((il, FFN) for il in skippable), costs.share_per_block, cold_regions, warm_up_index)


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_set_is_that_of_measuring_every_block_each_time(seed):
    rng = np.random.default_rng(seed)
    alone, together = rng.uniform(0.1, 1, (12, 1)), rng.uniform(0, 0.1, (12, 12, 1))
    noise = rng.normal(size=160) * 0.01  # of the text: the same for all settings

    def kl_of(config):  # each pair costs something besides
        layers = config.layers
        pairs = [together[a, b] for a in layers for b in layers if a < b]
        return (sum((alone[il] for il in layers), np.zeros(1)) + sum(pairs, np.zeros(1)))[0] + noise

    chosen = []
    for _ in range(5):
        left = [il for il in range(12) if il not in chosen]
        chosen.append(min(left, key=lambda il: kl_of(fixed(*sorted([*chosen, il]))).mean()))
    evaluator = MadeUp(kl_of)
    race = Race(evaluator, [Chunk([0] * 10, list(range(10)))] * 16, 1)
    greedy = GreedySet(model_of(14, range(12), (1, 12), 0), race, 8)
    assert greedy.blocks(5) == [(il, FFN) for il in chosen]
    assert sum(n for n, size in evaluator.asked if size == 1) == 12 + 4 * 8
    assert (greedy.score(3).kl == kl_of(fixed(*sorted(chosen[:3])))).all()
    seen_alone = {(il, FFN): float(kl_of(fixed(il))[:10].mean()) for il in range(12)}
    assert greedy.alone == pytest.approx(seen_alone, rel=0.05)
    assert sorted([*greedy.left_after(3), *greedy.blocks(3)]) == [(il, FFN) for il in range(12)]
    assert [greedy.saving(share) for share in (0.01, 1 / 14, 0.2, 0.99)] == [1, 1, 3, 12]
    costs = greedy.costs_beside([(il, FFN) for il in chosen])
    assert np.isinf(costs[:, 12:]).all() and np.isfinite(costs[:, :12]).all()


# ---- the search ----


@pytest.mark.parametrize("n_layer", [2, 3, 4, 16])
@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.6, 0.93])
def test_every_region_can_skip_what_is_wanted_and_holds_nothing_that_cannot(n_layer, ratio):
    skippable = tuple(il for il in range(n_layer - 1) if il != 5)
    model = model_of(n_layer, skippable, (0, n_layer - 1), 0)
    regions = list(_regions(skippable, ratio, model))
    assert bool(regions) == (np.ceil(ratio * n_layer) < len(skippable))
    for region in regions:
        assert set(region.layers) <= set(skippable) and list(region.layers) == sorted(region.layers)
        assert ratio * n_layer <= region.max_skip + 1e-9 and region.max_skip < len(region.layers)


@pytest.mark.parametrize("effort", ["quick", "thorough"])
def test_candidates_skip_what_was_asked_for_one_of_each_policy(llm, tmp_path, effort):
    model, told = model_of(16, range(15), (1, 14), WARM_UP), Told()
    with open_cache(tmp_path / "j", "m", "p") as cache:
        evaluator = evaluator_of(llm, cache, told)
        similarity = np.concatenate([evaluator.similarity(chunk) for chunk in CHUNKS])
        search = Search(evaluator, model, similarity, Race(evaluator, CHUNKS[:2], 1), EFFORTS[effort])
        expected, told.measured = search.n_evaluations(0.2, 0.01), []
        candidates = search.candidates(0.2, 0.01)
        assert len(told.measured) <= expected
        assert [c.config.label for c in candidates] == [
            *("fixed layers", "ffn_skip"),
            *(["ffn_skip per layer"] if effort == "thorough" else []),
            "fixed layers + ffn_skip",
        ]
        assert len(candidates[0].config.layers) == 4  # 3 of 16 would be less than was asked for
        for candidate in candidates[1:]:
            score = evaluator.score(candidate.config, CHUNKS[:2])
            assert score.skip_ratio == pytest.approx(0.2, abs=0.02), candidate.config
            more = evaluator.score(candidate.saving_more(0.04, model).config, CHUNKS[:2])
            assert more.skip_ratio > score.skip_ratio
        assert len(search.block_costs) == 15


def test_blocks_of_the_set_are_exchanged_where_that_helps():
    """Greedily 0, then 1; but 2 and 3 together cost less than any other pair."""
    pairs = {(0, 1): 0.5, (0, 2): 0.6, (0, 3): 0.6, (1, 2): 0.4, (1, 3): 0.45, (2, 3): 0.2}

    def kl_of(config):
        value = 0.1 + 0.05 * config.layers[0] if len(config.layers) == 1 else pairs[tuple(config.layers)]
        return np.full(160, value) + np.random.default_rng(0).normal(size=160) * 0.01

    def exchanged(effort):
        evaluator = MadeUp(kl_of)
        race = Race(evaluator, [Chunk([0] * 10, list(range(10)))] * 16, 1)
        search = Search(evaluator, model_of(5, range(4), (1, 4), 30), np.empty((0, 5)), race, EFFORTS[effort])
        return search._exchanged(2, 2 / 5).config.layers

    assert exchanged("quick") == (0, 1) and exchanged("normal") == (1, 2) and exchanged("thorough") == (2, 3)


# ---- the text ----


def plain(i, n=100):
    return Chunk([i] * n, list(range(n)))


@pytest.mark.parametrize("n_chunks", [2, 3, 20])
def test_no_chunk_is_both_searched_and_held_out(n_chunks):
    chunks = [plain(i) for i in range(n_chunks)]
    parts = Parts(chunks, seed=3)
    held_out, searched = parts.compared(1000), parts.searched(500, 4)
    assert {c.tokens[0] for c in held_out}.isdisjoint({c.tokens[0] for c in parts.recorded(10**6)})
    assert {c.tokens[0] for c in searched} <= {c.tokens[0] for c in parts.recorded(10**6)}
    assert held_out and searched
    assert Parts(chunks, seed=3).recorded(10**6) == parts.recorded(10**6)


@pytest.mark.parametrize("n_rows", [1, 128, 129, 1000, 2048])
def test_the_search_sees_as_many_tokens_as_it_asks_for_if_there_are_as_many(n_rows):
    parts = Parts([plain(i, 512) for i in range(10)], seed=0)
    pieces = parts.searched(n_rows, 30)
    assert n_rows <= sum(len(piece.rows(30)) for piece in pieces) < n_rows + 300
    short = Parts([plain(i, 40) for i in range(10)], seed=0).searched(n_rows, 30)
    assert sum(len(piece.rows(30)) for piece in short) == min(7, -(-n_rows // 9)) * 9


def test_another_seed_holds_out_other_text():
    chunks = [plain(i) for i in range(20)]
    assert Parts(chunks, 0).compared(1000) != Parts(chunks, 1).compared(1000)
