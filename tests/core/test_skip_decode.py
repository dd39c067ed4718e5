"""Policy skip_decode: the layers left out follow the rule; no token attends to keys and values that are not there."""

from __future__ import annotations

import ctypes
import itertools

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import SkipConfig
from support.reference import LayerBudget, ReferenceLlama
from support.running import (
    F32_CACHE,
    GREEDY,
    PROMPT_ROW,
    SKIPPABLE_ROW,
    bits_equal,
    feed,
    feed_one_by_one,
    ours,
)

N_LAYER = 12
COLD_S, COLD_E, MIN_LAYERS, DECAY = 2, 10, 6, 40
CONFIG = SkipConfig("skip_decode", cold_s=COLD_S, cold_e=COLD_E, min_layers=MIN_LAYERS, budget_decay=DECAY)
RULE = LayerBudget(N_LAYER, COLD_S, MIN_LAYERS, DECAY)

TOKENS = np.random.default_rng(3).integers(0, 256, 70).tolist()
# A prompt, an answer during which the budget falls, a second prompt, an answer.
TURNS = [False] * 8 + [True] * 22 + [False] * 9 + [True] * 31
KINDS = [SKIPPABLE_ROW if generated else PROMPT_ROW for generated in TURNS]

SAME_ARITHMETIC = 2e-5  # float32 in llama.cpp, float64 in NumPy; or rows of a batch and alone


@pytest.fixture(scope="module")
def path(model_file):
    return model_file("llama", n_layer=N_LAYER)


@pytest.fixture(scope="module")
def expected(path):
    """Logits by NumPy, (70, n_vocab); NaN if a token attended to what is not there."""
    reference, rows = ReferenceLlama(path, kv_f16=False), []
    for token, reference.left_out in zip(TOKENS, RULE.left_out(TURNS)):
        rows.append(reference.decode(token)[0])
    return np.stack(rows)


def assert_close(logits, expected):
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(logits, expected, atol=SAME_ARITHMETIC * np.abs(expected).max())


def test_generation_leaves_out_what_the_rule_says(path):
    prompt, n = TOKENS[:8], 90
    with ours(path, CONFIG, **F32_CACHE) as llm:
        with llm.trace() as trace:
            tokens = list(itertools.islice(llm.generate(prompt, **GREEDY), n))
        assert llm.stats.attention_skipped == llm.stats.ffn_skipped == trace.skipped.sum()
    rule = RULE.left_out([False] * 8 + [True] * (n - 1))
    reference, expected = ReferenceLlama(path, kv_f16=False), []
    logits = reference.prefill(prompt)
    for reference.left_out in rule[8:]:
        expected.append(int(logits.argmax()))
        logits, _ = reference.decode(expected[-1])
    assert tokens == [*expected, int(logits.argmax())]
    assert [np.flatnonzero(row).tolist() for row in trace.skipped] == [list(layers) for layers in rule[8:]]
    assert len(rule[-1]) == N_LAYER - MIN_LAYERS > len(rule[8]) > 0  # it falls, to the fewest


@pytest.mark.parametrize("options", [{}, {"n_ubatch": 7}], ids=str)
def test_prompts_between_take_what_is_there(path, expected, options):
    with ours(path, CONFIG, **F32_CACHE, **options) as llm:
        assert_close(feed_one_by_one(llm, TOKENS, KINDS), expected)
        llm.reset()
        assert_close(llm.forward(TOKENS, KINDS), expected)
        llm.reset()
        parts = [(0, 8), (8, 11), (11, 30), (30, 39), (39, 70)]
        assert_close(np.concatenate([feed(llm, TOKENS[a:b], a, KINDS[a:b]) for a, b in parts]), expected)


@pytest.mark.parametrize("cut", [9, 20, 34, 60])
def test_cut_and_gone_on_with_it_is_what_it_was(path, expected, cut):
    with ours(path, CONFIG, **F32_CACHE) as llm:
        feed(llm, TOKENS, 0, KINDS)
        assert_close(feed(llm, TOKENS[cut:], cut, KINDS[cut:]), expected[cut:])
        assert_close(feed(llm, TOKENS[:8], 0), expected[:8])  # emptied: all layers again


def test_a_saved_state_goes_on_where_it_was(path, expected):
    def generated(llm, begin, end):
        for i in range(begin, end):
            llm.eval([TOKENS[i]], generated=TURNS[i])

    def answers(llm):
        return np.ctypeslib.as_array(llm._ctx.get_logits(), shape=(1, llm.n_vocab())).copy()

    with ours(path, CONFIG, **F32_CACHE) as llm:
        generated(llm, 0, 25)
        state = llm.save_state()
        generated(llm, 25, 40)
        llm.load_state(state)
        generated(llm, 25, 35)
        assert_close(answers(llm), expected[34:35])
        llm.load_state(state)
        llm._decoder.controller.replaced()  # nothing is known: as few layers as ever a token runs
        llm.eval(TOKENS[25:30], generated=False)
        reference = ReferenceLlama(path, kv_f16=False)
        for token, reference.left_out in zip(TOKENS[:25], RULE.left_out(TURNS)):
            reference.decode(token)
        reference.left_out = range(COLD_S, COLD_S + N_LAYER - MIN_LAYERS)
        assert_close(answers(llm), reference.evaluate(TOKENS[25:30])[0][-1:])


# --- cells that were not written -------------------------------------------------------------------------------------


def poison(llm, value):
    """Leaves keys and values of all layers but the first that come of `value` in the cells, which are free again."""
    vector = np.full((N_LAYER - 1) * llm.n_embd(), value, np.float32)
    data = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    context = llm._ctx.ctx
    assert llama_cpp.llama_set_adapter_cvec(context, data, vector.size, llm.n_embd(), 1, N_LAYER - 1) == 0
    with llm.dense():
        feed(llm, TOKENS + TOKENS, 0)
    assert llama_cpp.llama_set_adapter_cvec(context, None, 0, llm.n_embd(), 1, N_LAYER - 1) == 0
    llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context), -1, -1, -1)


POISONS = [
    # A cell that is masked counts for nothing, but 0 * NaN is NaN: flash attention alone never looks at it.
    ({}, 30.0),
    ({"flash_attn": True}, np.nan),
]


@pytest.mark.parametrize("options, value", POISONS, ids=["large", "nan"])
def test_a_cell_that_was_not_written_is_never_attended_to(path, options, value):
    with ours(path, CONFIG, **options) as clean, ours(path, CONFIG, **options) as poisoned:
        poison(poisoned, value)
        expected = feed_one_by_one(clean, TOKENS, KINDS)
        assert bits_equal(feed_one_by_one(poisoned, TOKENS, KINDS), expected) and np.isfinite(expected).all()

        # The test can tell: with an account that knows of no layers left out, a prompt goes wrong.
        with ours(path, CONFIG, **options) as full:
            feed(full, TOKENS, 0)
            account = full._decoder.controller.account()
        rows = []
        for llm in (clean, poisoned):
            llm._decoder.controller.restore(account)
            rows.append(feed_one_by_one(llm, TOKENS[:5], PROMPT_ROW, 70))
        assert not bits_equal(*rows)
