"""Models partly on another device: layers there run as they are, those on the CPU leave channels out.

Needs a device: FFNSKIP_TEST_RPC, as support/rpc_device.py says. The oracle is the same model on the CPU alone.
"""

from __future__ import annotations

import contextlib
import ctypes

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import SkipConfig, Unsupported
from support import rpc_device
from support.channels import (
    AT_MOST,
    DAMPED,
    N_LAYER,
    ROWS,
    TOKENS,
    WAYS,
    channels,
    differences,
    only,
    shares,
    thresholds_of,
)
from support.channels_reference import ReferenceExpertsChannels
from support.running import PROMPT_ROW, SKIPPABLE_ROW, feed, feed_one_by_one, ours, plain

pytestmark = pytest.mark.filterwarnings("ignore:skip:UserWarning")

KINDS = ["llama", "moe"]
TYPES = [None, "q8_0"]
ALL, SOME = N_LAYER + 1, 3  # layers on the device, the output among them


@pytest.fixture(params=["stay", "move"], autouse=True)
def large_batches(request):
    """Weights of the CPU stay there in batches of many rows, or move to the device for them, as to a GPU."""
    with rpc_device.taking_large_batches() if request.param == "move" else contextlib.nullcontext():
        yield


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=TYPES)
def model(model_file, kind, request):
    """(path, thresholds with which 60 % of the channels are kept, [n_layer, 4])."""
    path = model_file(kind, **DAMPED, **({} if request.param is None else {"quantized": request.param}))
    if kind == "llama":
        thresholds = thresholds_of(path, 0.6)
    else:
        reference = ReferenceExpertsChannels(path)
        reference.evaluate(TOKENS)
        thresholds = reference.thresholds_that_keep(0.6)
    return path, np.asarray(thresholds).reshape(N_LAYER, 4)


def evaluated(path, config, **options):
    """Of each way: logits and shares kept; and the statistics."""
    results = []
    with ours(path, config, **options) as llm:
        for way in WAYS.values():
            with llm.trace() as trace:
                logits = way(llm)
            results.append((logits, shares(trace)))
        return results, llm.stats


def expect_same(got, expected):
    for (logits, kept), (expected_logits, expected_kept) in zip(got[0], expected[0]):
        assert differences(logits, expected_logits).max() < AT_MOST
        assert np.abs(kept - expected_kept).mean() < 1e-3
    assert got[1].tokens == expected[1].tokens
    assert got[1].bytes_left_out == pytest.approx(expected[1].bytes_left_out, rel=2e-3)
    assert got[1].bytes_left_out > 0


@pytest.mark.parametrize("n_ubatch", [3, 512])
def test_layers_on_the_cpu_leave_out_what_they_do_without_a_device(model, n_ubatch):
    path, thresholds = model
    on_device = thresholds.copy()
    on_device[ALL - SOME :] = 0
    expected = evaluated(path, channels(on_device.ravel().tolist()), n_ubatch=n_ubatch, n_gpu_layers=0)
    for given in (on_device, thresholds):  # those of layers on the device do not count
        config = channels(given.ravel().tolist())
        expect_same(evaluated(path, config, n_ubatch=n_ubatch, n_gpu_layers=SOME), expected)


class _Override(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("memory", ctypes.c_void_p)]


@pytest.fixture
def ffn_on_cpu(monkeypatch):
    """As --override-tensor has it, and --cpu-moe: all on the device but the FFN's matrices."""
    memory = rpc_device.ggml("libggml-base.so.0").ggml_backend_cpu_buffer_type
    memory.restype = ctypes.c_void_p
    overrides = (_Override * 2)(_Override(rb"ffn_(up|gate|down)(_exps)?\.weight", memory()), _Override(None, None))
    defaults = llama_cpp.llama_model_default_params

    def params():
        params = defaults()
        field = type(params.tensor_buft_overrides)
        params.tensor_buft_overrides = (
            ctypes.addressof(overrides) if field in (int, type(None)) else ctypes.cast(overrides, field)
        )
        return params

    @contextlib.contextmanager
    def set_up():
        with monkeypatch.context() as patch:
            patch.setattr(llama_cpp, "llama_model_default_params", params)
            patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", params)
            yield

    return set_up


@pytest.mark.parametrize("n_ubatch", [3, 512])
def test_what_comes_from_the_device_leaves_channels_out_on_the_cpu(model, n_ubatch, ffn_on_cpu):
    path, thresholds = model
    config = channels(only(thresholds, "up", "down"))
    expected = evaluated(path, config, n_ubatch=n_ubatch, n_gpu_layers=0)
    with ffn_on_cpu():
        expect_same(evaluated(path, config, n_ubatch=n_ubatch, n_gpu_layers=ALL), expected)


def test_a_prompt_in_the_same_batch_changes_nothing(model):
    """Of two sequences one generates, and the other's prompt makes the batch large."""
    path, thresholds = model
    kinds = [SKIPPABLE_ROW] * 3 + [PROMPT_ROW] * 60
    config = channels(thresholds.ravel().tolist())
    with ours(path, config, n_gpu_layers=SOME) as llm, ours(path, config, n_gpu_layers=SOME) as alone:
        together = feed(llm, TOKENS[:63], 0, kinds)
        assert differences(together[:3], feed_one_by_one(alone, TOKENS[:3], SKIPPABLE_ROW)).max() < AT_MOST


def test_a_third_of_what_the_cpu_reads_is_left_out_where_nothing_else_is_said(model):
    path, _ = model
    config = SkipConfig(policy="channels", warm_up_index=20)
    with ours(path, config, n_gpu_layers=SOME) as llm:
        feed_one_by_one(llm, TOKENS[:20], ROWS[:20])
        llm.reset_stats()
        feed_one_by_one(llm, TOKENS[20:], SKIPPABLE_ROW, 20)
        assert llm.stats.skip_ratio == pytest.approx(1 / 3 / 2, abs=0.03)  # two layers of four


def test_a_model_that_is_all_on_the_device_is_refused_by_name(model):
    path, _ = model
    with plain(path, n_gpu_layers=ALL) as expected, ours(path, None, n_gpu_layers=ALL) as llm:
        with pytest.raises(Unsupported, match=r"channels.*it is computed by RPC0, not by the CPU"):
            llm.skip = SkipConfig(policy="channels")
        assert differences(feed(llm, TOKENS, 0), feed(expected, TOKENS, 0)).max() == 0


@pytest.mark.parametrize("n_gpu_layers", [SOME, ALL])
def test_blocks_are_left_out_on_either_side(model_file, n_gpu_layers):
    path = model_file("llama", n_layer=8)
    for config in (
        SkipConfig(policy="fixed", layers=[1, 3, 6], warm_up_index=0),
        SkipConfig(policy="ffn_skip", sim_threshold=0.5, cold_s=1, cold_e=7, max_skip=2, warm_up_index=0),
    ):
        kinds = [PROMPT_ROW if i % 3 == 0 else SKIPPABLE_ROW for i in range(len(TOKENS))]
        traces, logits = [], []
        for n in (0, n_gpu_layers):
            with ours(path, config, callback=True, n_gpu_layers=n) as llm:
                for way in (feed_one_by_one, lambda llm, tokens, kinds: feed(llm, tokens, 0, kinds)):
                    with llm.trace() as trace:
                        logits.append(way(llm, TOKENS, kinds))
                    traces.append(trace.skipped)
        assert differences(logits[2], logits[0]).max() < AT_MOST and differences(logits[3], logits[1]).max() < AT_MOST
        assert traces[0].any() and all((trace == traces[0]).all() for trace in traces)


@pytest.mark.parametrize("n_gpu_layers", [SOME, ALL])
def test_blocks_are_left_out_on_either_side_without_the_callback(model_file, n_gpu_layers):
    path = model_file("llama", n_layer=8)
    config = SkipConfig(policy="fixed", layers=[1, 3, 6], warm_up_index=0)
    kinds = [PROMPT_ROW if i % 3 == 0 else SKIPPABLE_ROW for i in range(len(TOKENS))]
    logits = []
    for n in (0, n_gpu_layers):
        with ours(path, config, n_gpu_layers=n) as llm:
            assert llm._controller.hooked
            logits.append(feed_one_by_one(llm, TOKENS, kinds))
    assert differences(logits[1], logits[0]).max() < AT_MOST
