"""What may be skipped, and when: each policy keeps to its layers, its number of blocks and its seed.

Seen in traces: a row of the trace is a token, and the tokens of one forward() are one generation from its start.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from ffnskip_cpp import SkipConfig, Unsupported, _core
from support.running import PROMPT_ROW, SKIPPABLE_ROW, WARM_UP_ROW, feed, feed_one_by_one, ours, trip_layers

N_LAYER = 9
TOKENS = np.random.default_rng(31).integers(0, 256, 240).tolist()

# Standard deviations that a count may lie from its mean: one test in 10^8 fails by chance, and seeds are fixed anyway.
SIGMAS = 6


@pytest.fixture(scope="module")
def path(model_file):
    return model_file("llama", n_layer=N_LAYER, n_embd=64, n_ff=32)


@pytest.fixture(scope="module")
def llm(path):
    with ours(path, None) as llm:
        yield llm


def skipped_by(llm, tokens=TOKENS, **config):
    """bool [n_tokens, n_layer]: blocks skipped by each token of one generation."""
    return traced(llm, tokens, **config).skipped


def traced(llm, tokens=TOKENS, **config):
    llm.skip = SkipConfig(**{"warm_up_index": 0, **config})
    with llm.trace() as trace:
        llm.forward(tokens)
    return trace


# --- random baselines ------------------------------------------------------------------------------------------------

REGIONS = {"random": range(0, N_LAYER - 1), "random_adaptive_region": range(2, 6)}


@pytest.mark.parametrize("policy", REGIONS)
@pytest.mark.parametrize("max_skip", [0, 1, 3, 4])
def test_random_policies_skip_exactly_max_skip_blocks_of_their_region(llm, policy, max_skip):
    skipped = skipped_by(llm, policy=policy, max_skip=max_skip, cold_s=2, cold_e=6)
    assert (skipped.sum(axis=1) == max_skip).all()
    outside = [il for il in range(N_LAYER) if il not in REGIONS[policy]]
    assert not skipped[:, outside].any()
    assert max_skip == 0 or skipped[:, list(REGIONS[policy])].any(axis=0).all()


@pytest.mark.parametrize("policy", REGIONS)
def test_random_choices_are_roughly_uniform(llm, policy):
    region = list(REGIONS[policy])
    share = 2 / len(region)
    skipped = np.concatenate(
        [skipped_by(llm, policy=policy, max_skip=2, cold_s=2, cold_e=6, seed=seed) for seed in range(4)]
    )
    spread = math.sqrt(share * (1 - share) / len(skipped))
    assert np.abs(skipped[:, region].mean(axis=0) - share).max() < SIGMAS * spread
    pairs = {tuple(np.flatnonzero(row)) for row in skipped}
    assert len(pairs) == math.comb(len(region), 2)  # every pair of blocks occurs


@pytest.mark.parametrize("policy", REGIONS)
def test_random_choices_are_fixed_by_seed_position_and_token(llm, policy):
    options = {"policy": policy, "max_skip": 2, "cold_s": 2, "cold_e": 6}
    first = skipped_by(llm, seed=7, **options)
    assert np.array_equal(first, skipped_by(llm, seed=7, **options))
    assert (first != skipped_by(llm, seed=8, **options)).any(axis=1).mean() > 0.5
    same_token = skipped_by(llm, tokens=[65] * 100, seed=7, **options)
    assert len({row.tobytes() for row in same_token}) > 5  # positions differ


@pytest.mark.parametrize("policy", REGIONS)
def test_random_choices_do_not_depend_on_the_batch(path, policy):
    config = SkipConfig(policy=policy, max_skip=2, cold_s=2, cold_e=6, warm_up_index=0, seed=5)
    tokens = TOKENS[:40]
    traces = []
    for n_ubatch in (512, 7):
        with ours(path, config, n_ubatch=n_ubatch) as llm, llm.trace() as trace:
            llm.forward(tokens)
        traces.append(trace.skipped)
    with ours(path, config) as llm:
        with llm.trace() as trace:
            feed_one_by_one(llm, tokens, SKIPPABLE_ROW)
        traces.append(trace.skipped)
        with llm.trace() as trace:
            feed(llm, tokens[:13], 0)
            feed(llm, tokens[13:], 13, SKIPPABLE_ROW)
        traces.append(np.concatenate([traces[0][:13], trace.skipped]))  # the first 13 were a prompt this time
        kinds = [SKIPPABLE_ROW if i % 3 else PROMPT_ROW for i in range(40)]
        with llm.trace() as trace:
            feed(llm, tokens, 0, kinds)
        assert np.array_equal(trace.skipped, traces[0][np.arange(40) % 3 != 0])
    assert all(np.array_equal(skipped, traces[0]) for skipped in traces)


# --- Algorithm 1 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_skip", [1, 2, 4])
@pytest.mark.parametrize("sim_threshold", [-1.0, 0.85, 0.92, 0.95])
def test_ffn_skip_counts_from_the_layer_after_the_trip_and_stops_at_cold_e(llm, sim_threshold, max_skip):
    cold_s, cold_e = 1, 7
    trace = traced(llm, sim_threshold=sim_threshold, cold_s=cold_s, cold_e=cold_e, max_skip=max_skip)
    for trip, skipped, similarity in zip(trip_layers(trace, sim_threshold), trace.skipped, trace.similarity):
        checked = range(cold_s, cold_e if trip < 0 else trip + 1)
        expected = [] if trip < 0 else list(range(trip + 1, min(trip + 1 + max_skip, cold_e)))
        assert np.flatnonzero(skipped).tolist() == expected
        assert np.flatnonzero(~np.isnan(similarity)).tolist() == list(checked)
        assert (similarity[list(checked)][:-1] < sim_threshold).all()
    if sim_threshold > 0:
        assert len(set(trip_layers(trace, sim_threshold).tolist())) > 2


def test_a_threshold_no_cosine_reaches_checks_the_whole_region_and_skips_nothing(llm):
    trace = traced(llm, sim_threshold=math.inf, cold_s=1, cold_e=7, max_skip=2)
    assert not trace.skipped.any()
    assert (~np.isnan(trace.similarity)).sum(axis=1).tolist() == [6] * len(TOKENS)


@pytest.mark.parametrize("stride", [1, 2, 3, 6, 99])
@pytest.mark.parametrize("layers", [None, [0, 2, 5]], ids=["no_set", "a_set"])
def test_every_stride_th_layer_that_runs_is_checked_from_cold_s_on(llm, stride, layers):
    policy = "ffn_skip" if layers is None else "fixed_plus_ffn_skip"
    region = {"cold_s": 1, "cold_e": 7, "max_skip": 1, "check_stride": stride}
    trace = traced(llm, policy=policy, layers=layers, sim_threshold=1.5, **region)
    running = [1, 2, 3, 4, 5, 6] if layers is None else [1, 3, 4, 6]
    assert {tuple(np.flatnonzero(~np.isnan(row))) for row in trace.similarity} == {tuple(running[::stride])}
    trace = traced(llm, policy=policy, layers=layers, sim_threshold=-1.0, **region)  # trips where first checked
    assert {tuple(np.flatnonzero(~np.isnan(row))) for row in trace.similarity} == {(1,)}
    assert {tuple(np.flatnonzero(row)) for row in trace.skipped} == {(2,) if layers is None else (0, 2, 3, 5)}


def test_a_layer_trips_at_its_own_threshold_and_an_infinite_one_is_not_checked(llm):
    thresholds = [-1.0, 1.5, math.inf, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]
    region = {"cold_s": 1, "cold_e": 7, "max_skip": 2}
    trace = traced(llm, policy="ffn_skip_per_layer", layer_thresholds=thresholds, **region)
    assert {tuple(np.flatnonzero(~np.isnan(row))) for row in trace.similarity} == {(1, 3)}
    assert {tuple(np.flatnonzero(row)) for row in trace.skipped} == {(4, 5)}


NEEDED = {
    "fixed": {"layers": [3]},
    "fixed_plus_ffn_skip": {"layers": [3], "max_skip": 1},
    "ffn_skip_per_layer": {"layer_thresholds": [-1.0] * N_LAYER, "max_skip": 1},
}


@pytest.mark.parametrize("policy", ["ffn_skip", "random", "random_adaptive_region", *NEEDED])
@pytest.mark.parametrize("warm_up_index", [0, 1, 30, 239, 240])
def test_token_i_may_skip_exactly_from_warm_up_index_on(llm, policy, warm_up_index):
    needed = NEEDED.get(policy, {"max_skip": 1})
    skipped = skipped_by(llm, policy=policy, sim_threshold=-1.0, warm_up_index=warm_up_index, **needed)
    assert skipped.any(axis=1).tolist() == [i >= warm_up_index for i in range(len(TOKENS))]


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["dense", "ffn_skip", "random", "random_adaptive_region", *NEEDED])
def test_statistics_add_up_with_the_trace(llm, policy):
    threshold = 0.95
    needed = {
        "fixed": {"layers": [1, 3]},
        "fixed_plus_ffn_skip": {"layers": [3], "max_skip": 2},
        "ffn_skip_per_layer": {"layer_thresholds": [threshold] * N_LAYER},
    }.get(policy, {})
    llm.reset_stats()
    trace = traced(llm, policy=policy, sim_threshold=threshold, warm_up_index=30, **needed)
    stats = llm.stats
    assert stats.tokens == len(TOKENS) == len(trace.skipped)
    assert stats.ffn_total == len(TOKENS) * N_LAYER
    assert stats.ffn_skipped == trace.skipped.sum()
    assert stats.skipped_per_layer.tolist() == trace.skipped.sum(axis=0).tolist()
    assert stats.skip_ratio == stats.ffn_skipped / stats.ffn_total
    assert stats.checks == (~np.isnan(trace.similarity)).sum()
    checks = policy in ("ffn_skip", "ffn_skip_per_layer", "fixed_plus_ffn_skip")
    never = (trip_layers(trace, threshold)[30:] < 0).sum() if checks else 0
    assert not checks or 0 < never < len(TOKENS) - 30
    assert stats.tokens_never_tripped == never
    assert (policy == "dense") == (stats.ffn_skipped == 0)


def test_prompt_tokens_are_in_neither_statistics_nor_trace(llm):
    llm.skip = SkipConfig(policy="fixed", layers=[2], warm_up_index=0)
    llm.reset_stats()
    with llm.trace() as trace:
        feed(llm, TOKENS[:5], 0, [PROMPT_ROW, WARM_UP_ROW, SKIPPABLE_ROW, PROMPT_ROW, SKIPPABLE_ROW])
    assert (llm.stats.tokens, llm.stats.ffn_skipped) == (3, 2)
    assert trace.skipped[:, 2].tolist() == [False, True, True]
    llm.reset_stats()
    assert (llm.stats.tokens, llm.stats.ffn_total, llm.stats.skip_ratio) == (0, 0, 0.0)
    assert llm.stats.skipped_per_layer.tolist() == [0] * N_LAYER


# --- configurations --------------------------------------------------------------------------------------------------

WRONG_FOR_ANY_MODEL = [
    ({"policy": "skip_all"}, "policy: 'skip_all' is unknown; known are dense, ffn_skip, random"),
    ({"sim_threshold": math.nan}, "sim_threshold: nan is not a similarity"),
    ({"warm_up_index": -1}, "warm_up_index: -1 is negative.*0 or more"),
    ({"skip_ratio": -0.1}, r"skip_ratio: -0.1 is outside \[0, 1\]"),
    ({"skip_ratio": 1.5}, r"skip_ratio: 1.5 is outside \[0, 1\]"),
    ({"skip_ratio": math.nan}, r"skip_ratio: -?nan is outside \[0, 1\]"),
    ({"max_skip": -2}, "max_skip: -2 is negative.*0 or more"),
    ({"cold_s": -1}, "cold_s: -1 is negative.*0 or more"),
    ({"cold_s": 4, "cold_e": 4}, "cold_s: 4 must be below cold_e = 4"),
    ({"cold_s": 5, "cold_e": 4}, "cold_s: 5 must be below cold_e = 4"),
    ({"policy": "fixed"}, "layers: the list is empty; name some, or leave it out"),
    ({"policy": "random", "layers": [1]}, "layers: only policies 'ffn_skip' and 'channels' take layers, not 'random'"),
    ({"layers": [2, -1]}, "layers: -1 is negative; the first layer is 0"),
    ({"layers": []}, "layers: the list is empty; name some, or leave it out"),
    ({"policy": "fixed_plus_ffn_skip"}, "layers: the list is empty; name some, or leave it out"),
    ({"policy": "ffn_skip_per_layer"}, "layer_thresholds: the list is empty; name one for each layer, or leave it out"),
    (
        {"policy": "dense", "layer_thresholds": [0.9]},
        "layer_thresholds: only policy 'ffn_skip' takes them, not 'dense'",
    ),
    ({"policy": "fixed", "layers": [1], "layer_thresholds": [0.9]}, "layer_thresholds: nothing is checked"),
    ({"policy": "ffn_skip_per_layer", "layer_thresholds": [math.nan]}, "layer_thresholds: nan is not a similarity"),
    ({"check_stride": 0}, "check_stride: 0 is no distance.*1 or more"),
    ({"region": "cold"}, "region: 'cold' is unknown; known are any, adaptive"),
    ({"seed": -1}, r"seed: -1 is not a whole number in \[0, 2\*\*64\)"),
    ({"seed": 2**64}, "seed: 18446744073709551616 is not a whole number in"),
    ({"max_skip": 2**31}, r"max_skip: 2147483648 is not a whole number below 2\*\*31, or None"),
]

OF_THE_WRONG_TYPE = [
    ({"policy": 3}, "policy: 3 is not the name of a policy"),
    ({"sim_threshold": "high"}, "sim_threshold: 'high' is not a number"),
    ({"warm_up_index": None}, "warm_up_index: None is not a whole number"),
    ({"max_skip": 2.5}, "max_skip: 2.5 is not a whole number below .*, or None"),
    ({"layers": 5}, "layers: 5 is not a list of layers, or None"),
    ({"layers": [1.5]}, r"layers: \[1.5\] is not a list of layers"),
    ({"layer_thresholds": ["a"]}, r"layer_thresholds: \['a'\] is not a list of numbers"),
    ({"max_skip": True}, "max_skip: True is not a number"),
    ({"skip_ratio": False}, "skip_ratio: False is not a number"),
    ({"layers": [3, True]}, "layers: True is not a number"),
    ({"region": 1}, "region: 1 is not the name of a region"),
]

WRONG_FOR_THIS_MODEL = [
    ({"cold_e": 9}, "cold_e: 9 is past 8; the last of the 9 layers always runs"),
    ({"cold_s": 8}, "cold_s: 8 leaves no adaptive region below cold_e = 8"),
    ({"cold_s": 2, "cold_e": 6, "max_skip": 4}, r"max_skip: 4 .*'ffn_skip' over layers \[2, 6\).* at most 3 of 9"),
    ({"policy": "random_adaptive_region", "cold_s": 2, "cold_e": 6, "max_skip": 5}, r"max_skip: 5 .*\[2, 6\).* 4 of 9"),
    ({"policy": "random", "max_skip": 9}, r"max_skip: 9 .*over layers \[0, 8\).* at most 8 of 9"),
    ({"skip_ratio": 1.0}, r"skip_ratio: 1 asks for 9; .* at most 6 of 9 FFN blocks \(a ratio of 0.666667\)"),
    ({"policy": "fixed", "layers": [2, 8]}, r"layers: 8 is out of range; a model of 9 layers can skip \[0, 7\]"),
    ({"policy": "ffn_skip_per_layer", "layer_thresholds": [0.9] * 8}, "layer_thresholds: 8 for a model of 9 layers"),
    ({"policy": "fixed_plus_ffn_skip", "layers": [2, 3], "cold_s": 1, "cold_e": 5, "max_skip": 2},
     r"max_skip: 2 .* at most 1 of 9 FFN blocks beside the 2 of layers"),
    ({"policy": "fixed_plus_ffn_skip", "layers": [2, 3, 4]}, "skip_ratio: 0.25 asks for 2 .* fewer than the 3"),
]  # fmt: skip


@pytest.mark.parametrize("options, message", WRONG_FOR_ANY_MODEL, ids=str)
def test_a_value_that_is_wrong_for_any_model_is_refused_with_field_value_and_range(options, message):
    with pytest.raises(ValueError, match=message):
        SkipConfig(**options)


@pytest.mark.parametrize("options, message", OF_THE_WRONG_TYPE, ids=str)
def test_a_value_of_the_wrong_type_is_a_type_error_with_field_and_value(options, message):
    with pytest.raises(TypeError, match=message):
        SkipConfig(**options)


@pytest.mark.parametrize("options, message", WRONG_FOR_THIS_MODEL, ids=str)
def test_a_value_that_does_not_fit_the_model_is_refused_and_the_old_one_stays(llm, options, message):
    llm.skip = before = SkipConfig(policy="fixed", layers=[4])
    with pytest.raises(ValueError, match=message):
        llm.skip = SkipConfig(**options)
    assert llm.skip == before


def test_defaults_are_those_of_the_paper_scaled_to_the_model(llm):
    llm.skip = SkipConfig()
    resolved = dict(llm.resolved)
    assert resolved.pop("sim_threshold") == pytest.approx(0.9)
    assert resolved.pop("min_layers") == 9
    assert resolved == {"policy": "ffn_skip", "cold_s": 1, "cold_e": 8, "warm_up_index": 30, "max_skip": 2}


EXAMPLES = [
    SkipConfig(),
    SkipConfig(policy="dense"),
    SkipConfig(sim_threshold=0.5, cold_s=0, cold_e=7, warm_up_index=0, skip_ratio=0.5, max_skip=3),
    SkipConfig(policy="fixed", layers=[1, 5]),
    SkipConfig(policy="random", seed=2**63 + 1, max_skip=0),
    SkipConfig(policy="random", region="adaptive"),
    SkipConfig(policy="fixed_plus_ffn_skip", layers=[1, 5], check_stride=3),
    SkipConfig(policy="ffn_skip_per_layer", layer_thresholds=[0.5, -1.0, 2.0]),
]


@pytest.mark.parametrize("config", EXAMPLES, ids=repr)
def test_a_config_survives_pickling_and_its_repr_builds_it_again(config):
    for copy in (pickle.loads(pickle.dumps(config)), eval(repr(config))):
        assert copy == config and hash(copy) == hash(config) and repr(copy) == repr(config)
    assert [other == config for other in EXAMPLES].count(True) == 1
    assert config != repr(config) and config is not None


OLD_NAMES = [
    ({"policy": "fixed", "layers": [1]}, {"layers": (1,), "max_skip": 0}),
    ({"policy": "fixed_plus_ffn_skip", "layers": [1], "max_skip": 2}, {"layers": (1,), "max_skip": 2}),
    ({"policy": "ffn_skip_per_layer", "layer_thresholds": [0.5]}, {"layer_thresholds": (0.5,)}),
    ({"policy": "random_adaptive_region"}, {"policy": "random", "region": "adaptive"}),
]


@pytest.mark.parametrize("old, now", OLD_NAMES, ids=lambda options: options.get("policy", ""))
def test_the_name_of_an_older_version_is_what_it_stands_for(old, now):
    assert SkipConfig(**old) == SkipConfig(**now) and SkipConfig(**old).policy == now.get("policy", "ffn_skip")


def test_the_fields_are_those_of_the_core():
    """Read off the header, so that neither has one that the other does not know."""
    header = (Path(__file__).parents[2] / "cpp" / "include" / "ffnskip" / "config.h").read_text()
    struct = header[header.index("struct Config {") + len("struct Config {") : header.index("void validate()")]
    declarations = re.sub(r"//.*", "", struct).split(";")[:-1]  # which may take more than a line
    fields = [re.search(r"(\w+)(?:\s*=.*)?$", declaration)[1] for declaration in declarations]
    assert sorted(fields) == sorted(field.name for field in dataclasses.fields(SkipConfig))


def test_numbers_are_shown_as_they_were_given():
    config = SkipConfig(sim_threshold=0.9, skip_ratio=0.3, layer_thresholds=[0.95])
    assert repr(config) == "SkipConfig(skip_ratio=0.3, layer_thresholds=(0.95,))"
    assert config.replace(skip_ratio=0.1).asdict()["skip_ratio"] == 0.1 and config.sim_threshold == 0.9


def test_a_config_shows_what_it_was_given_and_cannot_be_changed():
    """`layers` was once read from a tuple that no longer existed, and the process crashed."""
    config = SkipConfig(policy="fixed", layers=[5, 1, 5], seed=3)
    assert (config.policy, config.layers, config.max_skip, config.seed) == ("ffn_skip", (5, 1, 5), 0, 3)
    assert (config.cold_s, config.cold_e, SkipConfig().max_skip, SkipConfig().layers) == (None, None, None, None)
    for field in ("policy", "sim_threshold", "layers", "seed"):
        with pytest.raises(AttributeError):
            setattr(config, field, 0)


def test_nothing_but_dense_can_be_asked_of_a_controller_that_knows_no_model():
    controller = _core.Controller()
    controller.config = SkipConfig(policy="dense")
    with pytest.raises(Unsupported, match=r"policy 'ffn_skip': probe\(\) has not been called"):
        controller.config = SkipConfig()
