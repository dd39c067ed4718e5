"""score(skip_prompts=): tokens of the prefix that count as generated, and which tokens come from a row that may skip.

The oracle evaluates the same tokens one at a time, and for what may skip, the trace of what did.
"""

from __future__ import annotations

import numpy as np
import pytest

from ffnskip_cpp import SkipConfig
from support.logits import log_softmax
from support.running import F32_CACHE, last_logits, ours

pytestmark = pytest.mark.filterwarnings("ignore:skip. channels")  # the values are not calibrated

N_LAYER = 8
RNG = np.random.default_rng(5)
PREFIX = RNG.integers(0, 250, 30).tolist()
CONTINUATIONS = [RNG.integers(0, 250, n).tolist() for n in (4, 1, 9, 2, 25)]
LAYERS = [2, 5]
CONFIGS = {
    "dense": None,
    "layers": SkipConfig(layers=LAYERS, max_skip=0, warm_up_index=3),
    "ffn_skip": SkipConfig(sim_threshold=0.93, max_skip=2, warm_up_index=3),
    "every 3rd": SkipConfig(sim_threshold=0.93, max_skip=2, warm_up_index=3, check_interval=3),
    "random": SkipConfig("random", max_skip=3, warm_up_index=0),
    "short_gpt": SkipConfig("short_gpt", layers=LAYERS),
    "skip_decode": SkipConfig("skip_decode", min_layers=5, budget_decay=40),
    "channels": SkipConfig("channels", skip_ratio=0.4, warm_up_index=0),
    "thresholds": SkipConfig("channels", channel_thresholds=[0, 0, 0.02, 0.02] * N_LAYER, warm_up_index=3),
    "channels, every row": SkipConfig("channels", skip_ratio=0.4, layers=LAYERS, every_row=True, warm_up_index=0),
}
NOTHING = SkipConfig(skip_ratio=0.0, warm_up_index=0)


@pytest.fixture(scope="module")
def path(model_file):
    return model_file("llama", n_layer=N_LAYER)


def one_by_one(llm, n_prompt, continuation):
    """The log-likelihood, of tokens evaluated one at a time."""
    tokens, rows = [*PREFIX, *continuation[:-1]], []
    llm.reset()
    if n_prompt:
        llm.eval(tokens[:n_prompt])
        rows.append(last_logits(llm)[0])
    for token in tokens[n_prompt:]:
        llm.eval([token], generated=True)
        rows.append(last_logits(llm)[0])
    log_p = log_softmax(np.stack(rows)[-len(continuation) :])
    return log_p[np.arange(len(continuation)), continuation].sum()


@pytest.mark.parametrize("skip_prompts", [0, 12, 30, None])
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_tokens_evaluated_one_at_a_time(path, name, skip_prompts):
    config, n_prompt = CONFIGS[name], len(PREFIX) if skip_prompts is None else skip_prompts
    with ours(path, config, **F32_CACHE) as llm:
        expected = [one_by_one(llm, n_prompt, tokens) for tokens in CONTINUATIONS]
    with ours(path, config, **F32_CACHE) as llm:
        for _ in range(2):
            got = llm.score(PREFIX, CONTINUATIONS, skip_prompts=skip_prompts)
            np.testing.assert_allclose(got.log_likelihood, expected, atol=2e-3)
        with llm.dense():
            dense = llm.score(PREFIX, CONTINUATIONS)
    differs = np.abs(got.log_likelihood - dense.log_likelihood) > 2e-3
    assert (differs == (got.n_may_skip > 0)).all()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("ffn_skip", "every 3rd")])
def test_rows_that_may_skip_are_those_that_do(path, name):
    """Of settings by which every row that may skip does."""
    continuation = CONTINUATIONS[-1]
    with ours(path, CONFIGS[name], **F32_CACHE) as llm:
        n_may_skip = []
        for n_prompt in (0, 12, len(PREFIX)):
            with llm.trace() as trace:
                n_may_skip.append(int(llm.score(PREFIX, [continuation], skip_prompts=n_prompt).n_may_skip[0]))
            skipped = trace.skipped.any(axis=1) | trace.attention_skipped.any(axis=1)
            if trace.kept.size:
                skipped |= (trace.kept < 1).any(axis=(1, 2))
            # The row that predicts the first token is of the prefix, and in no trace where that is a prompt.
            assert len(skipped) == len(PREFIX) + len(continuation) - 1 - n_prompt
            of_prompt = n_prompt == len(PREFIX) and llm.skip is not None and llm.skip.every_row
            assert n_may_skip[-1] == skipped[-len(continuation) :].sum() + of_prompt
    assert name == "dense" or 0 < n_may_skip[-1] <= n_may_skip[0]


@pytest.mark.parametrize(
    ("config", "skip_prompts", "expected"),
    [
        (CONFIGS["ffn_skip"], None, [0, 0, 5, 0, 21]),  # row i of a continuation is its token i: 3 of them are warm-up
        (CONFIGS["ffn_skip"], 30, [0, 0, 5, 0, 21]),
        (CONFIGS["ffn_skip"], 26, [4, 1, 9, 2, 25]),
        (CONFIGS["ffn_skip"], 28, [2, 0, 7, 0, 23]),
        (CONFIGS["channels"], None, [0, 0, 0, 0, 8]),  # which look at 16 tokens, whatever the warm-up
        (CONFIGS["short_gpt"], None, [4, 1, 9, 2, 25]),
        (NOTHING, 0, [0, 0, 0, 0, 0]),
        (None, 0, [0, 0, 0, 0, 0]),
    ],
    ids=str,
)
def test_rows_that_may_skip_are_counted(path, config, skip_prompts, expected):
    with ours(path, config) as llm:
        got = llm.score(PREFIX, CONTINUATIONS, skip_prompts=skip_prompts)
    assert got.n_may_skip.tolist() == expected and got.n_may_skip.dtype == np.int64
    assert got.as_dict()["n_may_skip"] == expected


@pytest.mark.parametrize("name", ["layers", "channels", "skip_decode"])
def test_continuations_that_come_one_by_one_go_on_from_the_prefix(path, name):
    """A context of one sequence, where that is taken back and read again."""
    with ours(path, CONFIGS[name], **F32_CACHE) as llm:
        expected = llm.score(PREFIX, CONTINUATIONS, skip_prompts=8)
    with ours(path, CONFIGS[name], n_ubatch=1, **F32_CACHE) as llm:  # llama.cpp then has no room for several
        got = llm.score(PREFIX, CONTINUATIONS, skip_prompts=8)
        assert llm._context.params.n_seq_max == 1
    np.testing.assert_allclose(got.log_likelihood, expected.log_likelihood, atol=2e-3)


@pytest.mark.parametrize("skip_prompts", [-1, 31])
def test_more_than_the_prefix_has_is_refused(path, skip_prompts):
    with ours(path, CONFIGS["layers"]) as llm:
        llm.eval([1, 2, 3])
        with pytest.raises(ValueError, match=rf"skip_prompts: {skip_prompts} is outside \[0, 30\], the tokens of"):
            llm.score(PREFIX, CONTINUATIONS, skip_prompts=skip_prompts)
        assert list(llm.eval_tokens) == [1, 2, 3]
        with pytest.raises(ValueError, match=r"n_prompt: 31 is outside \[0, 30\]"):
            llm._decoder.session.score(PREFIX, CONTINUATIONS, 31)
        with pytest.raises(TypeError, match=r"skip_prompts: 2\.5 is no whole number"):
            llm.score(PREFIX, CONTINUATIONS, skip_prompts=2.5)
