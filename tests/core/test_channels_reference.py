"""Channels left out are those that a NumPy program leaves out, and the logits are its own: one by one, in a batch."""

from __future__ import annotations

import numpy as np
import pytest

from ffnskip_cpp import SkipConfig
from support.channels import (
    AT_MOST,
    DAMPED,
    MAY_SKIP,
    N_LAYER,
    TENSORS,
    TOKENS,
    TYPES,
    TYPICAL,
    WARM_UP,
    WAYS,
    as_a_batch,
    channels,
    differences,
    one_by_one,
    only,
    shares,
    thresholds_of,
)
from support.channels_reference import KINDS, ReferenceChannels, ReferenceExpertsChannels, ReferenceGemmaChannels
from support.reference import SkipSettings
from support.running import F32_CACHE, SETTINGS, SKIPPABLE_ROW, WARM_UP_ROW, feed_one_by_one, ours

pytestmark = pytest.mark.filterwarnings("ignore:skip:UserWarning")

# float32 throughout, and float64 in NumPy: logits, and reaches of channels.
FLOAT32, FLOAT32_REACH = 1e-5, 5e-6


def kept_of(trace, reference):
    """Channels, (n_tokens, n_layer, 4)."""
    return np.rint(shares(trace) * reference.n_channels).astype(int)


@pytest.mark.parametrize("tensors", TENSORS)
@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
@pytest.mark.parametrize("type", TYPES)
def test_channels_kept_and_logits_are_those_of_the_reference(model_file, type, share, tensors):
    path = model_file("llama", **DAMPED, quantized=type)
    thresholds = only(thresholds_of(path, share), *TENSORS[tensors])
    reference = ReferenceChannels(path, thresholds)
    expected, of_reference = reference.evaluate(TOKENS, MAY_SKIP)
    for way in WAYS.values():
        with ours(path, channels(thresholds)) as llm, llm.trace() as trace:
            got = way(llm)
        kept = kept_of(trace, reference)
        # Hardly ever does rounding move a channel by more than what the reference takes to be close.
        assert (np.abs(kept - of_reference.kept) > of_reference.close).mean() < 2e-3
        assert kept[WARM_UP:].mean() == pytest.approx(of_reference.kept[WARM_UP:].mean(), rel=1e-3)
        assert np.median(differences(got, expected)) < TYPICAL
        assert differences(got, expected).max() < AT_MOST
    dense, _ = ReferenceChannels(path).evaluate(TOKENS)
    assert np.median(differences(dense, expected)[WARM_UP:]) > 2 * TYPICAL  # or else the test could not tell


@pytest.mark.parametrize("tensors", TENSORS)
@pytest.mark.parametrize("options", [{}, {"layers": [1, 2]}], ids=["", "beside blocks"])
def test_a_float32_model_keeps_the_channels_of_the_reference_one_for_one(model_file, options, tensors):
    path = model_file("llama", n_layer=4)
    settings = SkipSettings(np.inf, 0, 4, 0, **options) if options else None
    thresholds = only(thresholds_of(path, 0.6, kv_f16=False), *TENSORS[tensors])
    reference = ReferenceChannels(path, thresholds, close=FLOAT32_REACH, settings=settings, kv_f16=False)
    expected, of_reference = reference.evaluate(TOKENS, MAY_SKIP)
    assert of_reference.close.sum() == 0  # choose another share
    for way in WAYS.values():
        with ours(path, channels(thresholds, **options), **F32_CACHE) as llm, llm.trace() as trace:
            got = way(llm)
        assert np.array_equal(kept_of(trace, reference), of_reference.kept)
        assert differences(got, expected).max() < FLOAT32


@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_1"])
@pytest.mark.parametrize("tensors", TENSORS)
def test_results_that_are_normalised_count_by_their_proportions(model_file, type, tensors):
    """Gemma 2, with the same rule for reaches relative to those of the input."""
    path = model_file("post_norm", **{**DAMPED, "embedding_rms": 1024.0}, quantized=type)
    reference = ReferenceGemmaChannels(path)
    dense, _ = reference.evaluate(TOKENS)
    thresholds = only(reference.thresholds_that_keep(0.5), *TENSORS[tensors])
    reference = ReferenceGemmaChannels(path, thresholds)
    expected, of_reference = reference.evaluate(TOKENS, MAY_SKIP)
    for way in WAYS.values():
        with ours(path, channels(thresholds)) as llm, llm.trace() as trace:
            got = way(llm)
        kept = kept_of(trace, reference)
        assert (np.abs(kept - of_reference.kept) > of_reference.close).mean() < 2e-3
        assert np.median(differences(got, expected)) < TYPICAL
        assert differences(got, expected).max() < AT_MOST
    assert np.median(differences(dense, expected)[WARM_UP:]) > 2 * TYPICAL


def experts(path, share: float, *kinds: str, **options):
    """(thresholds, reference) that keep about this share of the channels of these kinds."""
    dense = ReferenceExpertsChannels(path, **options)
    dense.evaluate(TOKENS)
    thresholds = only(dense.thresholds_that_keep(share), *kinds)
    return thresholds, ReferenceExpertsChannels(path, thresholds, **options)


@pytest.mark.parametrize("tensors", TENSORS)
@pytest.mark.parametrize("type", TYPES)
def test_each_expert_keeps_the_channels_of_the_reference(model_file, type, tensors):
    path = model_file("moe", **DAMPED, quantized=type)
    thresholds, reference = experts(path, 0.6, *TENSORS[tensors])
    expected, of_reference = reference.evaluate(TOKENS, MAY_SKIP)
    for way in WAYS.values():
        with ours(path, channels(thresholds)) as llm, llm.trace() as trace:
            got = way(llm)
        kept = kept_of(trace, reference)
        assert (np.abs(kept - of_reference.kept) > of_reference.close).mean() < 2e-3
        assert kept[WARM_UP:].mean() == pytest.approx(of_reference.kept[WARM_UP:].mean(), rel=1e-3)
        assert np.median(differences(got, expected)) < TYPICAL
        assert np.quantile(differences(got, expected), 0.97) < AT_MOST  # rounding may choose another expert
    dense, _ = ReferenceExpertsChannels(path).evaluate(TOKENS)
    assert np.median(differences(dense, expected)[WARM_UP:]) > 2 * TYPICAL


@pytest.mark.parametrize("tensors", TENSORS)
def test_experts_of_a_float32_model_keep_the_channels_of_the_reference_one_for_one(model_file, tensors):
    path = model_file("moe", n_layer=4)
    thresholds, reference = experts(path, 0.6, *TENSORS[tensors], kv_f16=False, close=FLOAT32_REACH)
    expected, of_reference = reference.evaluate(TOKENS, MAY_SKIP)
    assert of_reference.close.sum() == 0  # choose another share
    for way in WAYS.values():
        with ours(path, channels(thresholds), **F32_CACHE) as llm, llm.trace() as trace:
            got = way(llm)
        assert np.array_equal(kept_of(trace, reference), of_reference.kept)
        assert differences(got, expected).max() < FLOAT32


# Of each kind of input this power of one share is kept, whatever is to be left out.
POWERS = np.array([1.2, 1.35, 1.0, 2.0])


def shares_kept(weights, ratio):
    """Of each kind, so that `ratio` of all bytes is left out; weights: bytes of each kind, [4]."""
    share = np.linspace(0, 1, 10001)[:, None]
    left_out = ((1 - share**POWERS) * weights).sum(axis=1) / weights.sum()
    return np.interp(-ratio, -left_out, share[:, 0]) ** POWERS


@pytest.mark.parametrize("warm_up_index, n_full", [(3, 16), (25, 25)])
@pytest.mark.parametrize("tensors", TENSORS)
def test_thresholds_that_are_found_are_quantiles_of_the_first_tokens(model_file, tensors, warm_up_index, n_full):
    path = model_file("llama", **DAMPED, quantized="f16")  # without scales: bytes are as many as channels
    reference = ReferenceChannels(path)
    first, _ = reference.evaluate(TOKENS[:n_full])
    weights = (reference.n_channels * reference.channel_bytes).sum(axis=0) * np.isin(KINDS, TENSORS[tensors])
    thresholds = only(reference.thresholds_that_keep(shares_kept(weights, 1 / 3)), *TENSORS[tensors])
    reference.thresholds = np.reshape(thresholds, reference.n_channels.shape)
    rest, of_reference = reference.evaluate(TOKENS[n_full:], may_skip=True)
    config = SkipConfig(policy="channels", tensors=tensors, warm_up_index=warm_up_index)
    for way in (as_a_batch, lambda llm: feed_one_by_one(llm, TOKENS, rows_of(warm_up_index))):
        with ours(path, config) as llm, llm.trace() as trace:
            got = way(llm)
        kept = kept_of(trace, reference)
        assert (kept[:n_full] == reference.n_channels).all()
        # Quantiles are taken from counts by steps of size.
        expected = of_reference.kept.mean(axis=0) / reference.n_channels
        assert kept[n_full:].mean(axis=0) / reference.n_channels == pytest.approx(expected, abs=0.01)
        assert np.median(differences(got, np.concatenate([first, rest]))) < 2 * TYPICAL


def rows_of(warm_up_index):
    return [WARM_UP_ROW if i < warm_up_index else SKIPPABLE_ROW for i in range(len(TOKENS))]


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_the_context_change_nothing(model_file, setting):
    path = model_file("llama", **DAMPED, quantized="q8_0")
    thresholds = thresholds_of(path, 0.6)
    expected, _ = ReferenceChannels(path, thresholds).evaluate(TOKENS, MAY_SKIP)
    for way in WAYS.values():
        with ours(path, channels(thresholds), **SETTINGS[setting]) as llm:
            assert differences(way(llm), expected).max() < AT_MOST


@pytest.mark.parametrize("shape", [{"quantized": "q5_k_s"}, {"n_embd": 192, "n_ff": 448, "quantized": "q8_0"}], ids=str)
@pytest.mark.parametrize("tensors", TENSORS)
@pytest.mark.parametrize("kind", ["llama", "moe"])
def test_bytes_are_those_of_the_channels_left_out(model_file, kind, shape, tensors):
    """Of experts, of those that a token uses."""
    path = model_file(kind, **{**DAMPED, **shape})
    if kind == "moe":
        thresholds, reference = experts(path, 0.6, *TENSORS[tensors])
    else:
        thresholds = only(thresholds_of(path, 0.6), *TENSORS[tensors])
        reference = ReferenceChannels(path, thresholds)
    concerned = np.isin(KINDS, TENSORS[tensors])
    with ours(path, channels(thresholds)) as llm:
        with llm.trace() as trace:
            one_by_one(llm)
        kept, stats = kept_of(trace, reference), llm.stats
        left_out = reference.bytes_left_out(kept)
        assert stats.bytes_left_out == left_out.sum() > 0
        assert stats.ffn_bytes_not_read == left_out[KINDS.index("up") :].sum()
        assert np.array_equal(stats.channels_kept.reshape(N_LAYER, -1), kept.sum(axis=0) * concerned)
        total = len(TOKENS) * reference.n_channels * concerned
        assert np.array_equal(stats.channels_total.reshape(N_LAYER, -1), total)
        llm.reset_stats()
        as_a_batch(llm)
        assert llm.stats.bytes_left_out == pytest.approx(left_out.sum(), rel=1e-3)
        assert llm.stats.ffn_bytes_not_read == 0  # other rows of the batch need them
