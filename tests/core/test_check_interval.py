"""Where every N-th token is checked, those between skip what it did, however the tokens come: one by one, in batches,
as drafts, after a cut or from a saved state. (test_algorithm1.py compares with the rule in NumPy, and the native
test_sequences has copies and shifts.)
"""

from __future__ import annotations

import numpy as np
import pytest
from llama_cpp.llama_speculative import LlamaDraftModel

from ffnskip_cpp import SkipConfig
from support.running import (
    F32_CACHE,
    GREEDY,
    PROMPT_ROW,
    SKIPPABLE_ROW,
    WARM_UP_ROW,
    bits_equal,
    feed,
    feed_one_by_one,
    ours,
    session_of,
)

N_LAYER, COLD_S, COLD_E = 9, 1, 7
INTERVAL = 5
CONFIG = SkipConfig(
    sim_threshold=0.92, cold_s=COLD_S, cold_e=COLD_E, max_skip=2, warm_up_index=3, check_interval=INTERVAL
)
TOKENS = np.random.default_rng(31).integers(0, 256, 60).tolist()
KINDS = [WARM_UP_ROW] * 3 + [SKIPPABLE_ROW] * 57


@pytest.fixture(scope="module")
def path(model_file):
    return model_file("llama", n_layer=N_LAYER, n_embd=64, n_ff=32)


def observed(llm, call):
    """What `call` returns, and which layers were skipped and checked, (n_tokens, n_layer) bool each."""
    with llm.trace() as trace:
        result = call()
    return result, trace.skipped, ~np.isnan(trace.similarity)


@pytest.fixture(scope="module")
def one_by_one(path):
    with ours(path, CONFIG, **F32_CACHE) as llm:
        return observed(llm, lambda: feed_one_by_one(llm, TOKENS, KINDS))


def test_tokens_between_skip_what_the_one_before_them_did(one_by_one):
    _, skipped, checked = one_by_one
    decides = [i for i in range(60) if i >= 3 and (i - 3) % INTERVAL == 0]
    assert np.flatnonzero(checked.any(axis=1)).tolist() == decides
    assert len({skipped[i].tobytes() for i in decides}) > 2  # or a constant would do
    for i in decides:
        assert (skipped[i : i + INTERVAL] == skipped[i]).all()


def test_without_an_interval_every_token_is_checked(path):
    with ours(path, CONFIG.replace(check_interval=1)) as llm:
        llm.forward(TOKENS)
        assert llm.stats.checks > 57
        few = llm.stats.checks
        llm.skip = CONFIG.replace(sim_threshold=-1.0, check_interval=19)
        llm.reset_stats()
        llm.forward(TOKENS)
        assert llm.stats.checks == 3 < few
        assert llm.stats.ffn_skipped == 57 * 2


@pytest.mark.parametrize("options", [{}, {"n_ubatch": 7}, {"n_batch": 13, "n_ubatch": 4}], ids=str)
def test_a_batch_is_the_same_as_one_by_one(path, one_by_one, options):
    logits, skipped, checked = one_by_one
    with ours(path, CONFIG, **F32_CACHE, **options) as llm:
        got = observed(llm, lambda: llm.forward(TOKENS, rows=range(60)))
    assert np.array_equal(got[1], skipped) and np.array_equal(got[2], checked)
    np.testing.assert_allclose(got[0], logits, atol=2e-5 * np.abs(logits).max())


@pytest.mark.parametrize("begin, end", [(11, 14), (4, 8), (13, 17), (1, 30)])
def test_tokens_taken_back_and_fed_again_are_what_they_were(path, one_by_one, begin, end):
    """As a draft of which the rest was refused. What a refused token decided, no other token follows."""
    logits, skipped, checked = one_by_one
    wrong = [(token + 100) % 256 for token in TOKENS]
    with ours(path, CONFIG, **F32_CACHE) as llm:
        feed(llm, TOKENS[:begin], 0, KINDS[:begin])
        feed(llm, wrong[begin:end], begin, KINDS[begin:end])
        got = observed(llm, lambda: feed(llm, TOKENS[begin:], begin, KINDS[begin:]))
    assert np.array_equal(got[1], skipped[begin:]) and np.array_equal(got[2], checked[begin:])
    np.testing.assert_allclose(got[0], logits[begin:], atol=2e-5 * np.abs(logits).max())


def test_a_prompt_between_begins_the_count_anew(path):
    with ours(path, CONFIG) as llm:
        feed(llm, TOKENS[:9], 0, KINDS[:9])
        kinds = [SKIPPABLE_ROW, PROMPT_ROW, SKIPPABLE_ROW, SKIPPABLE_ROW, WARM_UP_ROW, SKIPPABLE_ROW]
        _, _, checked = observed(llm, lambda: feed(llm, TOKENS[9:15], 9, kinds))
    assert checked.any(axis=1).tolist() == [False, True, False, False, False]  # generated ones alone


class Draft(LlamaDraftModel):
    """The next tokens of a text, every other time with a wrong one among them."""

    def __init__(self, text):
        self.text, self.n_calls = text, 0

    def __call__(self, input_ids, /, **kwargs):
        self.n_calls += 1
        draft = list(self.text[len(input_ids) : len(input_ids) + 4])
        if self.n_calls % 2 and len(draft) > 2:
            draft[2] = (draft[2] + 1) % 256
        return np.array(draft, dtype=np.intc)


def test_drafts_change_nothing(path):
    prompt, n = TOKENS[:8], 40

    def generate(**options):
        with ours(path, CONFIG, **F32_CACHE, **options) as llm:
            generation = llm.generate(prompt, **GREEDY)
            return [next(generation) for _ in range(n)]

    expected = generate()
    draft = Draft(prompt + expected)
    assert generate(draft_model=draft) == expected
    assert draft.n_calls < n / 2  # most tokens came as drafts


def test_a_saved_state_goes_on_where_it_was(path, one_by_one):
    _, skipped, checked = one_by_one
    with ours(path, CONFIG, **F32_CACHE) as llm:
        llm.eval(TOKENS[:15], generated=True)
        state = llm.save_state()
        llm.reset()
        llm.eval(TOKENS[20:40], generated=True)
        llm.load_state(state)
        got = observed(llm, lambda: [llm.eval([token], generated=True) for token in TOKENS[15:]])
    assert np.array_equal(got[1], skipped[15:]) and np.array_equal(got[2], checked[15:])


def test_other_settings_decide_anew(path):
    with ours(path, CONFIG) as llm:
        llm.eval(TOKENS[:10], generated=True)  # the token at 8 decides
        llm.skip = CONFIG.replace(max_skip=3)
        _, _, checked = observed(llm, lambda: llm.eval(TOKENS[10:16], generated=True))
    assert checked.any(axis=1).tolist() == [True] + [False] * 4 + [True]


def test_it_takes_no_more_evaluations(path):
    """Tokens that are not checked are asked nothing: their similarities are nowhere."""
    with session_of(path, CONFIG.replace(sim_threshold=2.0, warm_up_index=0)) as (session, controller):
        for i, token in enumerate(TOKENS[:20]):
            session.forward([token], i, [SKIPPABLE_ROW], [0])
        assert controller.stats.checks == 4 * (COLD_E - COLD_S)
        assert controller.stats.tokens_never_tripped == 4


def test_an_interval_of_one_is_the_default(path):
    assert CONFIG.replace(check_interval=1) == SkipConfig(
        sim_threshold=0.92, cold_s=COLD_S, cold_e=COLD_E, max_skip=2, warm_up_index=3
    )
    with ours(path, CONFIG.replace(check_interval=1)) as llm:
        one = feed(llm, TOKENS, 0, KINDS)
        llm.skip = CONFIG.replace(check_interval=2)
        assert not bits_equal(feed(llm, TOKENS, 0, KINDS), one)
