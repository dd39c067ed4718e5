"""Scores of continuations are those of each evaluated alone, whatever shares its batch; the prefix is read once."""

from __future__ import annotations

import numpy as np
import pytest

from ffnskip_cpp import DecodeError, SkipConfig, UnsupportedModelError
from ffnskip_cpp._core import RowKind
from support.running import F32_CACHE, ours, session_of

N_LAYER = 8
WARM_UP = 2
RNG = np.random.default_rng(11)
PREFIX = RNG.integers(0, 256, 21).tolist()
CONTINUATIONS = [RNG.integers(0, 256, n).tolist() for n in (5, 1, 12, 3, 30, 2, 7, 1, 9)]
CONFIGS = {
    "dense": SkipConfig("dense"),
    "layers": SkipConfig(layers=[2, 5], max_skip=0, warm_up_index=WARM_UP),
    "ffn_skip": SkipConfig(sim_threshold=0.93, max_skip=2, warm_up_index=WARM_UP),
    "random": SkipConfig("random", max_skip=3, warm_up_index=WARM_UP),
}
ROUNDING = 2e-5  # of a logit of a batch in float32, whose sums are taken in another order


def expected(path, config, prefix=PREFIX, continuations=CONTINUATIONS):
    """The same by Llama.forward, one at a time, in float64."""
    likelihoods, greedy = [], []
    with ours(path, config, **F32_CACHE) as llm:
        for tokens in continuations:
            may_skip = [False] * len(prefix) + [i >= config.warm_up_index for i in range(len(tokens) - 1)]
            logits = llm.forward([*prefix, *tokens[:-1]], may_skip)[len(prefix) - 1 :].astype(np.float64)
            largest = logits.max(axis=1, keepdims=True)
            log_p = logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
            likelihoods.append(log_p[np.arange(len(tokens)), tokens].sum())
            greedy.append((logits.argmax(axis=1) == tokens).all())
    return np.array(likelihoods), np.array(greedy)


CONTEXTS = {
    "one sequence": {},
    "four in one memory": {"n_seq_max": 4, "kv_unified": True},
    "four apart": {"n_seq_max": 4},
    "little batches": {"n_seq_max": 3, "kv_unified": True, "n_batch": 8, "n_ubatch": 4},
    "little room": {"n_seq_max": 24, "kv_unified": True, "n_ctx": 256},
}


@pytest.fixture(scope="module")
def path(model_file):
    return model_file("llama", n_layer=N_LAYER)


@pytest.mark.parametrize("policy", CONFIGS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_scores_are_those_of_each_continuation_alone(path, policy, context):
    likelihood, greedy = expected(path, CONFIGS[policy])
    with session_of(path, CONFIGS[policy], **CONTEXTS[context]) as (session, controller):
        for n_read in (len(PREFIX), 1):  # the second time of a prefix that is there, but for its output
            got, is_greedy, n_evaluated = session.score(PREFIX, CONTINUATIONS)
            assert got == pytest.approx(likelihood, abs=ROUNDING * 30)
            assert is_greedy.tolist() == greedy.tolist()
            assert n_evaluated == n_read + sum(len(tokens) - 1 for tokens in CONTINUATIONS)
        assert (controller.stats.ffn_skipped > 0) == (policy != "dense")
        assert controller.stats.tokens == 2 * sum(len(tokens) - 1 for tokens in CONTINUATIONS)


def test_without_a_controller_they_are_the_dense_models(path):
    likelihood, greedy = expected(path, CONFIGS["dense"])
    with session_of(path, None, n_seq_max=4, kv_unified=True) as (session, _):
        got, is_greedy, _ = session.score(PREFIX, CONTINUATIONS)
    assert got == pytest.approx(likelihood, abs=ROUNDING * 30) and is_greedy.tolist() == greedy.tolist()


def test_what_the_model_would_say_itself_is_greedy(path):
    with ours(path, CONFIGS["layers"], **F32_CACHE) as llm:
        tokens = list(llm.generate(PREFIX, temp=0.0, repeat_penalty=1.0, max_tokens=9))
    other = [*tokens[:-1], (tokens[-1] + 1) % 256]
    with session_of(path, CONFIGS["layers"], n_seq_max=3, kv_unified=True) as (session, _):
        likelihood, greedy, _ = session.score(PREFIX, [tokens, other, [], tokens[:1]])
    assert greedy.tolist() == [True, False, True, True]
    assert likelihood[0] > likelihood[1] and likelihood[2] == 0 and likelihood[3] > likelihood[0]


@pytest.mark.parametrize("kind, options", [("mamba", {}), ("post_norm", {"sliding_window": 16})])
@pytest.mark.parametrize("n_seq_max", [1, 3])
def test_a_memory_that_cant_go_back_or_forgets_reads_the_prefix_again(model_file, kind, options, n_seq_max):
    """A recurrent memory keeps no earlier state, one with sliding windows only the last positions."""
    path = model_file(kind, **options)
    prefix, continuations = PREFIX * 2, [tokens * 10 for tokens in CONTINUATIONS[4::-1]]
    with session_of(path, None, n_seq_max=1, n_ctx=512, n_ubatch=8, swa_full=False) as (session, _):
        alone = [session.score(prefix, [tokens])[:2] for tokens in continuations]
    with session_of(path, None, n_seq_max=n_seq_max, n_ctx=512 * n_seq_max, n_ubatch=8, swa_full=False) as (session, _):
        likelihood, greedy, n_evaluated = session.score(prefix, continuations)
    assert likelihood == pytest.approx([x[0] for x, _ in alone], abs=ROUNDING * 300)
    assert greedy.tolist() == [x[0] for _, x in alone]
    once = len(prefix) + sum(len(tokens) - 1 for tokens in continuations)
    assert (n_evaluated == once) == (n_seq_max > 1)


def test_rows_that_are_asked_for_are_those_of_all(path):
    with session_of(path, CONFIGS["ffn_skip"]) as (session, _):
        tokens = PREFIX * 5
        whole = session.forward(tokens, 0, None, range(len(tokens)))
        some = [0, 1, 63, 64, 104]
        assert session.forward(tokens, 0, None, some).tobytes() == whole[some].tobytes()
        session.forward(tokens[:70], 0, None, [])
        assert session.forward(tokens[70:], 70, None, [34]).shape == (1, 259)


@pytest.mark.parametrize(
    ("prefix", "continuations", "message"),
    [
        ([], [[1]], "prefix: it has no tokens"),
        ([1], [[1, 259]], r"continuations: token 259 is outside \[0, 259\)"),
        ([1], [[-1]], r"continuations: token -1 is outside"),
        ([1, 259], [[1]], r"prefix: token 259 is outside \[0, 259\)"),
        ([-1], [], "prefix: token -1 is outside"),
        (
            [1] * 200,
            [[1], [2] * 58],
            "continuations: one of 58 tokens after a prefix of 200 needs room for 257, .* 256",
        ),
    ],
)
def test_what_cant_be_scored_is_refused_with_the_value(path, prefix, continuations, message):
    with session_of(path, CONFIGS["layers"], n_ctx=256) as (session, _):
        with pytest.raises(ValueError, match=message):
            session.score(prefix, continuations)
        assert len(session.score([1], [[2], [3]])[0]) == 2


@pytest.mark.parametrize("rows", [[1, 1], [2, 1], [-1], [3]])
def test_rows_out_of_order_or_range_are_refused(path, rows):
    with session_of(path, None) as (session, _), pytest.raises(ValueError, match="out of order, or outside"):
        session.forward([1, 2, 3], 0, None, rows)


@pytest.mark.parametrize("position", [-1, 4])
def test_a_position_that_the_memory_does_not_hold_is_refused_and_nothing_changes(path, position):
    with session_of(path, CONFIGS["ffn_skip"]) as (session, _):
        whole = session.forward(PREFIX[:4], 0, [RowKind.prompt] * 4, [3])
        session.decode(PREFIX[:3], 0)
        for call in (
            lambda: session.decode([1], position),
            lambda: session.forward([1], position, None, [0]),
            lambda: session.step(1, 1, position),
        ):
            with pytest.raises(ValueError, match=rf"position: {position} is outside \[0, 3\]"):
                call()
        assert session.forward(PREFIX[3:4], 3, [RowKind.prompt], [0]) == pytest.approx(whole, abs=ROUNDING)


def test_named_rows_of_more_than_a_batch_are_decoded_batch_by_batch(path):
    tokens, kinds = PREFIX * 5, [RowKind.prompt] * 70 + [RowKind.skippable] * 35
    with session_of(path, CONFIGS["layers"]) as (session, controller):  # n_batch 64
        session.decode(tokens, 0, kinds)
        assert controller.stats.tokens == 35
        after = session.forward([7], len(tokens), [RowKind.skippable], [0])
        session.forward(tokens, 0, kinds, [])
        assert session.forward([7], len(tokens), [RowKind.skippable], [0]).tobytes() == after.tobytes()


def test_a_token_that_is_none_is_a_decode_error_with_its_status(path):
    with session_of(path, CONFIGS["layers"]) as (session, _):
        with pytest.raises(DecodeError, match="llama_decode returned -1: the batch is invalid") as error:
            session.decode([999], 0)
        assert error.value.status == -1 and isinstance(error.value, RuntimeError)
        assert session.forward([1], 0, None, [0]).shape == (1, 259)


def test_a_model_that_cant_skip_is_an_error_of_its_own(model_file):
    with pytest.raises(UnsupportedModelError, match="mamba"), session_of(model_file("mamba"), CONFIGS["dense"]):
        pass
