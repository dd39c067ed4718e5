"""Policy `channels` without thresholds: each text finds its own, whatever was decoded before and however it is fed."""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import SkipConfig
from ffnskip_cpp._core import CHANNEL_TOKENS, Controller, Session
from support.running import ours, plain

CHANNELS = SkipConfig(policy="channels", skip_ratio=0.4, warm_up_index=0)
TEXTS = [[(7 * i * i + 11 * j) % 250 + 3 for i in range(48)] for j in range(3)]

pytestmark = pytest.mark.filterwarnings("ignore:skip. channels")  # the values are not calibrated


@pytest.fixture(scope="module")
def path(model_file):
    return model_file("llama", n_layer=4)


def kept_of(llm, tokens):
    with llm.trace() as trace:
        llm.forward(tokens)
    return trace.kept


def test_a_text_finds_its_own_thresholds_whatever_came_before(path):
    with ours(path, CHANNELS) as llm:
        one_after_another = [kept_of(llm, text) for text in TEXTS]
    for text, kept in zip(TEXTS, one_after_another):
        with ours(path, CHANNELS) as llm:
            np.testing.assert_array_equal(kept, kept_of(llm, text))
        assert (kept[:CHANNEL_TOKENS, :, 2:] == 1).all() and (kept[CHANNEL_TOKENS:, :, 2:] < 1).any()
    assert not np.array_equal(one_after_another[0][CHANNEL_TOKENS:], one_after_another[1][CHANNEL_TOKENS:])


def test_rows_that_nobody_asks_for_tell_thresholds_as_well(path):
    """What follows the last attention is computed of rows with an output alone, and the first tokens tell of it too."""
    with ours(path, CHANNELS, type_k=0, type_v=0) as llm:
        for text in TEXTS:
            whole, named = llm.forward(text), llm.forward(text, [True] * len(text))
            np.testing.assert_allclose(llm.forward(text, rows=[-1]), whole[-1:], atol=1e-4 * np.abs(whole).max())
            got = llm.forward(text, [True] * len(text), rows=[-1])
            np.testing.assert_allclose(got, named[-1:], atol=1e-4 * np.abs(whole).max())


def test_tokens_without_positions_are_told_apart(path):
    """llama_batch_get_one names no positions, and every program that generates token by token uses it."""
    with plain(path) as model:
        controller = Controller()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_threads, params.n_threads_batch = 64, 1, 1
        params.cb_eval = ctypes.cast(controller.callback, llama_cpp.ggml_backend_sched_eval_callback)
        params.cb_eval_user_data = controller.user_data
        ctx = llama_cpp.llama_init_from_model(model.model, params)
        controller.probe(ctx)
        controller.config = CHANNELS
        session = Session(ctx, controller)
        token = (llama_cpp.llama_token * 1)()
        batch = llama_cpp.llama_batch_get_one(token, 1)
        for given in TEXTS[0][:40]:
            token[0] = given
            session.decode_batch(ctypes.addressof(batch), True)
        stats = controller.stats
        del session
        llama_cpp.llama_free(ctx)
    assert stats.tokens == 40
    # The first 16 of them run in full.
    assert stats.skip_ratio * 40 / (40 - CHANNEL_TOKENS) == pytest.approx(0.4, abs=0.08)
