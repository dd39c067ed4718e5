"""Generation is the same in the native loop and in llama_cpp's, skipping included; text comes in whole characters.

llama_cpp's loop is forced by a logits processor that does nothing.
"""

from __future__ import annotations

import itertools
import sys
import threading
from contextlib import ExitStack, closing

import llama_cpp
import numpy as np
import pytest
from llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding

from ffnskip_cpp import Llama, SkipConfig, _core
from support import tiny_models

PROMPT = "the weather in the north"
OPTIONS = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "seed": 11, "verbose": False}
NOTHING = llama_cpp.LogitsProcessorList([lambda input_ids, scores: scores])

POLICIES = {
    "Algorithm 1": SkipConfig(sim_threshold=0.85, warm_up_index=3, max_skip=4),
    "Algorithm 1, no warm-up": SkipConfig(sim_threshold=0.8, warm_up_index=0, max_skip=5, cold_s=1, cold_e=11),
    "every fourth token": SkipConfig(sim_threshold=0.85, warm_up_index=3, max_skip=4, check_interval=4),
    "random": SkipConfig(policy="random", warm_up_index=1, max_skip=4),
    "random in the region": SkipConfig(policy="random_adaptive_region", warm_up_index=1, max_skip=4, seed=5),
    "fixed": SkipConfig(policy="fixed", layers=[0, 4, 5], warm_up_index=2),
    "dense": SkipConfig(policy="dense"),
}
ALGORITHM_1 = POLICIES["Algorithm 1"]

SAMPLING = {
    "greedy": {"temp": 0.0},
    "sampled": {"temp": 1.1, "top_k": 20},
    "penalties": {"temp": 0.9, "repeat_penalty": 1.3, "frequency_penalty": 0.3},
    "mirostat": {"temp": 1.0, "mirostat_mode": 2},
}


@pytest.fixture
def open_model(model_file):
    """Opens tiny models that the test need not close."""
    with ExitStack() as stack:

        def open_one(skip=ALGORITHM_1, kind="llama", n_layer=12, cls=Llama, **options):
            path = str(model_file(kind, n_layer=n_layer))
            given = {**OPTIONS, **options, **({"skip": skip} if issubclass(cls, Llama) else {})}
            return stack.enter_context(closing(cls(path, **given)))

        yield open_one


@pytest.fixture
def turns(monkeypatch):
    """The turns of the native loop, in a list that grows."""
    taken, step = [], _core.Session.step

    def counted(session, *args):
        taken.append(args)
        return step(session, *args)

    monkeypatch.setattr(_core.Session, "step", counted)
    return taken


def tokens_of(llm, text=PROMPT):
    return llm.tokenize(text.encode())


def take(generation, n):
    return list(itertools.islice(generation, n))


def observed(llm, call):
    """What `call` returns, and what was skipped meanwhile."""
    llm.reset()
    llm.reset_stats()
    with llm.trace() as trace:
        result = call()
    return result, repr(llm.stats), trace.similarity.tobytes(), trace.skipped.tolist()


# --- both loops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_both_loops_give_the_same_tokens_and_skip_the_same_blocks(open_model, policy, sampling):
    llm = open_model(policy)
    prompt = tokens_of(llm)
    native = observed(llm, lambda: take(llm.generate(prompt, **sampling), 30))
    python = observed(llm, lambda: take(llm.generate(prompt, **sampling, logits_processor=NOTHING), 30))
    assert native == python
    assert (llm.stats.ffn_skipped > 0) == (policy.policy != "dense")


@pytest.mark.parametrize("kind", [kind for kind in tiny_models.SKIPPABLE if kind != "llama"])
def test_both_loops_agree_for_every_kind_of_model(open_model, kind):
    llm = open_model(SkipConfig(sim_threshold=0.5, warm_up_index=1, max_skip=2), kind=kind, n_layer=8)
    prompt = tokens_of(llm)
    native = observed(llm, lambda: take(llm.generate(prompt), 12))
    python = observed(llm, lambda: take(llm.generate(prompt, logits_processor=NOTHING), 12))
    assert native == python
    assert llm.stats.ffn_skipped > 0


def test_both_loops_agree_under_a_grammar(open_model):
    llm = open_model()
    grammar = llama_cpp.LlamaGrammar.from_string("root ::= ([a-f] [0-9])+", verbose=False)
    arguments = {"grammar": grammar, "max_tokens": 24, "temperature": 1.2, "seed": 9}
    native = observed(llm, lambda: llm(PROMPT, **arguments)["choices"])
    python = observed(llm, lambda: llm(PROMPT, **arguments, logits_processor=NOTHING)["choices"])
    assert native == python
    assert llm.stats.ffn_skipped > 0


@pytest.mark.parametrize("stream", [False, True])
def test_both_loops_give_the_same_completions(open_model, stream):
    llm = open_model()

    def complete(**arguments):
        response = llm(PROMPT, max_tokens=25, seed=6, stop=["zz"], stream=stream, **arguments)
        return [chunk["choices"] for chunk in (response if stream else [response])]

    assert observed(llm, complete) == observed(llm, lambda: complete(logits_processor=NOTHING))
    assert llm.stats.ffn_skipped > 0


@pytest.mark.parametrize(
    ("arguments", "native"),
    [
        ({}, True),
        ({"temp": 0.0}, True),
        ({"mirostat_mode": 1}, True),
        ({"logits_processor": NOTHING}, False),
        ({"stopping_criteria": llama_cpp.StoppingCriteriaList([lambda ids, logits: False])}, False),
    ],
    ids=["plain", "greedy", "mirostat", "logits processor", "stopping criterion"],
)
def test_the_native_loop_runs_where_no_python_is_needed(open_model, turns, arguments, native):
    llm = open_model()
    take(llm.generate(tokens_of(llm), **arguments), 10)
    assert len(turns) == (9 if native else 0)


def test_completions_and_chat_run_the_native_loop(open_model, turns):
    llm = open_model()
    completed = llm(PROMPT, max_tokens=10, seed=1)["usage"]["completion_tokens"]
    assert len(turns) == completed - 1 > 0
    message = {"role": "user", "content": PROMPT}
    chatted = llm.create_chat_completion([message], max_tokens=10, seed=1)["usage"]["completion_tokens"]
    assert len(turns) == completed - 1 + chatted - 1


@pytest.mark.parametrize("options", [{"logits_all": True}, {"draft_model": LlamaPromptLookupDecoding()}], ids=list)
def test_logits_of_all_tokens_and_draft_models_keep_llama_cpps_loop(open_model, turns, options):
    llm = open_model(**options)
    take(llm.generate(tokens_of(llm)), 10)
    assert len(turns) == 0


def test_logits_of_all_tokens_change_no_token(open_model):
    expected, got = open_model(), open_model(logits_all=True)
    prompt = tokens_of(expected)
    assert observed(expected, lambda: take(expected.generate(prompt), 30)) == observed(
        got, lambda: take(got.generate(prompt), 30)
    )


def test_other_python_threads_run_while_a_token_is_generated(open_model):
    """No thread is made to give the lock up here; the generation does so of itself."""
    llm = open_model(n_layer=16)
    before = sys.getswitchinterval()
    sys.setswitchinterval(60)
    counted, stop = [0], threading.Event()

    def count():
        while not stop.wait(1e-4):
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        take(llm.generate(tokens_of(llm), temp=0.0), 200)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)
    assert counted[0] > 0


# --- which tokens count as generated ---------------------------------------------------------------------------------


@pytest.mark.parametrize("processor", [None, NOTHING], ids=["native", "python"])
def test_the_warm_up_begins_with_each_generation(open_model, processor):
    llm = open_model(SkipConfig(policy="fixed", layers=[5], warm_up_index=4))
    for text in (PROMPT, "another", PROMPT):
        with llm.trace() as trace:
            take(llm.generate(tokens_of(llm, text), logits_processor=processor), 9)
        assert trace.skipped[:, 5].tolist() == [False] * 4 + [True] * 4


def test_the_warm_up_begins_after_a_prompt_found_in_the_context(open_model):
    llm = open_model(SkipConfig(policy="fixed", layers=[5], warm_up_index=4))
    prompt = tokens_of(llm)
    llm.eval(prompt)
    for text in (prompt, prompt[:9]):
        with llm.trace() as trace:
            take(llm.generate(text), 9)
        assert trace.skipped[:, 5].tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize("processor", [None, NOTHING], ids=["native", "python"])
@pytest.mark.parametrize("options", [{}, {"n_batch": 1, "n_ubatch": 1}, {"n_ubatch": 1}, {"n_batch": 5}], ids=str)
@pytest.mark.parametrize("length", [1, 2, 6, 24])
def test_prompt_tokens_are_neither_counted_nor_skipped(open_model, length, options, processor):
    llm = open_model(SkipConfig(policy="fixed", layers=[5], warm_up_index=0), **options)
    generation = llm.generate(tokens_of(llm)[:length], logits_processor=processor)
    with llm.trace() as trace:
        next(generation)
    assert len(trace.skipped) == llm.stats.tokens == 0
    with llm.trace() as trace:
        take(generation, 3)
    assert trace.skipped[:, 5].tolist() == [True] * 3


def test_a_prompt_that_starts_with_the_token_sampled_last_is_no_generated_token(open_model):
    llm = open_model(SkipConfig(policy="fixed", layers=[5], warm_up_index=0))
    last = take(llm.generate(tokens_of(llm), temp=0.0), 6)[-1]
    llm.reset_stats()
    next(llm.generate([last]))
    assert llm.stats.tokens == 0
    last = take(llm.generate(tokens_of(llm), temp=0.0), 6)[-1]
    llm.reset_stats()
    llm.reset()
    llm.eval([last])
    assert llm.stats.tokens == 0


def test_a_token_evaluated_after_loading_a_state_is_no_generated_token(open_model):
    llm = open_model(SkipConfig(policy="fixed", layers=[5], warm_up_index=0))
    llm.eval(tokens_of(llm))
    state = llm.save_state()
    token = llm.sample(temp=0.0)
    llm.load_state(state)
    llm.eval([token])
    assert llm.stats.tokens == 0


def test_tokens_sampled_and_evaluated_by_hand_count_as_generated(open_model):
    llm = open_model(SkipConfig(policy="fixed", layers=[5], warm_up_index=2))
    llm.eval(tokens_of(llm))
    with llm.trace() as trace:
        for _ in range(5):
            llm.eval([llm.sample(temp=0.0)])
    assert trace.skipped[:, 5].tolist() == [False, False, True, True, True]
    with llm.trace() as trace:
        llm.eval([(llm.sample(temp=0.0) + 1) % 256])
    assert len(trace.skipped) == 0


def test_tokens_sent_into_a_generation_run_in_full(open_model):
    llm = open_model(SkipConfig(policy="fixed", layers=[5], warm_up_index=0))
    generation = llm.generate(tokens_of(llm), temp=0.0)
    take(generation, 3)
    before = llm.stats.tokens
    generation.send([104, 105])
    assert llm.stats.tokens == before
    take(generation, 2)
    assert llm.stats.tokens == before + 2


@pytest.mark.parametrize("lengths", [(3, 0), (2,), (0, 1, 5)], ids=str)
def test_a_draft_changes_no_token_of_a_skipping_model(open_model, lengths):
    """Drafted tokens are verified by the model that skips; those it refuses leave no trace in the warm-up's count."""

    class Repeat(LlamaDraftModel):
        """Drafts the token before, or, every other time, one that is never right."""

        def __init__(self):
            self.lengths, self.flips = itertools.cycle(lengths), itertools.cycle([0, 1])

        def __call__(self, input_ids, /, **kwargs):
            return np.full(next(self.lengths), input_ids[-1] if next(self.flips) else 7, np.intc)

    skip = SkipConfig(policy="fixed", layers=[5], warm_up_index=4)
    alone, llm = open_model(skip), open_model(skip, draft_model=Repeat())
    expected = take(alone.generate(tokens_of(alone), temp=0.0), 40)
    assert take(llm.generate(tokens_of(llm), temp=0.0), 40) == expected
    assert llm.stats.ffn_skipped >= alone.stats.ffn_skipped == 35


def test_tokens_may_be_declared(open_model):
    llm = open_model(SkipConfig(policy="fixed", layers=[5], warm_up_index=0))
    llm.eval(tokens_of(llm))
    llm.eval([100], generated=True)
    assert llm.stats.ffn_skipped == 1
    llm.eval([101, 102], generated=True)
    assert llm.stats.ffn_skipped == 3
    llm.eval([llm.sample(temp=0.0)], generated=False)
    assert llm.stats.tokens == 3


def test_tokens_chosen_from_logits_read_here_count_as_generated(open_model):
    llm = open_model(SkipConfig(policy="fixed", layers=[5], warm_up_index=0), logits_all=True)
    llm.eval(tokens_of(llm))
    for _ in range(4):
        llm.eval([int(llm.scores[llm.n_tokens - 1].argmax())])
    assert llm.stats.ffn_skipped == 4


def test_a_prompt_evaluated_token_by_token_runs_in_full_and_that_is_said(open_model):
    llm = open_model(SkipConfig(policy="fixed", layers=[5], warm_up_index=0))
    with pytest.warns(UserWarning, match="generated=True"):
        for token in tokens_of(llm):
            llm.eval([token])
    assert llm.stats.tokens == 0


@pytest.mark.parametrize("native", [True, False])
def test_a_state_saved_within_a_generation_goes_on_like_it(open_model, native):
    skip = SkipConfig(policy="fixed", layers=[5, 6], warm_up_index=8)
    llm = open_model(skip, logits_all=not native)
    generation = llm.generate(tokens_of(llm), temp=0.0)
    token = take(generation, 12)[-1]
    state = llm.save_state()
    rest = take(generation, 10)
    skipped = llm.stats.ffn_skipped
    llm.load_state(state)
    llm.reset_stats()
    assert take(llm.generate([token], temp=0.0, reset=False), 10) == rest
    assert llm.stats.ffn_skipped == 2 * 10 and skipped == 2 * (12 + 10 - 1 - 8)


def test_skipping_changes_between_two_tokens(open_model):
    llm = open_model(SkipConfig(policy="fixed", layers=[5], warm_up_index=0))
    generation = llm.generate(tokens_of(llm))
    with llm.trace() as trace:
        take(generation, 3)
        with llm.dense():
            take(generation, 2)
        llm.skip = SkipConfig(policy="fixed", layers=[7], warm_up_index=0)
        take(generation, 2)
    assert trace.skipped[:, 5].tolist() == [True] * 2 + [False] * 4
    assert trace.skipped[:, 7].tolist() == [False] * 4 + [True] * 2


# --- max_tokens and the end of the context ---------------------------------------------------------------------------


@pytest.mark.parametrize("processor", [None, NOTHING], ids=["native", "python"])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_max_tokens_limits_token_ids(open_model, n, processor):
    llm = open_model()
    prompt = tokens_of(llm)
    expected = take(llm.generate(prompt, logits_processor=processor), n)
    assert list(llm.generate(prompt, max_tokens=n, logits_processor=processor)) == expected


def test_max_tokens_zero_evaluates_nothing(open_model):
    llm = open_model()
    assert list(llm.generate(PROMPT, max_tokens=0)) == list(llm.generate([1, 2], max_tokens=0)) == []
    assert llm.n_tokens == 0


def test_the_last_token_of_max_tokens_is_not_evaluated(open_model):
    llm = open_model()
    assert len(list(llm.generate([1, 2, 3], max_tokens=5))) == 5
    assert (llm.n_tokens, llm.stats.tokens) == (7, 4)


def test_tokens_can_be_sent_where_max_tokens_is_given(open_model):
    llm = open_model(None)
    free, limited = llm.generate([1, 2, 3], temp=0.0), llm.generate([1, 2, 3], temp=0.0, max_tokens=5)
    expected = [next(free), free.send([104, 105]), *take(free, 3)]
    assert [next(limited), limited.send([104, 105]), *limited] == expected


def test_a_stopping_criterion_ends_a_generation_before_max_tokens(open_model):
    llm = open_model()
    criteria = llama_cpp.StoppingCriteriaList([lambda ids, logits: len(ids) >= 6])
    assert len(list(llm.generate([1, 2, 3], max_tokens=20, stopping_criteria=criteria))) == 3


@pytest.mark.parametrize("processor", [None, NOTHING], ids=["native", "python"])
def test_token_ids_raise_where_the_context_is_full(open_model, processor):
    llm = open_model()
    generation = llm.generate([1, 2, 3], temp=0.0, logits_processor=processor)
    assert len(take(generation, 254)) == 254
    with pytest.raises(RuntimeError, match=r"the context is full.*n_ctx=256"):
        next(generation)
    assert llm.n_tokens == 256
    assert len(take(llm.generate([1, 2, 3], temp=0.0), 10)) == 10


@pytest.fixture
def endless():
    """Logits processors that leave letters only, and so no end token."""
    bias = np.full(tiny_models.N_VOCAB, -np.inf, np.float32)
    bias[ord("a") : ord("z") + 1] = 0
    return llama_cpp.LogitsProcessorList([lambda input_ids, scores: scores + bias])


@pytest.mark.parametrize("length", [1, 250, 255, 256])
def test_text_ends_quietly_where_the_context_is_full(open_model, endless, length):
    llm = open_model()
    pieces = list(llm.generate("a" * length, logits_processor=endless))
    assert len(pieces) == 256 - length + 1  # the last token has no room, and needs none
    assert llm.n_tokens == 256


def test_text_that_goes_on_from_a_context_ends_quietly_too(open_model, endless):
    llm = open_model()
    llm.eval([97] * 200)
    assert len(list(llm.generate("a" * 50, reset=False, logits_processor=endless))) == 7


def test_text_ends_quietly_in_the_native_loop(open_model):
    llm = open_model()
    grammar = llama_cpp.LlamaGrammar.from_string("root ::= [a-z]+ [!]", verbose=False)
    text = "".join(llm.generate("a" * 200, grammar=grammar, temp=0.0))
    assert text.endswith("!") or len(text) == 57


@pytest.mark.parametrize("draft", [False, True])
def test_text_with_a_draft_model_is_that_without(open_model, endless, draft):
    options = {"draft_model": LlamaPromptLookupDecoding()} if draft else {}
    llm = open_model(None, **options)
    text = "".join(llm.generate("abcabcabc" * 20, temp=0.0, logits_processor=endless))
    assert len(text) == 77
    plain = open_model(None)
    assert text == "".join(plain.generate("abcabcabc" * 20, temp=0.0, logits_processor=endless))


# --- text ------------------------------------------------------------------------------------------------------------


class Scripted(Llama):
    """Draws the tokens of a script, whatever the logits are."""

    def write(self, tokens):
        self.script = iter(tokens)
        return self

    def sample(self, *args, **kwargs):
        super().sample(*args, **kwargs)
        return next(self.script)


@pytest.fixture
def scripted(open_model):
    llm = open_model(None, cls=Scripted)
    return lambda tokens, **arguments: list(llm.write([*tokens, tiny_models.EOS]).generate("a", **arguments))


def test_text_is_that_of_a_streamed_completion_of_llama_cpp(open_model):
    llm, plain = open_model(None), open_model(cls=llama_cpp.Llama)
    grammar = llama_cpp.LlamaGrammar.from_string("root ::= [a-zäöü ]+", verbose=False)
    for seed in range(4):
        arguments = {"temperature": 1.0, "seed": seed, "max_tokens": 40, "grammar": grammar}
        expected = "".join(chunk["choices"][0]["text"] for chunk in plain(PROMPT, stream=True, **arguments))
        llm.set_seed(seed)
        assert "".join(llm.generate(PROMPT, temp=1.0, max_tokens=40, grammar=grammar)) == expected


def test_a_prompt_text_is_tokenized_as_in_a_completion(open_model):
    llm = open_model(None)
    for text in (PROMPT, "<s>the</s>", "größer", " "):
        next(llm.generate(text))
        generated = list(llm.eval_tokens)
        llm.reset()
        llm(text, max_tokens=1)
        assert generated == list(llm.eval_tokens)


@pytest.mark.parametrize("text", ["plain", "größer", "日本語", "a👩‍🚀b", "e\u0301", "\u0800\uffff\U0010ffff"])
def test_pieces_are_whole_characters(scripted, text):
    pieces = scripted(text.encode())
    assert "".join(pieces) == text
    assert pieces == list(text)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\xffb", "a\ufffdb"),
        (b"\xc3", "\ufffd"),
        (b"a\xe6\x97", "a\ufffd"),
        (b"\xe6\x97a", "\ufffda"),
        (b"\x80\x80", "\ufffd\ufffd"),
        (b"\xc0\xaf", "\ufffd\ufffd"),
    ],
)
def test_bytes_that_are_no_text_become_replacement_characters(scripted, data, expected):
    assert "".join(scripted(data)) == data.decode("utf-8", errors="replace") == expected


def test_no_piece_is_empty(scripted):
    assert scripted([*"日".encode(), tiny_models.BOS, ord("a")]) == ["日", "a"]


def test_special_tokens_are_no_text(scripted):
    assert "".join(scripted([ord("a"), tiny_models.BOS, ord("b")])) == "ab"


def test_text_ends_with_the_end_token(scripted):
    assert "".join(scripted([ord("a"), tiny_models.EOS, ord("b")])) == "a"
    assert scripted([]) == []


def test_a_character_cut_by_max_tokens_is_not_lost_without_a_trace(scripted):
    assert scripted("a日".encode(), max_tokens=3) == ["a", "\ufffd"]
    assert scripted("a日".encode(), max_tokens=4) == ["a", "日"]


def test_token_ids_go_on_beyond_the_end_token(open_model):
    """As in llama_cpp, where the caller decides."""
    llm = open_model(None, cls=Scripted)
    llm.write([ord("a"), tiny_models.EOS, ord("b"), ord("c")])
    assert take(llm.generate([1, 2, 3]), 4) == [ord("a"), tiny_models.EOS, ord("b"), ord("c")]


def test_text_can_be_left_in_the_middle(open_model):
    llm = open_model()
    expected = list(llm.generate(PROMPT, temp=0.0, max_tokens=20))
    for piece in llm.generate(PROMPT, temp=0.0):
        assert piece == expected[0]
        break
    assert list(llm.generate(PROMPT, temp=0.0, max_tokens=20)) == expected


def test_going_back_in_a_recurrent_memory_is_refused_by_name(open_model):
    llm = open_model(None, kind="mamba", n_layer=4)
    generation = llm.generate([1, 2, 3, 4], temp=0.0)
    take(generation, 3)
    llm.n_tokens -= 2
    with pytest.raises(RuntimeError, match="can't go back to position 4; reset"):
        next(generation)
