"""What is in the context is known, whoever put it there: chats that grow, pictures, sliding windows, several users.

The oracle is llama_cpp.Llama, or a fresh object that is given the same text.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
import time

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import Llama, SkipConfig, Unsupported

OPTIONS = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "seed": 11, "verbose": False}
ALWAYS = SkipConfig(policy="fixed", layers=[4, 5, 6], warm_up_index=0)
WARMING = SkipConfig(policy="fixed", layers=[4, 5, 6], warm_up_index=10_000)
NEVER = SkipConfig(sim_threshold=1.5, warm_up_index=0)
GREEDY = {"temp": 0.0}

pytestmark = pytest.mark.filterwarnings("ignore:skip:UserWarning")


@pytest.fixture(scope="module")
def path(model_file):
    return str(model_file("llama", n_layer=12))


@pytest.fixture
def open_model(path):
    with contextlib.ExitStack() as stack:

        def open_(skip="plain", *, file=path, **options):
            options = {**OPTIONS, **options}
            kind = llama_cpp.Llama if skip == "plain" else lambda *a, **o: Llama(*a, skip=skip, **o)
            return stack.enter_context(contextlib.closing(kind(str(file), **options)))

        yield open_


def take(generation, n):
    return list(itertools.islice(generation, n))


def evaluated(llm, act):
    """How many tokens `act` has llama.cpp evaluate."""
    llama_cpp.llama_synchronize(llm.ctx)  # what was computed counts from there on
    llama_cpp.llama_perf_context_reset(llm.ctx)
    act()
    llama_cpp.llama_synchronize(llm.ctx)
    perf = llama_cpp.llama_perf_context(llm.ctx)
    return perf.n_p_eval + perf.n_eval


def second_turn(llm):
    """Tokens evaluated for a prompt that goes on from an answer."""
    prompt = llm.tokenize(b"the weather in the north")
    prompt += take(llm.generate(prompt, **GREEDY), 40)
    prompt += llm.tokenize(b" and the south", add_bos=False)
    return evaluated(llm, lambda: next(llm.generate(prompt, **GREEDY))), prompt


@pytest.mark.parametrize("skip", [None, "auto", NEVER, WARMING, ALWAYS], ids=str)
def test_a_growing_text_evaluates_no_more_than_in_llama_cpp(open_model, skip):
    expected, _ = second_turn(open_model(no_perf=False))
    assert second_turn(open_model(skip, no_perf=False))[0] == expected


@pytest.mark.parametrize("skip", [NEVER, WARMING], ids=str)
def test_what_skipped_nothing_is_reused_in_full_too(open_model, skip):
    expected, _ = second_turn(open_model(no_perf=False))
    assert second_turn(open_model(skip, no_perf=False, reuse="full"))[0] == expected


def test_what_skipped_is_evaluated_again_where_that_is_asked_for(open_model):
    llm = open_model(ALWAYS, no_perf=False, reuse="full")
    n_evaluated, prompt = second_turn(llm)
    logits = llm._ctx.get_logits()[: llm.n_vocab()]
    fresh = open_model(ALWAYS)
    next(fresh.generate(prompt, **GREEDY))
    np.testing.assert_allclose(logits, fresh._ctx.get_logits()[: fresh.n_vocab()], atol=1e-3)
    assert n_evaluated > second_turn(open_model(no_perf=False))[0] + 30


def test_what_other_settings_skipped_is_evaluated_again(open_model):
    llm, plain = open_model(ALWAYS), open_model()
    prompt = llm.tokenize(b"the weather in the north")
    prompt += take(llm.generate(prompt, **GREEDY), 40)
    expected = take(plain.generate(prompt, **GREEDY), 30)
    with llm.dense():
        assert take(llm.generate(prompt, **GREEDY), 30) == expected


def test_a_callers_reuse_must_be_known(path):
    with pytest.raises(ValueError, match="'all' or 'full'"):
        Llama(path, reuse="some", **OPTIONS)


# --- pictures --------------------------------------------------------------------------------------------------------


def decode_rows(llm, rows, position):
    """What a chat handler of llama_cpp does with a picture: rows of embeddings, past the object."""
    batch = llama_cpp.llama_batch_init(len(rows), rows.shape[1], 1)
    batch.n_tokens = len(rows)
    ctypes.memmove(batch.embd, np.ascontiguousarray(rows).ctypes.data, rows.nbytes)
    for i in range(len(rows)):
        batch.pos[i], batch.n_seq_id[i], batch.logits[i] = position + i, 1, 0
        batch.seq_id[i][0] = 0
    assert llama_cpp.llama_decode(llm._ctx.ctx, batch) == 0
    llama_cpp.llama_batch_free(batch)


def ask_about(llm, picture, before):
    llm.reset()
    llm._ctx.kv_cache_clear()
    if before:
        llm.eval(llm.tokenize(b"look at"))
    decode_rows(llm, picture, llm.n_tokens)
    llm.n_tokens += len(picture)
    llm.input_ids[: llm.n_tokens] = -7  # handlers leave what was there
    llm.eval(llm.tokenize(b" and say", add_bos=False))
    prompt = llm.input_ids[: llm.n_tokens].tolist()
    n_evaluated = evaluated(llm, lambda: None)
    return take(llm.generate(prompt, **GREEDY), 40), n_evaluated


@pytest.mark.parametrize("before", [True, False], ids=["text first", "picture first"])
@pytest.mark.parametrize("options", [{}, {"reuse": "full"}], ids=str)
@pytest.mark.parametrize("skip", [None, "auto", NEVER, ALWAYS], ids=str)
def test_pictures_decoded_past_the_object_are_seen(open_model, skip, options, before):
    pictures = np.random.default_rng(5).normal(size=(3, 9, 64)).astype(np.float32)
    plain, llm = open_model(no_perf=False), open_model(skip, no_perf=False, **options)
    pictures = pictures[:, :, : plain.n_embd()]
    expected = [ask_about(plain, picture, before) for picture in pictures]
    got = [ask_about(llm, picture, before) for picture in pictures]
    assert [n for _, n in got] == [n for _, n in expected]
    if skip != ALWAYS:
        assert got == expected
    else:
        assert [tokens[0] for tokens, _ in got] == [tokens[0] for tokens, _ in expected]
        fresh = [ask_about(open_model(skip, no_perf=False), picture, before) for picture in pictures]
        assert got == fresh


# --- sliding windows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [None, NEVER, ALWAYS], ids=str)
def test_going_back_beyond_a_sliding_window_evaluates_again(open_model, model_file, skip):
    file = model_file("post_norm", n_layer=8, seed=4, sliding_window=24)
    options = {"file": file, "n_ctx": 1024, "swa_full": False, "n_batch": 16, "n_ubatch": 16, "reuse": "full"}
    llm, fresh = open_model(skip, **options), open_model(skip, **options)
    begin = llm.tokenize(b"the quick brown fox", add_bos=False)
    text = begin + take(llm.generate(begin, **GREEDY), 350)
    again = [*text[:200], *llm.tokenize(b" and then", add_bos=False)]
    for prompt in (again, begin):
        assert take(llm.generate(prompt, **GREEDY), 20) == take(fresh.generate(prompt, **GREEDY), 20)
        fresh.reset()


# --- a context made dense --------------------------------------------------------------------------------------------


def callback_of(llm):
    return ctypes.cast(llm.context_params.cb_eval, ctypes.c_void_p).value


@pytest.mark.parametrize("skip", [None, "auto"])
def test_a_context_made_dense_has_no_callback(open_model, skip):
    llm = open_model(skip)
    take(llm.generate(llm.tokenize(b"the"), **GREEDY), 5)
    assert callback_of(llm) is None
    assert len(llm.blocks) == 24 and llm.why_dense is None and llm.fingerprint.startswith("llama-12x")
    assert callback_of(llm) is None
    assert llm.stats.tokens == 4 and llm.stats.ffn_total == 4 * 12


def test_a_context_made_dense_keeps_its_text_when_skip_is_set(open_model):
    llm, other = open_model(None, no_perf=False), open_model(ALWAYS, no_perf=False)
    prompt = llm.tokenize(b"the weather in the north")
    for model in (llm, other):
        model.eval(prompt)
    llm.skip = ALWAYS
    assert callback_of(llm) is None and llm._controller.hooked
    assert llm.n_tokens == len(prompt)
    goes_on = [*prompt, 5, 6]
    counts = [evaluated(model, lambda m=model: next(m.generate(goes_on, **GREEDY))) for model in (llm, other)]
    assert counts[0] == counts[1]
    llm.reset_stats(), other.reset_stats()
    assert take(llm.generate(goes_on, **GREEDY), 30) == take(other.generate(goes_on, **GREEDY), 30)
    assert llm.stats.ffn_skipped == other.stats.ffn_skipped > 0


def test_a_context_made_dense_keeps_its_outputs_when_skip_is_set(open_model):
    llm, other = open_model(None), open_model(NEVER)
    for model in (llm, other):
        model.eval(model.tokenize(b"the weather in the north"))
    llm.skip = NEVER
    assert llm.sample(**GREEDY) == other.sample(**GREEDY)


def test_skip_set_between_the_tokens_of_a_draft_changes_none_of_them(open_model):
    prompt = [5, 6, 7, 8]
    expected = take(open_model("plain").generate(prompt, **GREEDY), 12)

    def draft(ids, **_):
        return np.array(expected[len(ids) - len(prompt) :][:4], dtype=np.intc)

    for at in range(1, 8):
        llm = open_model(None, draft_model=draft)
        tokens = llm.generate(prompt, **GREEDY)
        found = take(tokens, at)
        llm.skip = NEVER
        assert found + take(tokens, 12 - at) == expected


def test_nothing_of_llama_cpps_log_is_printed_where_it_is_not_wanted(open_model, model_file, capfd):
    llm = open_model(None, file=model_file("post_norm", n_layer=12))  # llama.cpp has a word on its sliding window
    assert llm.fingerprint
    llm.skip = ALWAYS
    list(llm.generate("<s>two start tokens", max_tokens=2))
    assert capfd.readouterr().err == ""


def test_skip_set_within_dense_holds_afterwards(open_model):
    llm = open_model(ALWAYS)
    with llm.dense():
        llm.skip = NEVER
        assert llm.skip is None
    assert llm.skip == NEVER


def test_a_context_manager_skips_for_a_while(open_model):
    llm = open_model(None)
    with llm.skipping(ALWAYS):
        take(llm.generate(llm.tokenize(b"the"), **GREEDY), 5)
        with llm.dense():
            assert llm.skip is None
        assert llm.skip == ALWAYS
    assert llm.skip is None and llm.stats.ffn_skipped == 3 * 4


# --- one user at a time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [None, ALWAYS], ids=str)
def test_a_second_thread_is_refused_while_one_is_at_work(open_model, skip):
    llm, alone = open_model(skip), open_model(skip)
    expected = alone("the weather", max_tokens=300, temperature=0.0)["choices"]
    refused, results = [], []
    worker = threading.Thread(target=lambda: results.append(llm("the weather", max_tokens=300, temperature=0.0)))
    worker.start()
    time.sleep(0.02)
    while worker.is_alive():
        for act in (lambda: llm("x", max_tokens=2), lambda: llm.eval([5]), llm.reset, lambda: llm.stats.tokens):
            try:
                act()
            except RuntimeError as error:
                refused.append(str(error))
    worker.join()
    assert results[0]["choices"] == expected
    assert refused and all("another thread" in message for message in refused)


@pytest.mark.parametrize("options", [{}, {"logits_all": True}], ids=["native", "python"])
def test_a_generation_ends_where_another_one_began(open_model, options):
    llm = open_model(ALWAYS, **options)
    one = llm.generate(llm.tokenize(b"the"), **GREEDY)
    take(one, 3)
    two = llm.generate(llm.tokenize(b"a"), **GREEDY)
    expected = take(two, 3)
    with pytest.raises(RuntimeError, match="another generation"):
        next(one)
    fresh = open_model(ALWAYS, **options)
    assert expected + take(two, 5) == take(fresh.generate(llm.tokenize(b"a"), **GREEDY), 8)
    llm.forward([1, 2, 3])
    with pytest.raises(RuntimeError, match="forward"):
        next(two)


# --- arguments that were meant for something else --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "right"),
    [
        ("skip_ratio", "skip=0.25"),
        ("skip_rato", "skip=0.25"),
        ("warm_up_index", "SkipConfig\\(warm_up_index"),
        ("profile", "ffnskip.gguf"),
        ("reuze", "reuse="),
    ],
)
def test_a_keyword_of_ours_by_another_name_is_refused(path, keyword, right):
    with pytest.raises(TypeError, match=right):
        Llama(path, **{keyword: 0.05}, **OPTIONS)


def test_a_keyword_that_llama_cpp_passes_over_is_passed_over(open_model):
    assert open_model(None, whatever=3).skip is None


@pytest.mark.parametrize(
    ("arguments", "right"),
    [({"temperature": 0.0}, "temp"), ({"stop": ["x"]}, "create_completion"), ({"max_new_tokens": 3}, "max_tokens")],
    ids=str,
)
def test_an_option_of_another_method_is_refused_with_the_right_one(open_model, arguments, right):
    with pytest.raises(TypeError, match=right):
        open_model(None).generate("x", **arguments)


def test_text_in_place_of_token_ids_is_refused(open_model):
    llm = open_model(None)
    for act in (llm.generate, llm.eval, llm.forward):
        with pytest.raises(TypeError, match="tokenize"):
            act(b"text")


@pytest.mark.parametrize("number", [float, np.float32, np.float64])
@pytest.mark.parametrize("name", ["temp", "top_p", "repeat_penalty"])
def test_nan_is_no_number_to_sample_with(open_model, name, number):
    with pytest.raises(ValueError, match=name):
        next(open_model(None).generate("x", **{name: number("nan")}))
    with pytest.raises(ValueError, match="temp"):
        open_model(None)("x", temperature=float("nan"), max_tokens=1)


def test_numbers_of_numpy_are_numbers(open_model):
    llm = open_model(None)
    for ratio in (np.float32(0.25), np.float64(0.25), np.int64(0)):
        llm.skip = ratio
        assert llm.skip.skip_ratio == float(ratio)


def test_settings_of_a_closed_model_are_refused(path):
    llm = Llama(path, **OPTIONS)
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        llm.skip = 0.25
    with pytest.raises(RuntimeError, match="closed"):
        llm.save_profile("/nowhere/x.gguf")


def test_a_replaced_method_of_one_object_is_called(open_model):
    llm = open_model(None)
    calls, real = [], llm.sample

    def sample(**options):
        calls.append(1)
        return real(**options)

    llm.sample = sample
    take(llm.generate(llm.tokenize(b"the"), **GREEDY), 6)
    assert len(calls) == 6


def test_an_embedding_context_cannot_skip(open_model):
    with pytest.raises(Unsupported, match="embedding"):
        open_model(None, embedding=True).skip = 0.25


def test_a_profile_leaves_an_embedding_context_alone(open_model, path, tmp_path):
    file = tmp_path / "m.gguf"
    file.symlink_to(path)
    open_model(ALWAYS).save_profile(tmp_path / "m.ffnskip.gguf")
    llm = open_model("auto", file=file, embedding=True)
    with llm.dense():
        expected = llm.embed("text")
    llm.skip = "auto"
    assert llm.skip is None and llm.embed("text") == expected
