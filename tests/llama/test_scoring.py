"""forward() returns the rows that are asked for and evaluates again only what it must; score() is the log-softmax of
these rows, summed, whatever shares a batch with them.

The oracle is llama_cpp.Llama with logits_all and NumPy where nothing is skipped, and forward() of everything otherwise.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, closing

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import Llama, SkipConfig, UnsupportedModelError, demo_model
from ffnskip_cpp import llama_cpp_internals as internals
from support import tiny_models
from support.logits import log_softmax

OPTIONS = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "seed": 11, "verbose": False}
F32_CACHE = {"type_k": 0, "type_v": 0}
EAGER = SkipConfig(sim_threshold=0.85, warm_up_index=2, max_skip=4)
FIXED = SkipConfig(layers=[3, 5, 6], max_skip=0, warm_up_index=1)
TEXT = "the weather in the north is what it was before"
CONTINUATIONS = [
    " and",
    " or so they say, whoever says it",
    "!",
    " because",
    " and then",
    " xyz" * 12,
    " a",
    " b",
    " c",
]

GIVEN = [path for path in os.environ.get("FFNSKIP_MODELS", "").split(os.pathsep) if path]
DEMO_TEXT = "Herno Jotsen was born in"
REAL_TEXT = "Question: What is the capital of France?\nAnswer:"
REAL_CONTINUATIONS = [" Paris", " London", " the city of Rome, which is in Italy", " Lyon, of course"]


@pytest.fixture
def open_models(model_file):
    """Opens models that the test need not close."""
    with ExitStack() as stack:

        def open_model(skip=None, kind=Llama, file=None, **options):
            given = {**OPTIONS, **options, **({"skip": skip} if issubclass(kind, Llama) else {})}
            path = str(file or model_file("llama", n_layer=12))
            return stack.enter_context(closing(kind(path, **given)))

        yield open_model


def expected_score(logits, n_prefix, tokens):
    """Log-likelihood of the tokens from n_prefix on, and whether they are the greedy ones."""
    rows, following = log_softmax(logits[n_prefix - 1 : len(tokens) - 1]), tokens[n_prefix:]
    likelihood = sum(rows[i, token] for i, token in enumerate(following))
    return likelihood, all(rows[i].argmax() == token for i, token in enumerate(following))


def plain_logits(llm, tokens):
    llm.reset()
    llm.eval(tokens)
    return np.array(llm.scores[: len(tokens)])


def forward_logits(llm, tokens, n_prefix):
    warm_up_index = llm.resolved["warm_up_index"]
    return llm.forward(tokens, [i >= n_prefix + warm_up_index for i in range(len(tokens))])


# --- rows and keep ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [slice(3, 9), slice(None, None, 4), [2], [5, 1, 1, 30], [-1], np.array([0, 7]), slice(0, 0), (), range(4, 6)],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"n_batch": 7}, {"n_batch": 7, "logits_all": True}], ids=str)
def test_rows_are_those_of_the_whole(open_models, rows, options):
    llm = open_models(EAGER, **options, **F32_CACHE)
    tokens = llm.tokenize(TEXT.encode())
    whole = llm.forward(tokens)
    got = llm.forward(tokens, rows=rows)
    assert got.dtype == np.float32
    expected = whole[rows if isinstance(rows, (slice, np.ndarray)) else list(rows)]
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(whole).max())  # the last layer has fewer rows
    assert llm.n_tokens == len(tokens)
    np.testing.assert_array_equal(llm.forward(tokens), whole)


@pytest.mark.parametrize("skip", [None, EAGER], ids=["dense", "skipping"])
def test_rows_behind_what_is_kept_are_those_of_the_whole(open_models, skip):
    llm = open_models(skip, **F32_CACHE)
    tokens = llm.tokenize(TEXT.encode())
    whole = llm.forward(tokens)
    llm.forward([*tokens[:20], 1, 2, 3])
    got = llm.forward(tokens, keep=20)
    assert got.shape == (len(tokens) - 20, llm.n_vocab())
    np.testing.assert_allclose(got, whole[20:], atol=1e-4 * np.abs(whole).max())
    assert list(llm.eval_tokens) == tokens
    again = llm.forward(tokens, rows=[-1], keep=len(tokens) - 1)
    np.testing.assert_allclose(again, whole[-1:], atol=1e-4 * np.abs(whole).max())


def test_what_is_kept_is_not_evaluated_again(open_models):
    llm = open_models(FIXED)
    tokens = llm.tokenize(TEXT.encode())
    llm.forward(tokens)
    llm.reset_stats()
    llm.forward(tokens, keep=20)
    assert llm.stats.tokens == len(tokens) - 20


def test_what_is_kept_stays_what_it_was(open_models):
    """A prompt in full, and what follows skips: in one go, and in two."""
    llm = open_models(FIXED, **F32_CACHE)
    tokens = llm.tokenize(TEXT.encode())
    whole = llm.forward(tokens, [i >= 20 for i in range(len(tokens))])
    with llm.dense():
        llm.forward(tokens[:20])
    got = llm.forward(tokens, [True] * len(tokens), keep=20)
    np.testing.assert_allclose(got, whole[20:], atol=1e-4 * np.abs(whole).max())


def test_a_recurrent_memory_is_evaluated_anew(open_models, model_file):
    llm = open_models(None, file=model_file("mamba", n_layer=4))
    tokens = list(range(1, 30))
    whole = llm.forward(tokens)
    got = llm.forward(tokens, keep=20)
    np.testing.assert_array_equal(got, whole[20:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 4}, r"keep: 4 is not in \[0, 4\)"),
        ({"keep": -1}, r"keep: -1 is not in \[0, 4\)"),
        ({"keep": 3}, r"keep: token 2 of the context is 9, and tokens\[2\] is 3"),
        ({"rows": [4]}, "rows: .*out of bounds"),
        ({"rows": 2}, "rows: 2 is no slice and no indices"),
        ({"rows": [0.5]}, "rows: "),
        ({"rows": [0], "keep": 2}, "rows: row 0 is one of the keep=2"),
    ],
    ids=str,
)
def test_rows_and_tokens_that_are_not_there_are_refused(open_models, arguments, message):
    llm = open_models(EAGER)
    llm.eval([1, 2, 9])
    with pytest.raises(ValueError, match=message):
        llm.forward([1, 2, 3, 4], **arguments)
    assert list(llm.eval_tokens) == [1, 2, 9]


def test_no_more_is_kept_than_there_is(open_models):
    llm = open_models(EAGER)
    llm.eval([1, 2])
    with pytest.raises(ValueError, match="keep: 3 tokens are to be kept; the context holds 2"):
        llm.forward([1, 2, 3, 4], keep=3)


# --- score -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"n_batch": 8, "n_ubatch": 4}, {"logits_all": True}], ids=str)
def test_a_dense_score_is_the_log_softmax_of_llama_cpps_logits(open_models, options):
    llm, plain = open_models(None, **options), open_models(kind=llama_cpp.Llama, logits_all=True)
    got = llm.score(TEXT, CONTINUATIONS)
    prefix = plain.tokenize(TEXT.encode())
    for i, text in enumerate(CONTINUATIONS):
        tokens = plain.tokenize((TEXT + text).encode())
        assert got.n_tokens[i] == len(tokens) - len(prefix)
        likelihood, is_greedy = expected_score(plain_logits(plain, tokens), len(prefix), tokens)
        assert got.log_likelihood[i] == pytest.approx(likelihood, rel=1e-3, abs=1e-3)
        assert got.is_greedy[i] == is_greedy
    assert (got.log_likelihood.dtype, got.is_greedy.dtype) == (np.float64, np.bool_)
    for name, values in json.loads(json.dumps(got.as_dict())).items():
        assert values == getattr(got, name).tolist() and len(values) == len(CONTINUATIONS)
        with pytest.raises(ValueError, match="read-only"):
            getattr(got, name)[0] = 0


@pytest.mark.parametrize("skip", [EAGER, FIXED, SkipConfig("random", max_skip=3, warm_up_index=0)], ids=str)
def test_a_score_that_skips_is_that_of_forward(open_models, skip):
    llm = open_models(skip, **F32_CACHE)
    llm.score("a", ["b"])  # what makes the context anew
    prefix = llm.tokenize(TEXT.encode())
    texts = [llm.tokenize(text.encode(), add_bos=False) for text in CONTINUATIONS]
    got = llm.score(prefix, texts)
    for i, text in enumerate(texts):
        logits = forward_logits(llm, [*prefix, *text], len(prefix))
        assert got.log_likelihood[i] == pytest.approx(
            expected_score(logits, len(prefix), [*prefix, *text])[0], rel=1e-3
        )
    with llm.dense():
        dense = llm.score(prefix, texts)
    assert abs(got.log_likelihood - dense.log_likelihood).max() > 1e-2
    short = got.n_tokens <= skip.warm_up_index
    np.testing.assert_allclose(got.log_likelihood[short], dense.log_likelihood[short], rtol=1e-4)


def test_a_greedy_continuation_is_known(open_models):
    llm = open_models(FIXED)
    prompt = llm.tokenize(TEXT.encode())
    tokens = list(llm.generate(prompt, temp=0.0, max_tokens=12))
    assert llm.score(prompt, [tokens, [*tokens[:-1], tokens[-1] ^ 1]]).is_greedy.tolist() == [True, False]


def test_scored_tokens_are_counted_and_traced(open_models):
    llm = open_models(FIXED)
    with llm.trace() as trace:
        llm.score([1, 2, 3], [[4, 5, 6, 7], [8, 9, 10]])
    assert llm.stats.tokens == len(trace.skipped) == 3 + 2  # the last of each predicts nothing that is asked for
    assert llm.stats.ffn_skipped == 3 * (2 + 1)


@pytest.mark.parametrize("kind", ["mamba", "llama"])
def test_more_continuations_than_fit_at_once(open_models, model_file, kind):
    llm = open_models(None, file=model_file(kind, n_layer=4))
    continuations = [[5 + i, 6 + i, *range(7, 7 + i)] for i in range(40)]
    together = llm.score([1, 2, 3], continuations)
    alone = [llm.score([1, 2, 3], [tokens]).log_likelihood[0] for tokens in continuations]
    np.testing.assert_allclose(together.log_likelihood, alone, rtol=1e-4)


@pytest.mark.parametrize("swa_full", [True, False])
def test_a_sliding_window_is_no_matter(open_models, model_file, swa_full):
    """The prefix is longer than the window, and than the memory that llama.cpp keeps for it."""
    file = model_file("post_norm", n_layer=8, sliding_window=24)
    llm = open_models(None, file=file, n_ctx=1024, n_batch=16, n_ubatch=16, swa_full=swa_full, **F32_CACHE)
    prefix = [1 + i % 200 for i in range(700)]
    texts = [[3, 1, 4, 1, 5], [2, 7, 1], [9] * 40]
    got = llm.score(prefix, texts)
    for i, text in enumerate(texts):
        logits = llm.forward([*prefix, *text], rows=slice(len(prefix) - 1, None))
        assert got.log_likelihood[i] == pytest.approx(expected_score(logits, 1, [0, *text])[0], rel=1e-3)


@pytest.mark.parametrize("path", ["demo", *GIVEN])
def test_scores_of_trained_models(open_models, path):
    """Of the demo model, and of the files that FFNSKIP_MODELS names."""
    text = DEMO_TEXT if path == "demo" else REAL_TEXT
    path = demo_model() if path == "demo" else path
    llm, plain = open_models(None, file=path), open_models(kind=llama_cpp.Llama, file=path, logits_all=True)
    got = llm.score(text, REAL_CONTINUATIONS)
    prefix = plain.tokenize(text.encode())
    for i, continuation in enumerate(REAL_CONTINUATIONS):
        tokens = plain.tokenize((text + continuation).encode())
        assert tokens[: len(prefix)] == prefix
        expected, _ = expected_score(plain_logits(plain, tokens), len(prefix), tokens)
        assert got.log_likelihood[i] == pytest.approx(expected, rel=1e-2)
    assert text == DEMO_TEXT or got.log_likelihood.argmax() == 0


def test_spaces_at_the_end_of_a_prefix_count_to_the_continuation(open_models):
    llm = open_models(None)
    apart, together = llm.score(TEXT + " ", ["and", "or"]), llm.score(TEXT, [" and", " or"])
    np.testing.assert_allclose(apart.log_likelihood, together.log_likelihood, rtol=1e-5)  # the prefix was there already
    assert apart.n_tokens.tolist() == [4, 3]


def test_token_ids_and_text_may_be_mixed(open_models):
    llm = open_models(None)
    prefix = llm.tokenize(TEXT.encode())
    expected = llm.score(TEXT, [" and"])
    for got in (llm.score(prefix, [" and"]), llm.score(TEXT, [list(b" and")]), llm.score(prefix, [list(b" and")])):
        np.testing.assert_allclose(got.log_likelihood, expected.log_likelihood, rtol=1e-5)


def test_the_model_goes_on_as_before(open_models):
    """Generation, states and settings, after the context was made anew."""
    llm, fresh = open_models(EAGER), open_models(EAGER)
    plain = open_models(kind=llama_cpp.Llama)
    prompt = llm.tokenize(TEXT.encode())
    list(llm.generate(prompt, temp=0.0, max_tokens=5))
    with llm.dense():
        llm.score(TEXT, [" and", " or"])
        assert llm.skip is None
    assert llm.skip == EAGER and llm.n_tokens == 0
    assert list(llm.generate(prompt, temp=0.0, max_tokens=20)) == list(fresh.generate(prompt, temp=0.0, max_tokens=20))
    state = llm.save_state()
    plain.load_state(state)
    fresh.load_state(state)
    assert plain.n_tokens == fresh.n_tokens == llm.n_tokens


@pytest.mark.parametrize("skip", [None, EAGER], ids=["dense", "skipping"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [[1]]), "prefix: it has no tokens"),
        (([1, 259], [[1]]), r"prefix: ids must be in \[0, 259\); got 1 to 259"),
        (([1], [[2, 999]]), r"continuations: ids must be in \[0, 259\); got 2 to 999"),
        (([1] * 200, [[2], [3] * 58]), "one of 58 tokens after a prefix of 200 needs room for 257"),
    ],
)
def test_what_cannot_be_scored_is_refused(open_models, skip, arguments, message):
    """What was going on goes on: the first score() would have made the context anew."""
    llm, fresh = open_models(skip), open_models(skip)
    prompt = llm.tokenize(TEXT.encode())
    generation = llm.generate(prompt, temp=0.0)
    begun = [next(generation) for _ in range(5)]
    with pytest.raises(ValueError, match=message):
        llm.score(*arguments)
    assert list(llm.eval_tokens) == [*prompt, *begun[:-1]]
    expected = list(fresh.generate(prompt, temp=0.0, max_tokens=12))
    assert begun + [next(generation) for _ in range(7)] == expected
    assert llm.score([1], [[2]]).n_tokens.tolist() == [1]


def test_a_score_ends_the_generation_before_it(open_models):
    llm = open_models(EAGER)
    generation = llm.generate([1, 2, 3], temp=0.0)
    next(generation)
    llm.score([1], [[2]])
    with pytest.raises(RuntimeError, match="began on this Llama"):
        next(generation)


def test_a_context_that_cannot_be_shared_leaves_the_one_there_is(open_models, monkeypatch):
    """And is closed itself."""
    llm = open_models(EAGER)
    generation = llm.generate([1, 2, 3], temp=0.0)
    next(generation)
    made = []

    def make(*args):
        made.append(make_context(*args))
        return made[-1]

    def refuse(address):
        raise UnsupportedModelError("not this one")

    make_context = internals.make_context
    with monkeypatch.context() as patched:
        patched.setattr(internals, "make_context", make)
        patched.setattr(llm._context, "probe", refuse)
        with pytest.raises(UnsupportedModelError, match="not this one"):
            llm.score([1], [[2]])
    assert [context.ctx for context in made] == [None]
    assert list(llm.eval_tokens) == [1, 2, 3]
    next(generation)


def test_one_text_is_no_list_of_texts(open_models):
    with pytest.raises(TypeError, match="give a list"):
        open_models(None).score(TEXT, " and")


def test_an_embedding_context_scores_nothing(open_models):
    with pytest.raises(UnsupportedModelError, match="embedding"):
        open_models("auto", embedding=True).score(TEXT, [" and"])


def test_a_context_that_is_filled(open_models):
    llm = open_models(EAGER)
    got = llm.score([1] * 200, [[2] * 57, [3] * 57])
    assert got.n_tokens.tolist() == [57, 57]
    assert tiny_models.N_VOCAB == llm.n_vocab()
