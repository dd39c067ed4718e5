"""A skipping context computes exactly what it should: plain llama.cpp, or llama.cpp with zeroed FFN blocks.

Every comparison is with plain llama.cpp on a file, bit for bit wherever both do the same arithmetic.
"""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import SkipConfig
from support import tiny_models
from support.running import (
    F32_CACHE,
    GREEDY,
    PROMPT_ROW,
    SETTINGS,
    SKIPPABLE_ROW,
    bits_equal,
    feed,
    feed_one_by_one,
    generate_step_by_step,
    last_logits,
    ours,
    perf,
    plain,
    typical_difference,
)
from support.tiny_models import WRITERS

TOKENS = np.random.default_rng(7).integers(0, 256, 40).tolist()
PROMPT = TOKENS[:8]
N_GENERATED = 16

KINDS = [*tiny_models.SKIPPABLE, "gptneox_sequential"]
MODELS = ["llama", "moe", "demo"]  # those checked under every setting

NEVER = 1.5  # above any cosine
SKIPPED = (1, 2, 5)  # neighbours, and one alone; the tiny models have 8 layers or more

# Rows of one batch and rows decoded one by one differ in the order of summation. How much follows from plain
# llama.cpp, measured in the same test; a skipping model may differ this many times as much, for it is another model.
# (Not for 8-bit activations: there nothing differs until one value rounds the other way, and then much does.)
TIMES_PLAIN = 4.0

NO_TRIP = {
    "dense": SkipConfig(policy="dense"),
    "threshold_above_1": SkipConfig(sim_threshold=NEVER, warm_up_index=0),
    "threshold_just_above_1": SkipConfig(
        sim_threshold=float(np.nextafter(np.float32(1), np.float32(2))), warm_up_index=0
    ),
    "nothing_to_skip": SkipConfig(max_skip=0, warm_up_index=0),
    "endless_warm_up": SkipConfig(sim_threshold=-1.0, warm_up_index=10**9),
}


def plain_difference(path, **options):
    """Between one batch and one token after the other, in plain llama.cpp."""
    with plain(path, **options) as llm:
        return typical_difference(feed_one_by_one(llm, TOKENS), feed(llm, TOKENS, 0))


def fixed(layers=SKIPPED, **options):
    return SkipConfig(policy="fixed", layers=layers, **{"warm_up_index": 0, **options})


@pytest.fixture(params=MODELS)
def model(request, model_file):
    """(kind, path, path of the same without the FFN blocks SKIPPED)."""
    return request.param, model_file(request.param), model_file(request.param, zero_ffn_layers=SKIPPED)


@pytest.fixture(params=SETTINGS)
def setting(request):
    return SETTINGS[request.param]


# --- nothing is skipped ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", NO_TRIP.values(), ids=NO_TRIP)
def test_without_a_trip_a_batch_equals_plain_llama_cpp_bit_for_bit(model, setting, config):
    _, path, _ = model
    with plain(path, **setting) as expected, ours(path, config, **setting) as llm:
        assert bits_equal(llm.forward(TOKENS), feed(expected, TOKENS, 0))
        assert llm.stats.ffn_skipped == 0


@pytest.mark.parametrize("config", NO_TRIP.values(), ids=NO_TRIP)
def test_without_a_trip_generation_equals_plain_llama_cpp_bit_for_bit(model, setting, config):
    _, path, _ = model
    with plain(path, **setting) as expected, ours(path, config, **setting) as llm:
        tokens, logits = generate_step_by_step(expected, PROMPT, N_GENERATED)
        got, got_logits = generate_step_by_step(llm, PROMPT, N_GENERATED)
        assert got == tokens and bits_equal(got_logits, logits)
        assert list(llm.generate(PROMPT, max_tokens=N_GENERATED, **GREEDY)) == tokens
        assert llm.stats.ffn_skipped == 0


@pytest.mark.parametrize("kind", KINDS)
def test_checks_of_every_layer_change_no_bit(model_file, kind):
    path = model_file(kind)
    n_layer = n_layer_of(path)
    config = SkipConfig(sim_threshold=NEVER, cold_s=0, cold_e=n_layer - 1, max_skip=1, warm_up_index=0)
    with plain(path) as expected, ours(path, config) as llm:
        assert bits_equal(llm.forward(TOKENS), feed(expected, TOKENS, 0))
        assert bits_equal(feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW), feed_one_by_one(expected, TOKENS))
        assert llm.stats.checks == 2 * len(TOKENS) * (n_layer - 1)


def n_layer_of(path):
    with plain(path) as llm:
        return int(llama_cpp.llama_model_n_layer(llm.model))


# --- a fixed set is skipped ------------------------------------------------------------------------------------------


def assert_fixed_set_equals_zeroed_file(path, zeroed, options, callback):
    with plain(zeroed, **options) as expected, ours(path, fixed(), callback=callback, **options) as llm:
        whole = feed(expected, TOKENS, 0)
        assert bits_equal(feed(llm, TOKENS, 0, SKIPPABLE_ROW), whole)
        assert bits_equal(feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW), feed_one_by_one(expected, TOKENS))
        assert llm.stats.ffn_skipped == 2 * len(TOKENS) * len(SKIPPED)
        with llm.dense():
            assert not np.array_equal(feed(llm, TOKENS, 0, SKIPPABLE_ROW), whole)  # or else the test could not tell
        assert llm._controller.hooked != callback
        assert bits_equal(llm.forward(TOKENS), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, SETTINGS["flash_attention_two_threads"]], ids=["one_thread", "flash_two"])
def test_skipping_a_fixed_set_equals_a_file_without_these_blocks_bit_for_bit(model_file, kind, options, callback):
    assert_fixed_set_equals_zeroed_file(model_file(kind), model_file(kind, zero_ffn_layers=SKIPPED), options, callback)


@pytest.mark.parametrize("kind", ["llama_q8_0", *MODELS])
def test_skipping_a_fixed_set_is_exact_under_every_setting(model_file, kind, setting, callback):
    assert_fixed_set_equals_zeroed_file(model_file(kind), model_file(kind, zero_ffn_layers=SKIPPED), setting, callback)


@pytest.mark.parametrize("kind", ["llama", "moe", "falcon", "phi3", "demo"])
def test_a_set_beside_which_nothing_trips_equals_the_set_alone(model_file, kind):
    path, zeroed = model_file(kind), model_file(kind, zero_ffn_layers=SKIPPED)
    config = SkipConfig(layers=SKIPPED, warm_up_index=0, sim_threshold=NEVER, max_skip=1)
    with ours(path, fixed()) as llm:
        alone = llm.forward(TOKENS)
    with plain(zeroed) as expected, ours(path, config) as llm:
        got = llm.forward(TOKENS)
        assert bits_equal(got, alone) and bits_equal(got, feed(expected, TOKENS, 0))
        assert bits_equal(feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW), feed_one_by_one(expected, TOKENS))
        assert llm.stats.ffn_skipped == 2 * len(TOKENS) * len(SKIPPED)
        assert llm.stats.checks > 0


@pytest.mark.parametrize("kind", ["llama", "moe", "falcon", "phi3"])
def test_equal_thresholds_of_all_layers_are_one_threshold(model_file, kind):
    path = model_file(kind)
    region = {"cold_s": 1, "cold_e": 7, "max_skip": 2, "warm_up_index": 0}
    thresholds = [0.93] * n_layer_of(path)
    runs = []
    for config in (
        SkipConfig(sim_threshold=0.93, **region),
        SkipConfig(policy="ffn_skip_per_layer", layer_thresholds=thresholds, **region),
    ):
        with ours(path, config) as llm, llm.trace() as trace:
            logits = [llm.forward(TOKENS), feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW)]
            tokens, generated = generate_step_by_step(llm, PROMPT, N_GENERATED)
        runs.append((tokens, trace.skipped, *logits, generated))
    assert len({tuple(row) for row in runs[0][1]}) > 2  # rows trip here and there
    assert runs[0][0] == runs[1][0]
    assert all(bits_equal(first, second) for first, second in zip(runs[0][1:], runs[1][1:]))


@pytest.mark.parametrize("layers", [(0,), (6,), (0, 1, 2, 3, 4, 5, 6)], ids=str)
def test_every_layer_but_the_last_can_be_skipped(model_file, layers, callback):
    path, zeroed = model_file("moe"), model_file("moe", zero_ffn_layers=layers)
    with plain(zeroed) as expected, ours(path, fixed(layers), callback=callback) as llm:
        assert bits_equal(feed(llm, TOKENS, 0, SKIPPABLE_ROW), feed(expected, TOKENS, 0))
        assert bits_equal(feed_one_by_one(llm, TOKENS, SKIPPABLE_ROW), feed_one_by_one(expected, TOKENS))


@pytest.mark.parametrize("policy", ["random", "random_adaptive_region"])
def test_a_random_token_equals_a_file_without_the_blocks_it_drew(model_file, tmp_path, policy):
    config = SkipConfig(policy=policy, max_skip=4, warm_up_index=0, seed=3)
    with ours(model_file("llama"), config) as llm, llm.trace() as trace:
        logits = feed(llm, TOKENS[:1], 0, SKIPPABLE_ROW)
    drawn = tuple(np.flatnonzero(trace.skipped[0]).tolist())
    assert len(drawn) == 4
    with plain(tiny_models.write_llama(tmp_path / "zero.gguf", zero_ffn_layers=drawn)) as expected:
        assert bits_equal(logits, feed(expected, TOKENS[:1], 0))


# --- rows of one batch decide for themselves -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "demo"])
@pytest.mark.parametrize("n_first", [1, 7, 39])
def test_first_rows_of_a_mixed_batch_do_not_notice_the_others(model_file, kind, n_first):
    """Attention looks back only: up to the first row that differs, all bits must be those of an unmixed batch."""
    path, zeroed = model_file(kind), model_file(kind, zero_ffn_layers=SKIPPED)
    skipping_first = [i < n_first for i in range(len(TOKENS))]
    skipping_last = [not first for first in skipping_first]
    with ours(path, fixed()) as llm:
        skipped_then_full = llm.forward(TOKENS, eligible=skipping_first)
        full_then_skipped = llm.forward(TOKENS, eligible=skipping_last)
    for got, file in ((skipped_then_full, zeroed), (full_then_skipped, path)):
        with plain(file) as expected:
            whole = feed(expected, TOKENS, 0)
        assert bits_equal(got[:n_first], whole[:n_first])
        assert not np.array_equal(got[n_first:], whole[n_first:])


@pytest.mark.parametrize("kind", [*KINDS, "demo_float32"])
@pytest.mark.parametrize("policy", ["fixed", "random"])
def test_a_mixed_batch_equals_the_same_rows_decoded_one_by_one(model_file, kind, policy):
    path = model_file(kind)
    eligible = (np.random.default_rng(1).random(len(TOKENS)) < 0.5).tolist()
    kinds = [SKIPPABLE_ROW if may else PROMPT_ROW for may in eligible]
    config = fixed() if policy == "fixed" else SkipConfig(policy="random", max_skip=3, warm_up_index=0)
    allowed = TIMES_PLAIN * plain_difference(path)
    with ours(path, config) as llm:
        with llm.trace() as in_batch:
            batch = llm.forward(TOKENS, eligible)
        with llm.trace() as alone:
            rows = feed_one_by_one(llm, TOKENS, kinds)
        dense = feed(llm, TOKENS, 0)
    assert np.array_equal(in_batch.skipped, alone.skipped) and in_batch.skipped.any()
    assert typical_difference(batch, rows) <= allowed
    assert typical_difference(batch, dense) > 10 * allowed


TRIPPING = {
    "ffn_skip": {"sim_threshold": 0.93},
    "ffn_skip_per_layer": {"layer_thresholds": [2.0, 0.9, 0.92, 0.94, 0.93, 0.95, 0.92, 2.0]},
    "fixed_plus_ffn_skip": {"sim_threshold": 0.92, "layers": [0, 3]},
}


@pytest.mark.parametrize("kind", ["llama", "moe"])
@pytest.mark.parametrize("policy", TRIPPING)
@pytest.mark.parametrize("prompt_rows", [0, 3], ids=["all_may_skip", "every_third_is_prompt"])
def test_rows_of_a_batch_trip_where_they_trip_alone(model_file, kind, policy, prompt_rows):
    path = model_file(kind, n_layer=8)
    config = SkipConfig(policy=policy, warm_up_index=0, max_skip=2, **TRIPPING[policy])
    eligible = [prompt_rows == 0 or i % prompt_rows > 0 for i in range(len(TOKENS))]
    allowed = TIMES_PLAIN * plain_difference(path, **F32_CACHE)
    with ours(path, config, **F32_CACHE) as llm:
        with llm.trace() as in_batch:
            batch = llm.forward(TOKENS, eligible)
        with llm.trace() as alone:
            rows = feed_one_by_one(llm, TOKENS, [SKIPPABLE_ROW if may else PROMPT_ROW for may in eligible])
    assert len({tuple(row) for row in in_batch.skipped}) > 2  # the rows of the batch really differ
    assert np.array_equal(in_batch.skipped, alone.skipped)
    assert np.array_equal(np.isnan(in_batch.similarity), np.isnan(alone.similarity))
    assert typical_difference(batch, rows) <= allowed


@pytest.mark.parametrize("n_ubatch", [1, 3, 32])
@pytest.mark.parametrize("kind", ["llama", "phi3", "gptneox", "post_norm", "exp_probs"])
def test_pieces_of_a_batch_map_to_the_right_rows(model_file, kind, n_ubatch):
    """n_ubatch below the batch: llama.cpp evaluates in pieces, and row r of a piece is another row of the batch."""
    path, zeroed = model_file(kind), model_file(kind, zero_ffn_layers=SKIPPED)
    # Pieces of n_ubatch rows that skip and that don't by turns, so that no piece is mixed; then bits are comparable.
    with plain(path, n_ubatch=n_ubatch) as full, plain(zeroed, n_ubatch=n_ubatch) as skipped:
        expected_full, expected_skipped = feed(full, TOKENS, 0), feed(skipped, TOKENS, 0)
    with ours(path, fixed(), n_ubatch=n_ubatch) as llm:
        assert bits_equal(llm.forward(TOKENS), expected_skipped)
        with llm.dense():
            assert bits_equal(llm.forward(TOKENS), expected_full)
        first = min(n_ubatch, len(TOKENS) - 1)
        mixed = llm.forward(TOKENS, [i < first for i in range(len(TOKENS))])
        assert bits_equal(mixed[:first], expected_skipped[:first])
        mixed = llm.forward(TOKENS, [i >= first for i in range(len(TOKENS))])
        assert bits_equal(mixed[:first], expected_full[:first])
    eligible = [i % 4 in (1, 2) for i in range(len(TOKENS))]
    with ours(path, fixed(), n_ubatch=n_ubatch) as pieces, ours(path, fixed()) as whole:
        with pieces.trace() as got, whole.trace() as expected:
            logits = pieces.forward(TOKENS, eligible), whole.forward(TOKENS, eligible)
    assert np.array_equal(got.skipped, expected.skipped)
    allowed = TIMES_PLAIN * plain_difference(path)
    assert typical_difference(*logits) <= allowed


def test_batches_of_different_lengths_in_turn_equal_plain_llama_cpp(model_file, callback):
    lengths = [1, 2, 3, 1, 5, 2, 8, 1, 1, 13, 4]
    path, zeroed = model_file("llama"), model_file("llama", zero_ffn_layers=SKIPPED)
    with plain(zeroed) as expected, ours(path, fixed(), callback=callback) as llm:
        position = 0
        for n in lengths:
            batch = TOKENS[position : position + n]
            assert bits_equal(feed(llm, batch, position, SKIPPABLE_ROW), feed(expected, batch, position)), n
            position += n


def test_rows_without_logits_skip_as_well(model_file, callback):
    """The last layer drops rows whose logits nobody wants: fewer rows come out of a batch than go in."""
    path, zeroed = model_file("llama"), model_file("llama", zero_ffn_layers=SKIPPED)
    with plain(zeroed) as expected, ours(path, fixed(), callback=callback) as llm:
        kinds = [SKIPPABLE_ROW] * len(TOKENS)
        expected.eval(TOKENS)
        llm._decoder.session.decode(TOKENS, 0, kinds)  # logits of the last row only
        assert bits_equal(last_logits(llm), last_logits(expected))
        following = [3, 1, 4]
        assert bits_equal(feed(llm, following, len(TOKENS), SKIPPABLE_ROW), feed(expected, following, len(TOKENS)))


# --- graphs are reused and rebuilt -----------------------------------------------------------------------------------


def alternate(path, config, kinds, monkeypatch=None, *, callback=True):
    """Logits of tokens fed one by one, each with its own kind; how many evaluations used a graph built before."""
    if monkeypatch is not None:
        monkeypatch.setenv("LLAMA_GRAPH_REUSE_DISABLE", "1")
    tokens = np.random.default_rng(3).integers(0, 256, len(kinds)).tolist()
    with ours(path, config, callback=callback, n_ctx=1024) as llm:
        logits = feed_one_by_one(llm, tokens, kinds)
        return logits, perf(llm).n_reused


PATTERNS = {
    "every_other": lambda n: [SKIPPABLE_ROW if i % 2 else PROMPT_ROW for i in range(n)],
    "by_chance": lambda n: [(PROMPT_ROW, SKIPPABLE_ROW)[i] for i in np.random.default_rng(5).integers(2, size=n)],
}

CHANGING = {
    "fixed": fixed(),
    "random": SkipConfig(policy="random", max_skip=4, warm_up_index=0),
    "ffn_skip": SkipConfig(sim_threshold=0.93, max_skip=3, warm_up_index=0),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind, policy", [("llama", p) for p in CHANGING] + [("moe", "fixed"), ("moe", "ffn_skip")])
def test_reused_graphs_equal_graphs_built_for_each_token(model_file, monkeypatch, kind, policy, pattern):
    """320 decisions that change from token to token; positions pass 256, where llama.cpp builds a wider graph."""
    kinds = PATTERNS[pattern](320)
    path = model_file(kind)
    reused, n_reused = alternate(path, CHANGING[policy], kinds)
    fresh, n_fresh = alternate(path, CHANGING[policy], kinds, monkeypatch)
    assert n_reused > 300 and n_fresh == 0
    assert bits_equal(reused, fresh)
    if policy == "fixed":
        built, n_reused = alternate(path, CHANGING[policy], kinds, callback=False)
        assert bits_equal(built, fresh)
        assert n_reused == 0


@pytest.mark.parametrize("kind", ["llama", "moe"])
def test_without_the_callback_a_graph_is_built_anew_where_what_it_leaves_out_changes_and_nowhere_else(model_file, kind):
    """A device that replays a graph it knows would not look at changes made to it. Positions stay below 256, where
    llama.cpp builds a wider graph."""
    kinds = [SKIPPABLE_ROW if i // 20 % 2 else PROMPT_ROW for i in range(200)]
    _, n_reused = alternate(model_file(kind), fixed(), kinds, callback=False)
    assert n_reused == len(kinds) - 10  # ten runs of twenty


@pytest.mark.parametrize("kind", ["phi3", "falcon", "gptneox", "post_norm", "exp_probs", "biased"])
@pytest.mark.parametrize("policy", ["random", "ffn_skip"])
def test_reused_graphs_of_other_architectures_equal_graphs_built_for_each_token(model_file, monkeypatch, kind, policy):
    config = SkipConfig(policy=policy, sim_threshold=0.9, max_skip=3, warm_up_index=0)
    kinds = PATTERNS["by_chance"](64)
    reused, n_reused = alternate(model_file(kind), config, kinds)
    fresh, n_fresh = alternate(model_file(kind), config, kinds, monkeypatch)
    assert n_reused > 50 and n_fresh == 0
    assert bits_equal(reused, fresh)


def test_dense_tokens_between_skipping_ones_equal_plain_llama_cpp(model_file, callback):
    """Each token is the only one in the cache, so that what the ones before wrote does not matter; its graph is the one
    that was edited, or put right, a moment ago."""
    path, zeroed = model_file("llama"), model_file("llama", zero_ffn_layers=SKIPPED)
    with plain(path) as full, plain(zeroed) as skipped, ours(path, fixed(), callback=callback) as llm:
        for i, token in enumerate(TOKENS):
            kind, expected = ((SKIPPABLE_ROW, skipped), (PROMPT_ROW, full))[i % 2]
            assert bits_equal(feed(llm, [token], 0, kind), feed(expected, [token], 0)), i
        # Without the callback, what changes is built anew.
        assert perf(llm).n_reused >= len(TOKENS) - 2 if callback else perf(llm).n_reused == 0


@pytest.mark.parametrize("kind", ["llama", "post_norm"])
def test_generation_past_256_and_512_positions_equals_plain_llama_cpp(model_file, kind, callback):
    """Every 256 positions the attended part of the cache grows and the graph is built anew, at the same addresses."""
    path = model_file(kind, n_layer=8)
    zeroed = model_file(kind, n_layer=8, zero_ffn_layers=SKIPPED)
    tokens = np.random.default_rng(11).integers(0, 256, 530).tolist()
    with plain(zeroed, n_ctx=1024) as expected, ours(path, fixed(), callback=callback, n_ctx=1024) as llm:
        assert bits_equal(feed_one_by_one(llm, tokens, SKIPPABLE_ROW), feed_one_by_one(expected, tokens))
        assert perf(llm).n_eval == len(tokens)  # nothing had to be decoded twice
        assert perf(llm).n_reused == perf(expected).n_reused


@pytest.mark.parametrize("kind", ["llama", "demo"])
def test_long_generation_that_alternates_equals_a_replay_of_its_decisions(model_file, monkeypatch, kind):
    """What generate() did for 300 tokens, done again by a context that builds each graph and is told each kind."""
    config = SkipConfig(policy="random", max_skip=3, warm_up_index=5, seed=9)
    with ours(model_file(kind), config, n_ctx=512) as llm:
        with llm.trace() as generated:
            tokens = list(llm.generate(PROMPT, max_tokens=302, **GREEDY))
        logits = last_logits(llm)
    monkeypatch.setenv("LLAMA_GRAPH_REUSE_DISABLE", "1")
    kinds = [PROMPT_ROW] * 5 + [SKIPPABLE_ROW] * 296
    with ours(model_file(kind), config, n_ctx=512) as llm:
        feed(llm, PROMPT, 0)
        replay = feed_one_by_one(llm, tokens[:-1], kinds, len(PROMPT))
    assert generated.skipped.shape[0] == 301 and generated.skipped[5:].sum(axis=1).tolist() == [3] * 296
    assert replay.argmax(axis=1).tolist() == tokens[1:]
    assert bits_equal(logits, replay[-1:])


# --- one libllama ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_one_llama_cpp_is_in_the_process():
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    for library in ("libllama", "libggml-base", "libggml-cpu"):
        assert len([path for path in mapped if Path(path).name.startswith(f"{library}.")]) == 1, library


def test_the_kinds_of_file_cover_every_writer():
    assert set(KINDS) | {"llama_q8_0", "bert", "mamba"} == set(WRITERS)
