"""With skip=None, `ffnskip_cpp.Llama` gives exactly what `llama_cpp.Llama` gives; what it adds does what it says.

The oracle is llama_cpp.Llama itself, on the same file with the same settings and seed.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import logging
import pickle
import threading
import weakref
from contextlib import ExitStack, closing
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from ffnskip_cpp import Llama, SkipConfig, SkipStats, Trace, Unsupported, read_profile
from support import tiny_models

PROMPT = "the weather in the north"
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the weather?"}]
OPTIONS = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "seed": 11, "verbose": False}

# Trips for most tokens of the tiny model, in different layers.
EAGER = SkipConfig(sim_threshold=0.85, warm_up_index=2, max_skip=4)

SAMPLING = {
    "greedy": {"temp": 0.0},
    "plain distribution": {"temp": -1.0},
    "temperature": {"temp": 1.3},
    "top-k": {"temp": 1.0, "top_k": 5},
    "top-p": {"temp": 1.2, "top_k": 0, "top_p": 0.7, "min_p": 0.0},
    "min-p": {"temp": 1.2, "top_k": 0, "top_p": 1.0, "min_p": 0.1},
    "typical": {"temp": 1.2, "top_k": 0, "typical_p": 0.6},
    "penalties": {"temp": 0.9, "repeat_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    "greedy with penalties": {"temp": 0.0, "repeat_penalty": 1.5},
    "mirostat 1": {"temp": 1.0, "mirostat_mode": 1, "mirostat_tau": 3.0, "mirostat_eta": 0.2},
    "mirostat 2": {"temp": 1.0, "mirostat_mode": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.2},
}

GRAMMAR = 'root ::= ("yes " | "no ") [a-f]+ " " [0-9] [0-9] "\\n"'


@pytest.fixture(scope="module")
def path(model_file):
    return str(model_file("llama", n_layer=12))


@pytest.fixture
def open_models(path):
    """Opens models that the test need not close."""
    with ExitStack() as stack:

        def open_model(kind=Llama, file=path, **options):
            return stack.enter_context(closing(kind(str(file), **{**OPTIONS, **options})))

        yield open_model


@pytest.fixture
def pair(open_models):
    """Opens the oracle, and this package's model that skips nothing."""
    return lambda **options: (open_models(llama_cpp.Llama, **options), open_models(skip=None, **options))


def take(generation, n):
    return list(itertools.islice(generation, n))


def tokens_of(llm, text=PROMPT):
    return llm.tokenize(text.encode())


def content(response):
    """A response without what differs from call to call."""
    return json.dumps({key: value for key, value in response.items() if key not in ("id", "created")}, sort_keys=True)


def both(models, call):
    """What `call` gives for the oracle and for ours."""
    return [call(llm) for llm in models]


# --- dense: sampling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
def test_dense_generation_gives_the_tokens_of_llama_cpp(pair, sampling):
    expected, got = both(pair(), lambda llm: take(llm.generate(tokens_of(llm), **sampling), 60))
    assert got == expected


def test_sampling_options_by_position_mean_what_they_mean_in_llama_cpp(pair):
    expected, got = both(pair(), lambda llm: take(llm.generate(tokens_of(llm), 7, 0.8, 0.01, 0.9, 1.4, 1.2), 40))
    assert got == expected


def test_the_prompt_may_be_given_under_llama_cpps_name(pair):
    expected, got = both(pair(), lambda llm: take(llm.generate(tokens=tokens_of(llm), temp=0.0), 10))
    assert got == expected


@pytest.mark.parametrize("arguments", [{"top_l": 3}, {"reset": True, "logit_bias": {}}], ids=str)
def test_an_unknown_sampling_option_is_refused_when_generate_is_called(open_models, arguments):
    llm = open_models(skip=None)
    with pytest.raises(TypeError):
        llm.generate([1, 2, 3], **arguments)


def test_an_option_given_twice_is_refused(open_models):
    llm = open_models(skip=None)
    with pytest.raises(TypeError):
        llm.generate([1, 2, 3], 40, top_k=40)


def test_a_grammar_gives_the_tokens_of_llama_cpp(pair):
    def constrained(llm):
        grammar = llama_cpp.LlamaGrammar.from_string(GRAMMAR, verbose=False)
        return llm(PROMPT, grammar=grammar, max_tokens=40, temperature=1.5, seed=3)["choices"][0]

    expected, got = both(pair(), constrained)
    assert got == expected
    assert got["text"].startswith(("yes ", "no "))


def test_logits_processors_and_stopping_criteria_see_and_change_what_they_do_in_llama_cpp(pair):
    def steered(llm):
        seen = []

        def only_even(input_ids, scores):
            seen.append((len(input_ids), float(scores[0])))
            scores[1::2] = -np.inf
            return scores

        tokens = list(
            llm.generate(
                tokens_of(llm),
                logits_processor=llama_cpp.LogitsProcessorList([only_even]),
                stopping_criteria=llama_cpp.StoppingCriteriaList([lambda ids, logits: len(ids) > 45]),
            )
        )
        return tokens, seen

    expected, got = both(pair(), steered)
    assert got == expected
    assert all(token % 2 == 0 for token in got[0])


def test_a_logit_bias_gives_the_text_of_llama_cpp(pair):
    expected, got = both(pair(), lambda llm: llm(PROMPT, logit_bias={101: 20.0}, seed=1, max_tokens=8)["choices"])
    assert got == expected
    assert "e" in got[0]["text"]


def test_the_low_level_loop_of_eval_and_sample_gives_the_tokens_of_llama_cpp(pair):
    def by_hand(llm):
        llm.reset()
        llm.eval(tokens_of(llm))
        out = []
        for _ in range(20):
            out.append(llm.sample(temp=0.7))
            llm.eval([out[-1]])
        return out, llm.n_tokens, llm.eval_tokens

    expected, got = both(pair(), by_hand)
    assert got == expected


@pytest.mark.parametrize(
    "options",
    [
        {"n_batch": 3},
        {"n_batch": 1, "n_ubatch": 1},
        {"n_ubatch": 2},
        {"flash_attn": True},
        {"offload_kqv": False},
        {"logits_all": True},
        {"use_mmap": False},
        {"rope_freq_scale": 0.5},
        {"last_n_tokens_size": 8},
    ],
    ids=str,
)
def test_context_options_give_the_tokens_of_llama_cpp(pair, options):
    sampling = {"temp": 0.9, "repeat_penalty": 1.2}
    expected, got = both(pair(**options), lambda llm: take(llm.generate(tokens_of(llm), **sampling), 40))
    assert got == expected


def test_a_quantized_cache_gives_the_tokens_of_llama_cpp(pair, model_file):
    file = model_file("llama", n_layer=4, n_head=2)  # heads of 32, a block of Q8_0
    q8_0 = {"type_k": llama_cpp.GGML_TYPE_Q8_0, "type_v": llama_cpp.GGML_TYPE_Q8_0, "flash_attn": True}
    expected, got = both(pair(file=file, **q8_0), lambda llm: take(llm.generate(tokens_of(llm)), 40))
    assert got == expected


def test_token_ids_may_be_a_numpy_array(open_models):
    llm = open_models(skip=None)
    tokens = tokens_of(llm)
    assert take(llm.generate(np.array(tokens, np.int32), temp=0.0), 8) == take(llm.generate(tokens, temp=0.0), 8)


# --- dense: completions and chat -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"max_tokens": 0},
        {"max_tokens": None},
        {"max_tokens": 1},
        {"max_tokens": 60, "stop": ["e", "th"]},
        {"max_tokens": 60, "stop": "a", "echo": True},
        {"suffix": " and the south", "echo": True},
        {"mirostat_mode": 2, "temperature": 1.0, "max_tokens": 30},
    ],
    ids=str,
)
def test_completions_are_those_of_llama_cpp(pair, arguments):
    expected, got = both(pair(), lambda llm: content(llm.create_completion(PROMPT, seed=5, **arguments)))
    assert got == expected


@pytest.mark.parametrize("arguments", [{}, {"stop": ["e", "th"]}, {"seed": 8, "temperature": 1.5}], ids=str)
def test_streamed_pieces_are_those_of_llama_cpp(pair, arguments):
    arguments = {"seed": 5, "max_tokens": 50, **arguments}
    expected, got = both(pair(), lambda llm: [content(c) for c in llm(PROMPT, stream=True, **arguments)])
    assert got == expected
    assert len(got) > 2


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_llama_cpp(pair, stream):
    def with_logprobs(llm):
        response = llm.create_completion(PROMPT, seed=5, max_tokens=12, logprobs=3, echo=not stream, stream=stream)
        chunks = list(response) if stream else [response]
        return [repr(chunk["choices"]) for chunk in chunks]

    expected, got = both(pair(logits_all=True), with_logprobs)
    assert got == expected
    assert "token_logprobs" in got[0]


@pytest.mark.parametrize("chat_format", ["llama-2", "chatml"])
def test_chat_completions_are_those_of_llama_cpp(pair, chat_format):
    models = pair(chat_format=chat_format)
    expected, got = both(models, lambda llm: content(llm.create_chat_completion(MESSAGES, seed=2, max_tokens=20)))
    assert got == expected
    arguments = {"seed": 2, "max_tokens": 20, "stream": True}
    expected, got = both(models, lambda llm: [content(c) for c in llm.create_chat_completion(MESSAGES, **arguments)])
    assert got == expected


def test_chat_bound_to_json_is_that_of_llama_cpp(pair):
    def answer(llm):
        form = {"type": "json_object", "schema": {"type": "object", "properties": {"n": {"type": "integer"}}}}
        return content(llm.create_chat_completion(MESSAGES, seed=2, max_tokens=12, response_format=form))

    expected, got = both(pair(chat_format="chatml"), answer)
    assert got == expected
    assert json.loads(got)["choices"][0]["message"]["content"].startswith("{")


# --- dense: the context ----------------------------------------------------------------------------------------------


def test_later_calls_reuse_the_context_as_in_llama_cpp(pair):
    def conversation(llm):
        tokens = tokens_of(llm)
        answer = take(llm.generate(tokens, temp=0.8), 12)
        again = take(llm.generate(tokens, temp=0.8), 12)
        longer = take(llm.generate(tokens + answer + tokens_of(llm, " then"), temp=0.8), 12)
        shorter = take(llm.generate(tokens[:7], temp=0.8), 12)
        return answer, again, longer, shorter, llm.n_tokens

    expected, got = both(pair(), conversation)
    assert got == expected


def test_breaking_out_and_going_on_is_as_in_llama_cpp(pair):
    def interrupted(llm):
        generation = llm.generate(tokens_of(llm), temp=0.8)
        first = take(generation, 5)
        second = take(generation, 5)
        generation.close()
        return first, second, take(llm.generate(tokens_of(llm) + first, temp=0.8), 5)

    expected, got = both(pair(), interrupted)
    assert got == expected


def test_a_generation_without_reset_goes_on_where_the_context_ends(pair):
    def continued(llm):
        llm.eval(tokens_of(llm))
        more = take(llm.generate(tokens_of(llm, " and"), reset=False, temp=0.0), 6)
        return more, take(llm.generate([], reset=False, temp=0.0), 6), llm.n_tokens

    expected, got = both(pair(), continued)
    assert got == expected


def test_a_generation_goes_on_from_the_context_it_finds(open_models):
    """llama_cpp counts on, and samples not at all or twice; so the expected tokens are worked out."""
    llm = open_models(skip=None)
    generation = llm.generate(tokens_of(llm), temp=0.0)
    (*_, last) = take(generation, 3)
    llm.reset()
    llm.eval([104, 105])
    got = take(generation, 5)
    assert got == take(llm.generate([104, 105, last], temp=0.0), 5)


def test_tokens_sent_into_a_generation_are_as_in_llama_cpp(pair):
    def prodded(llm):
        generation = llm.generate(tokens_of(llm), temp=0.0)
        out = take(generation, 3)
        out.append(generation.send([104, 105]))
        return out + take(generation, 5)

    expected, got = both(pair(logits_all=True), prodded)
    assert got == expected


def test_tokens_sent_into_a_native_generation_follow_the_token_before(open_models):
    """Without logits_all llama_cpp reads logits that were never computed, so the expected tokens are worked out."""
    llm = open_models(skip=None)
    prompt = tokens_of(llm)
    generation = llm.generate(prompt, temp=0.0)
    out = take(generation, 3)
    prodded = [generation.send([104, 105]), *take(generation, 5)]
    assert prodded == take(llm.generate([*prompt, *out, 104, 105], temp=0.0), 6)


@pytest.mark.parametrize("arguments", [{}, {"n_batch": 4}, {"logits_all": True}, {"n_ctx": 100}], ids=str)
def test_saved_states_are_interchangeable_with_llama_cpps(pair, arguments):
    plain, ours = pair(**arguments)
    states = []
    for llm in (plain, ours):
        assert take(llm.generate(tokens_of(llm), temp=0.0), 4)
        states.append(llm.save_state())
    assert states[0].llama_state == states[1].llama_state
    for llm in (plain, ours):
        for state in states:
            llm.reset()
            llm.load_state(state)
            assert llm.n_tokens == states[0].n_tokens
            assert take(llm.generate(tokens_of(llm), temp=0.7), 9) == take(plain.generate(tokens_of(llm), temp=0.7), 9)


@pytest.mark.parametrize("cache", [llama_cpp.LlamaRAMCache, llama_cpp.LlamaDiskCache])
def test_a_prompt_cache_gives_the_completions_of_llama_cpp(pair, tmp_path, cache):
    def cached(llm):
        llm.set_cache(cache(str(tmp_path / type(llm).__module__)) if cache is llama_cpp.LlamaDiskCache else cache())
        prompts = [PROMPT, "something else", PROMPT + " and", PROMPT]
        return [content(llm(prompt, max_tokens=8, seed=4)) for prompt in prompts]

    expected, got = both(pair(), cached)
    assert got == expected


def test_a_draft_model_gives_the_tokens_of_llama_cpp(pair):
    def speculative(llm):
        tokens = tokens_of(llm, "abcabcabcabcabc")
        return take(llm.generate(tokens, temp=0.0), 40), take(llm.generate(tokens, temp=0.9), 40)

    expected, got = both(pair(draft_model=LlamaPromptLookupDecoding(num_pred_tokens=5)), speculative)
    assert got == expected


def test_a_draft_model_may_go_beyond_the_first_batch(open_models):
    """llama_cpp keeps logits for n_batch tokens only, and fails once a draft is longer."""
    llm = open_models(skip=None, n_batch=16, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=3))
    plain = open_models(llama_cpp.Llama)
    prompt = [104, 105]
    assert take(llm.generate(prompt, temp=0.0), 30) == take(plain.generate(prompt, temp=0.0), 30)


def test_a_context_that_llama_cpp_rounds_up_can_be_filled(pair):
    """llama_cpp.Llama keeps token ids for the n_ctx asked for, but generates as far as the context that it got."""
    arguments = {"max_tokens": None, "seed": 1, "logit_bias": {tiny_models.EOS: -100.0}}
    expected, got = both(pair(n_ctx=100), lambda llm: llm(PROMPT, **arguments)["usage"])
    assert got == expected
    assert got["total_tokens"] == 256


# --- dense: other models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in tiny_models.SKIPPABLE if kind != "llama"])
def test_dense_generation_gives_the_tokens_of_llama_cpp_for_every_kind_of_model(pair, model_file, kind):
    file = model_file(kind, n_layer=4)
    expected, got = both(pair(file=file), lambda llm: take(llm.generate(tokens_of(llm), temp=0.8), 12))
    assert got == expected


def test_a_recurrent_model_generates_as_in_llama_cpp(pair, model_file):
    def conversation(llm):
        first = take(llm.generate(tokens_of(llm), temp=0.8), 12)
        return first, take(llm.generate(tokens_of(llm) + first[:4], temp=0.8), 12)

    expected, got = both(pair(file=model_file("mamba")), conversation)
    assert got == expected


@pytest.mark.parametrize("arguments", [{}, {"pooling_type": llama_cpp.LLAMA_POOLING_TYPE_MEAN}], ids=str)
def test_embeddings_are_those_of_llama_cpp(pair, arguments):
    texts = [PROMPT, "another", "a third, longer text"]
    models = pair(embedding=True, **arguments)
    expected, got = both(models, lambda llm: (llm.embed(texts), llm.create_embedding(PROMPT)))
    assert got == expected


def test_embeddings_of_an_embedding_model_are_those_of_llama_cpp(pair, model_file):
    file = model_file("bert")
    expected, got = both(pair(file=file, embedding=True), lambda llm: llm.embed([PROMPT, "another"], normalize=True))
    assert got == expected


def test_a_lora_adapter_gives_the_tokens_of_llama_cpp(pair, tmp_path):
    lora = str(tiny_models.write_lora(tmp_path / "lora.gguf", n_layer=12))

    def greedy(llm):
        return take(llm.generate(tokens_of(llm), temp=0.0), 30)

    expected, got = both(pair(lora_path=lora, lora_scale=0.8), greedy)
    assert got == expected
    assert got not in both(pair(), greedy)


def test_a_vocabulary_alone_can_be_loaded(pair):
    expected, got = both(pair(vocab_only=True), lambda llm: (tokens_of(llm), llm.detokenize([104, 105]), llm.n_vocab()))
    assert got == expected


# --- skip ------------------------------------------------------------------------------------------------------------


def skipped_blocks(llm, n=12):
    llm.reset_stats()
    take(llm.generate(tokens_of(llm), temp=0.0), n)
    return llm.stats.ffn_skipped


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (EAGER, EAGER),
        (0.25, SkipConfig(skip_ratio=0.25)),
        (0, SkipConfig(skip_ratio=0.0)),
        ("auto", None),
        (SkipConfig(policy="dense"), None),
    ],
    ids=str,
)
def test_skip_is_what_was_given(open_models, given, expected):
    llm = open_models(skip=given)
    assert llm.skip == expected
    llm.skip = None
    assert llm.skip is None
    llm.skip = given
    assert llm.skip == expected


def test_skip_can_be_set_between_calls(open_models):
    llm = open_models(skip=None)
    assert skipped_blocks(llm) == 0
    llm.skip = EAGER
    assert skipped_blocks(llm) > 0
    llm.skip = None
    assert skipped_blocks(llm) == 0


@pytest.mark.parametrize(
    "value",
    [1.5, -0.1, float("nan"), 0.9, "on", True, [0.25], SkipConfig(cold_e=12), SkipConfig(max_skip=11)],
    ids=str,
)
def test_a_skip_that_does_not_fit_is_refused_and_the_old_one_stays(open_models, value):
    llm = open_models(skip=EAGER)
    with pytest.raises(ValueError):
        llm.skip = value
    assert llm.skip == EAGER
    assert skipped_blocks(llm) > 0


def test_dense_is_dense_and_restores_what_was_set(open_models):
    llm = open_models(skip=EAGER)
    with llm.dense():
        assert llm.skip is None
        assert skipped_blocks(llm) == 0
    assert llm.skip == EAGER
    assert skipped_blocks(llm) > 0


def test_dense_restores_what_was_set_after_an_exception(open_models):
    llm = open_models(skip=EAGER)
    with pytest.raises(KeyError), llm.dense():
        raise KeyError
    assert llm.skip == EAGER


def test_dense_is_nothing_to_a_closed_model(open_models):
    llm = open_models(skip=EAGER)
    llm.close()
    with llm.dense():
        pass


def test_the_end_of_a_block_waits_for_another_threads_step(open_models):
    llm = open_models(skip=EAGER)
    is_within, may_end, seen = threading.Event(), threading.Event(), []

    def look(ids, scores):
        is_within.set()
        may_end.wait(10)
        seen.append(llm.skip)
        return scores

    processors = llama_cpp.LogitsProcessorList([look])
    step = threading.Thread(target=lambda: llm.create_completion([1, 2], max_tokens=1, logits_processor=processors))
    with llm.dense():
        step.start()
        assert is_within.wait(10)
        threading.Timer(0.2, may_end.set).start()
    assert seen == [None]
    assert llm.skip == EAGER
    step.join()


def test_a_model_is_not_probed_while_another_thread_is_at_work(open_models):
    llm = open_models(skip=None)
    refused = []

    def ask():
        try:
            refused.append(llm.fingerprint)
        except RuntimeError as error:
            refused.append(str(error))

    for _ in range(2):
        with llm._at_work():
            asker = threading.Thread(target=ask)
            asker.start()
            asker.join()
        fingerprint = llm.fingerprint  # known from here on
    assert "another thread" in refused[0] and refused[1] == fingerprint


@pytest.mark.parametrize("leave", ["dense", "skip"])
def test_what_skipped_before_leaves_no_trace_in_a_dense_generation(open_models, leave):
    """Tokens that skipped stay in the context; a prompt that goes on from them must not take them over."""
    plain, llm = open_models(llama_cpp.Llama), open_models(skip=EAGER)
    prompt = tokens_of(llm)
    prompt += take(llm.generate(prompt, temp=0.0), 20)
    assert llm.stats.ffn_skipped > 0
    expected = plain.create_completion(prompt, temperature=0.0, max_tokens=30)["choices"]
    if leave == "skip":
        llm.skip = None
        assert llm.create_completion(prompt, temperature=0.0, max_tokens=30)["choices"] == expected
    else:
        with llm.dense():
            assert llm.create_completion(prompt, temperature=0.0, max_tokens=30)["choices"] == expected


@pytest.mark.parametrize("state", ["same object", "state", "cache"])
def test_a_prompt_gives_the_same_tokens_whatever_was_generated_before(open_models, state):
    """reuse="full": what skipping tokens left in the context is evaluated again."""
    llm, fresh = open_models(skip=EAGER, reuse="full"), open_models(skip=EAGER)
    if state == "cache":
        llm.set_cache(llama_cpp.LlamaRAMCache())
    prompt = tokens_of(llm)
    prompt += llm.tokenize(llm(PROMPT, temperature=0.0, max_tokens=20)["choices"][0]["text"].encode())
    if state == "state":
        saved = pickle.loads(pickle.dumps(llm.save_state()))
        llm.reset()
        llm.load_state(saved)
    arguments = {"temperature": 0.0, "max_tokens": 30}
    assert llm(prompt, **arguments)["choices"] == fresh(prompt, **arguments)["choices"]


def test_auto_without_a_profile_is_dense_and_says_so_in_one_line(path, caplog):
    with caplog.at_level(logging.INFO, logger="ffnskip_cpp"), closing(Llama(path, **OPTIONS)) as llm:
        assert llm.skip is None
        assert llm.context_params.cb_eval is None or not ctypes.cast(llm.context_params.cb_eval, ctypes.c_void_p).value
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "nothing is skipped" in record.message and "ffnskip calibrate" in record.message


def test_auto_warns_where_the_object_is_verbose(path, caplog, capfd):
    with caplog.at_level(logging.INFO, logger="ffnskip_cpp"), closing(Llama(path, **{**OPTIONS, "verbose": True})):
        pass
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("skip", [0.25, EAGER], ids=str)
def test_settings_that_are_not_calibrated_warn_once(path, skip):
    with pytest.warns(UserWarning, match="not calibrated") as caught, closing(Llama(path, skip=skip, **OPTIONS)) as llm:
        llm.skip = 0.3
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("skip", [0, 0.0, SkipConfig(max_skip=0)], ids=str)
def test_settings_that_skip_nothing_do_not_warn(path, skip, recwarn):
    with closing(Llama(path, skip=skip, **OPTIONS)) as llm:
        assert llm.resolved["max_skip"] == 0
    assert not recwarn.list


def test_warnings_point_at_the_line_of_the_caller(path):
    class Kind(Llama):
        pass

    def change(llm):
        llm.skip = SkipConfig(sim_threshold=-1.0, warm_up_index=0)  # this line

    line = change.__code__.co_firstlineno + 1
    with closing(Kind(path, skip=None, **OPTIONS)) as llm, pytest.warns(UserWarning) as caught:
        change(llm)
        take(llm.generate("the", max_tokens=140, temp=0.0), 140)
        for token in range(10):
            llm.eval([token])
    assert {warning.filename for warning in caught} == {__file__}
    assert [str(warning.message)[:5] for warning in caught] == ["skip:", "100 o", "token"]
    assert caught[0].lineno == line


def test_settings_of_the_models_own_profile_do_not_warn(open_models, model_file, tmp_path, recwarn):
    file = tmp_path / "m.gguf"
    file.write_bytes(Path(model_file("llama", n_layer=12)).read_bytes())
    config = SkipConfig(policy="fixed", layers=[4, 5], warm_up_index=3)
    with pytest.warns(UserWarning, match="not calibrated"):
        llm = open_models(file=file, skip=config)
    llm.save_profile(tmp_path / "m.ffnskip.gguf")
    recwarn.clear()
    assert open_models(file=file).skip == config
    assert open_models(file=file, skip=config).skip == config
    assert not recwarn.list


def test_a_threshold_that_tells_nothing_is_said_once(open_models):
    llm = open_models(skip=SkipConfig(sim_threshold=-1.0, warm_up_index=0))
    with pytest.warns(UserWarning, match="tells nothing") as caught:
        take(llm.generate(tokens_of(llm), temp=0.0), 140)
        take(llm.generate(tokens_of(llm), temp=0.0), 140)
    assert len([w for w in caught if "tells nothing" in str(w.message)]) == 1


@pytest.mark.parametrize("skip", [None, EAGER, 0.25], ids=str)
def test_a_chosen_skip_logs_nothing(path, caplog, skip):
    with caplog.at_level(logging.DEBUG, logger="ffnskip_cpp"), closing(Llama(path, skip=skip, **OPTIONS)):
        pass
    assert not caplog.records


def test_auto_runs_a_model_without_ffn_dense_and_says_so(model_file, caplog):
    file = str(model_file("mamba"))
    with caplog.at_level(logging.INFO, logger="ffnskip_cpp"), closing(Llama(file, **OPTIONS)) as llm:
        assert llm.skip is None
        assert take(llm.generate([1, 2]), 3)
        assert "mamba" in llm.why_dense
        with pytest.raises(Unsupported, match="mamba"):
            llm.skip = 0.25
    assert len(caplog.records) == 1


# --- statistics and trace --------------------------------------------------------------------------------------------


def test_stats_agree_with_the_trace(open_models):
    llm = open_models(skip=EAGER)
    with llm.trace() as trace:
        take(llm.generate(tokens_of(llm), temp=0.0), 21)
    stats = llm.stats
    assert isinstance(trace, Trace) and isinstance(stats, SkipStats)
    assert (trace.similarity.dtype, trace.skipped.dtype) == (np.float32, np.bool_)
    assert trace.similarity.shape == trace.skipped.shape == (20, 12)  # the last token is not fed back
    assert (stats.tokens, stats.ffn_total) == (20, 20 * 12)
    assert stats.ffn_skipped == trace.skipped.sum() > 0
    assert stats.skip_ratio == pytest.approx(trace.skipped.mean())
    assert stats.checks == np.isfinite(trace.similarity).sum()
    np.testing.assert_array_equal(stats.skipped_per_layer, trace.skipped.sum(axis=0))


def test_a_trace_follows_algorithm_1(open_models):
    llm = open_models(skip=SkipConfig(sim_threshold=0.85, cold_s=3, cold_e=9, warm_up_index=4, max_skip=2))
    with llm.trace() as trace:
        take(llm.generate(tokens_of(llm), temp=0.0), 30)
    assert np.isnan(trace.similarity[:4]).all() and not trace.skipped[:4].any()
    assert np.isnan(trace.similarity[:, :3]).all() and np.isnan(trace.similarity[:, 9:]).all()
    for similarity, skipped in zip(trace.similarity[4:], trace.skipped[4:]):
        tripped = np.flatnonzero(similarity >= 0.85)
        expected = range(tripped[0] + 1, min(tripped[0] + 3, 9)) if len(tripped) else range(0)
        assert np.flatnonzero(skipped).tolist() == list(expected)


def test_stats_are_a_snapshot_and_reset(open_models):
    llm = open_models(skip=EAGER)
    take(llm.generate(tokens_of(llm)), 5)
    before = llm.stats
    take(llm.generate(tokens_of(llm)), 5)
    assert (before.tokens, llm.stats.tokens) == (4, 8)
    llm.reset_stats()
    assert (llm.stats.tokens, llm.stats.skip_ratio, llm.stats.skipped_per_layer.tolist()) == (0, 0.0, [0] * 12)


def test_dense_tokens_are_counted_and_not_checked(open_models):
    llm = open_models(skip=None)
    with llm.trace() as trace:
        take(llm.generate(tokens_of(llm)), 5)
    assert (llm.stats.tokens, llm.stats.ffn_skipped, llm.stats.checks) == (4, 0, 0)
    assert trace.similarity.shape == (4, 12) and np.isnan(trace.similarity).all()


def test_a_trace_of_nothing_is_empty(open_models):
    llm = open_models(skip=EAGER)
    with llm.trace() as trace:
        llm.eval(tokens_of(llm))
    assert trace.similarity.shape == trace.skipped.shape == (0, 12)


def test_a_trace_within_a_trace_is_refused(open_models):
    llm = open_models(skip=EAGER)
    with llm.trace() as trace:
        with pytest.raises(RuntimeError, match="already"), llm.trace():
            pass
        take(llm.generate(tokens_of(llm)), 5)
    assert len(trace.skipped) == 4
    with llm.trace() as again:
        take(llm.generate(tokens_of(llm)), 3)
    assert len(again.skipped) == 2


def test_a_trace_is_filled_after_an_exception(open_models):
    llm = open_models(skip=EAGER)
    with pytest.raises(KeyError), llm.trace() as trace:
        take(llm.generate(tokens_of(llm)), 5)
        raise KeyError
    assert len(trace.skipped) == 4


# --- forward ---------------------------------------------------------------------------------------------------------


def plain_logits(llm, tokens):
    llm.reset()
    llm.eval(tokens)
    return np.array(llm.scores[: len(tokens)])


@pytest.mark.parametrize("n_batch", [5, 7, 256])
def test_forward_that_skips_nothing_gives_the_logits_of_llama_cpp(open_models, n_batch):
    options = {"n_batch": n_batch, "logits_all": True}
    plain, llm = open_models(llama_cpp.Llama, **options), open_models(skip=None, n_batch=n_batch)
    tokens = tokens_of(llm)
    expected = plain_logits(plain, tokens)
    got = llm.forward(tokens)
    assert (got.dtype, got.shape) == (np.float32, (len(tokens), llm.n_vocab()))
    np.testing.assert_array_equal(got, expected)
    llm.skip = EAGER
    np.testing.assert_array_equal(llm.forward(tokens, [False] * len(tokens)), expected)
    with llm.dense():
        np.testing.assert_array_equal(llm.forward(np.array(tokens)), expected)


def test_forward_gives_the_logits_of_tokens_generated_one_by_one(open_models):
    """To rounding: a batch of rows is multiplied in another order than single rows."""
    llm = open_models(skip=EAGER, logits_all=True, n_ctx=256, type_k=0, type_v=0)
    tokens = tokens_of(llm)
    with llm.trace() as one_by_one:
        generation = llm.generate(tokens, temp=0.0)
        tokens = tokens + take(generation, 20)
    singly = np.array(llm.scores[: len(tokens) - 1])
    n_prompt = len(tokens) - 20
    eligible = [i >= n_prompt + EAGER.warm_up_index for i in range(len(tokens) - 1)]
    with llm.trace() as at_once:
        together = llm.forward(tokens[:-1], eligible)
    np.testing.assert_array_equal(at_once.skipped, one_by_one.skipped[EAGER.warm_up_index :])
    assert np.abs(together - singly).max() < 1e-3 * np.abs(singly).max()


def test_forward_lets_the_tokens_after_the_warm_up_skip(open_models):
    llm = open_models(skip=EAGER)
    tokens = tokens_of(llm)
    with llm.trace() as trace:
        llm.forward(tokens)
    assert trace.skipped.shape == (len(tokens), 12)
    assert not trace.skipped[: EAGER.warm_up_index].any()
    assert trace.skipped[EAGER.warm_up_index :].any()
    assert llm.stats.tokens == len(tokens)


def test_rows_that_are_not_eligible_count_as_prompt(open_models):
    llm = open_models(skip=EAGER)
    tokens = tokens_of(llm)
    eligible = np.arange(len(tokens)) % 3 == 0
    with llm.trace() as trace:
        llm.forward(tokens, eligible)
    assert len(trace.skipped) == llm.stats.tokens == eligible.sum()


def test_forward_leaves_its_tokens_in_the_context(open_models):
    llm, plain = open_models(skip=None, logits_all=True), open_models(llama_cpp.Llama, logits_all=True)
    tokens = tokens_of(llm)
    llm.eval([1, 2, 3])
    llm.forward(tokens)
    assert list(llm.eval_tokens) == tokens
    arguments = {"max_tokens": 8, "logprobs": 2, "echo": True, "seed": 3}
    assert repr(llm(PROMPT, **arguments)["choices"]) == repr(plain(PROMPT, **arguments)["choices"])


def test_forward_may_fill_the_context(open_models):
    llm = open_models(skip=EAGER)
    assert llm.forward([104] * 256).shape == (256, tiny_models.N_VOCAB)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "tokens: 0 given; 1 to n_ctx=256"),
        (([1] * 257,), "tokens: 257 given; 1 to n_ctx=256"),
        (([1, 259],), r"ids must be in \[0, 259\); got 1 to 259"),
        (([-1, 3],), r"ids must be in \[0, 259\); got -1 to 3"),
        (([1, 2, 3], [True]), "eligible: 1 entries for 3 tokens"),
    ],
)
def test_forward_refuses_what_it_cannot_evaluate_and_keeps_the_context(open_models, arguments, message):
    llm = open_models(skip=EAGER)
    llm.eval([1, 2, 3])
    with pytest.raises(ValueError, match=message):
        llm.forward(*arguments)
    assert list(llm.eval_tokens) == [1, 2, 3]


# --- pickling, threads, lifetime -------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [None, 0.25, "auto", EAGER], ids=str)
def test_pickling_keeps_settings_and_skip(open_models, skip):
    llm = open_models(skip=skip, n_batch=32)
    with closing(pickle.loads(pickle.dumps(llm))) as copy:
        assert (copy.skip, copy.n_ctx(), copy.n_batch, copy.model_path) == (llm.skip, 256, 32, llm.model_path)
        assert take(copy.generate(tokens_of(copy)), 20) == take(llm.generate(tokens_of(llm)), 20)


def test_pickling_keeps_a_profile(open_models, tmp_path):
    open_models(skip=EAGER).save_profile(tmp_path / "p.gguf")
    llm = open_models(skip=read_profile(tmp_path / "p.gguf"))
    with closing(pickle.loads(pickle.dumps(llm))) as copy:
        assert copy.skip == llm.skip


def test_pickling_keeps_the_skip_set_last(open_models):
    llm = open_models(skip=None)
    llm.skip = EAGER
    with llm.dense():
        data = pickle.dumps(llm)
    with closing(pickle.loads(data)) as copy:
        assert copy.skip == EAGER


def test_a_path_object_opens_a_model(path):
    with closing(Llama(Path(path), skip=None, **OPTIONS)) as llm:
        assert llm.model_path == path
        assert llm(PROMPT, max_tokens=2)["model"] == path


def test_models_generate_side_by_side_in_threads(open_models):
    models = [open_models(skip=EAGER, seed=seed) for seed in range(1, 5)]
    expected = [take(llm.generate(tokens_of(llm)), 60) for llm in models]
    counts = [llm.stats.ffn_skipped for llm in models]
    got = [[] for _ in models]

    def generate(i):
        got[i] = take(models[i].generate(tokens_of(models[i])), 60)

    threads = [threading.Thread(target=generate, args=(i,)) for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected
    assert [llm.stats.ffn_skipped for llm in models] == [2 * count for count in counts]


def test_models_interleave_without_mixing(open_models):
    models = [open_models(skip=skip) for skip in (None, EAGER)]
    expected = [take(llm.generate(tokens_of(llm)), 20) for llm in models]
    generations = [llm.generate(tokens_of(llm)) for llm in models]
    got = list(zip(*[[next(generation) for generation in generations] for _ in range(20)]))
    assert [list(tokens) for tokens in got] == expected


def test_the_object_is_a_context_manager(path):
    with Llama(path, skip=EAGER, **OPTIONS) as llm:
        assert take(llm.generate([1, 2]), 2)
    with pytest.raises(RuntimeError, match="closed"):
        llm.eval([1])
    llm.close()  # a second time does nothing


@pytest.mark.parametrize(
    "use",
    [
        lambda llm: llm.eval([1]),
        lambda llm: llm.sample(),
        lambda llm: next(llm.generate([1, 2])),
        lambda llm: next(llm.generate("text")),
        lambda llm: llm("text"),
        lambda llm: llm.create_chat_completion(MESSAGES),
        lambda llm: llm.tokenize(b"text"),
        lambda llm: llm.detokenize([1]),
        lambda llm: llm.forward([1]),
        lambda llm: llm.save_state(),
    ],
)
def test_using_a_closed_model_raises(path, use):
    llm = Llama(path, skip=EAGER, **OPTIONS)
    llm.eval([1, 2])
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        use(llm)


@pytest.mark.parametrize("processor", [None, llama_cpp.LogitsProcessorList([lambda ids, scores: scores])])
def test_a_generation_of_a_closed_model_raises(path, processor):
    llm = Llama(path, skip=EAGER, **OPTIONS)
    generation = llm.generate([1, 2], logits_processor=processor)
    take(generation, 5)
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(generation)


def test_deleting_the_last_reference_frees_the_model(path):
    gc.disable()  # so that a reference cycle would show
    try:
        llm = Llama(path, skip=EAGER, **OPTIONS)
        with llm.trace(), llm.dense():
            take(llm.generate([1, 2]), 4)
            list(llm.generate("th", max_tokens=4))
            llm.forward([1, 2])
            llm.score([1, 2], [[3, 4], [5]])
        context, gone = llm._ctx, weakref.ref(llm)
        del llm
        assert gone() is None
        assert context.ctx is None
    finally:
        gc.enable()


def test_a_running_generation_keeps_its_model(path):
    generation = Llama(path, skip=None, **OPTIONS).generate([1, 2], temp=0.0)
    with closing(llama_cpp.Llama(path, **OPTIONS)) as plain:
        assert take(generation, 5) == take(plain.generate([1, 2], temp=0.0), 5)


def test_a_refused_skip_frees_the_model(model_file):
    file = str(model_file("mamba"))
    with pytest.raises(Unsupported) as caught:
        Llama(file, skip=0.25, **OPTIONS)
    frame = caught.traceback[1].frame
    with pytest.raises(RuntimeError, match="closed"):
        frame.f_locals["self"].eval([1])


class Counting(Llama):
    """A subclass that looks at each step of a generation."""

    def __init__(self, *args, **kwargs):
        self.evaluated, self.drawn = [], 0
        super().__init__(*args, **kwargs)

    def eval(self, tokens):
        self.evaluated.append(len(tokens))
        super().eval(tokens)

    def sample(self, *args, **kwargs):
        self.drawn += 1
        return super().sample(*args, **kwargs)


def test_a_subclass_may_override_eval_and_sample(open_models):
    llm, plain = open_models(Counting, skip=EAGER), open_models(skip=EAGER)
    prompt = tokens_of(llm)
    assert take(llm.generate(prompt), 10) == take(plain.generate(prompt), 10)
    assert llm.evaluated == [len(prompt)] + [1] * 9
    assert llm.drawn == 10
    assert repr(llm.stats) == repr(plain.stats)
