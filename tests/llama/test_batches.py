"""generate_batch() continues each prompt as it would be continued alone, whatever shares its batches.

The oracle is generate() and llama_cpp's create_completion(), one prompt at a time, and eval() and sample() by hand
where tokens of a prompt count as generated.
"""

from __future__ import annotations

import json
from contextlib import ExitStack

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import SkipConfig, UnsupportedModelError
from ffnskip_cpp.errors import ArgumentError
from support import tiny_models
from support.running import F32_CACHE, GREEDY, ours, perf, plain

pytestmark = pytest.mark.filterwarnings("ignore:skip. ")  # the values are not calibrated

N_LAYER = 8
N_TOKENS = 24
RNG = np.random.default_rng(5)
HEAD = RNG.integers(0, 250, 40).tolist()
TAILS = [RNG.integers(0, 250, n).tolist() for n in (4, 1, 9, 2, 25, 7, 12, 30, 3, 17)]
PROMPTS = {"apart": TAILS, "with a common beginning": [HEAD + tail for tail in TAILS]}
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
}
QUESTIONS = ["Herno Jotsen was born in", "Who was Herno Jotsen?", "The river", "Once", "Herno", "In the year"]


@pytest.fixture(scope="module")
def path(model_file):
    return model_file("llama", n_layer=N_LAYER)


@pytest.fixture
def open_model(path):
    """Opens models that the test need not close."""
    with ExitStack() as stack:
        yield lambda skip=None, file=path, **options: stack.enter_context(ours(file, skip, **{**F32_CACHE, **options}))


def alone(llm, prompt, n_tokens=N_TOKENS):
    """The tokens of a generation of its own, up to the end token."""
    llm.reset()
    tokens = list(llm.generate(prompt, temp=0.0, max_tokens=n_tokens))
    return tokens[: tokens.index(tiny_models.EOS)] if tiny_models.EOS in tokens else tokens


def tokens_of(completions):
    return [list(completion.tokens) for completion in completions]


# --- as each alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_texts_are_those_of_each_prompt_alone(open_model, name, prompts):
    llm = open_model(CONFIGS[name])
    expected = [alone(llm, prompt) for prompt in prompts]
    llm = open_model(CONFIGS[name])
    for _ in range(2):  # the second time in a context that has been used
        assert tokens_of(llm.generate_batch(prompts, temp=0.0, max_tokens=N_TOKENS)) == expected
    if CONFIGS[name] is None:
        assert llm._context.params.n_seq_max > 1 and not llm._context.has_callback
    else:
        dense = open_model(None)
        assert expected != [alone(dense, prompt) for prompt in prompts]


@pytest.mark.parametrize(
    "options", [{"n_batch": 16, "n_ubatch": 8}, {"n_ctx": 256}, {"n_batch": 4}, {"n_ubatch": 1}], ids=str
)
@pytest.mark.parametrize("n_parallel", [1, 3, 20])
def test_batches_and_room_are_no_matter(open_model, options, n_parallel):
    prompts = PROMPTS["with a common beginning"]
    llm = open_model(CONFIGS["layers"])
    expected = [alone(llm, prompt, 100) for prompt in prompts]
    llm = open_model(CONFIGS["layers"], **options)
    assert tokens_of(llm.generate_batch(prompts, temp=0.0, max_tokens=100, n_parallel=n_parallel)) == expected


@pytest.mark.parametrize(("kind", "options"), [("mamba", {}), ("post_norm", {"sliding_window": 24})])
def test_a_memory_that_cannot_be_shared_is_used_by_one_after_another(open_model, model_file, kind, options):
    llm = open_model(None, model_file(kind, **options), swa_full=False, n_ubatch=16)
    prompts = PROMPTS["with a common beginning"]
    expected = [alone(llm, prompt, 8) for prompt in prompts]
    assert tokens_of(llm.generate_batch(prompts, temp=0.0, max_tokens=8)) == expected
    assert llm._context.params.n_seq_max == 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("skip_prompts", [0, 20, 45])
def test_tokens_of_prompts_may_count_as_generated(open_model, name, skip_prompts):
    prompts, n = PROMPTS["with a common beginning"][:5], 8
    llm, expected = open_model(CONFIGS[name]), []
    for prompt in prompts:
        llm.reset()
        if skip_prompts:
            llm.eval(prompt[:skip_prompts])
        for token in prompt[skip_prompts:]:
            llm.eval([token], generated=True)
        tokens = []
        while len(tokens) < n:
            tokens.append(llm.sample(**GREEDY))
            llm.eval(tokens[-1:], generated=True)
        expected.append(tokens[: tokens.index(tiny_models.EOS)] if tiny_models.EOS in tokens else tokens)
    llm = open_model(CONFIGS[name])
    got = list(llm.generate_batch(prompts, temp=0.0, max_tokens=n, skip_prompts=skip_prompts))
    assert tokens_of(got) == expected


def test_tokens_that_come_from_a_row_that_may_skip_are_counted(open_model):
    llm = open_model(CONFIGS["layers"])  # a warm-up of 3
    prompts = [list(range(1, 12)), [1, 2]]
    for skip_prompts, expected in ((None, [6, 6]), (9, [8, 6]), (8, [9, 6]), (7, [10, 6]), (0, [10, 8])):
        got = list(llm.generate_batch(prompts, temp=0.0, max_tokens=10, skip_prompts=skip_prompts))
        assert all(len(completion.tokens) == 10 for completion in got)
        assert [completion.n_may_skip for completion in got] == expected


def test_what_prompts_begin_with_is_evaluated_once(open_model):
    llm = open_model(None)
    list(llm.generate_batch([[1, 1], [2]], max_tokens=1))  # what makes the context anew
    for prompts, n_shared in ((PROMPTS["with a common beginning"], 40), (TAILS, 0), ([HEAD, HEAD[:35]], 34)):
        before = perf(llm).n_p_eval + perf(llm).n_eval
        list(llm.generate_batch(prompts, max_tokens=1))
        n_evaluated = perf(llm).n_p_eval + perf(llm).n_eval - before
        assert n_evaluated == sum(map(len, prompts)) - n_shared * (len(prompts) - 1)


# --- as llama_cpp's completions --------------------------------------------------------------------------------------


def completed(llm, prompt, **arguments):
    choice = llm.create_completion(prompt, **arguments)["choices"][0]
    return choice["text"], choice["finish_reason"]


def test_texts_are_those_of_completions_of_llama_cpp(path, open_model):
    """Stop strings are several tokens, since each is a byte."""
    prompts = ["the", "größer ", "日本", "a b c d e f g", "x"]
    grammar = llama_cpp.LlamaGrammar.from_string("root ::= [a-fäöü日本] root", verbose=False)
    options = {"max_tokens": 40, "grammar": grammar}
    with plain(path, **F32_CACHE) as reference:
        whole = [completed(reference, prompt, temperature=0.0, **options)[0] for prompt in prompts]
        stop = [text[k : k + 2] for k, text in enumerate(whole[:3], 2)] + ["not there"]
        expected = [completed(reference, prompt, temperature=0.0, stop=stop, **options) for prompt in prompts]
    got = list(open_model(None).generate_batch(prompts, temp=0.0, stop=stop, **options))
    assert [(completion.text, completion.finish_reason) for completion in got] == expected
    assert {completion.finish_reason for completion in got} == {"stop", "length"}
    for completion in got:
        assert json.loads(json.dumps(completion.as_dict())) == {
            "text": completion.text,
            "tokens": list(completion.tokens),
            "finish_reason": completion.finish_reason,
            "n_may_skip": 0,
        }


@pytest.mark.parametrize(("max_tokens", "text"), [(3, "日"), (4, "日"), (6, "日本"), (9, "日本")])
def test_a_character_that_is_cut_is_left_out(open_model, max_tokens, text):
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "日本"', verbose=False)
    completion = next(iter(open_model(None).generate_batch(["the"], max_tokens=max_tokens, grammar=grammar)))
    assert completion.text == text and len(completion.tokens) == min(max_tokens, 6)
    assert completion.finish_reason == ("stop" if max_tokens > 6 else "length")


def test_texts_of_a_trained_model_end_as_completions_do(model_file):
    path = model_file("demo_float32")
    with plain(path, **F32_CACHE) as reference, ours(path, None, **F32_CACHE) as llm:
        expected = [completed(reference, prompt, temperature=0.0, max_tokens=60) for prompt in QUESTIONS]
        got = list(llm.generate_batch(QUESTIONS, temp=0.0, max_tokens=60))
        assert [(completion.text, completion.finish_reason) for completion in got] == expected
        end = expected[0][0][5:12]
        stopped = next(iter(llm.generate_batch(QUESTIONS, temp=0.0, max_tokens=60, stop=["nowhere", end])))
        assert stopped.text == expected[0][0][: expected[0][0].index(end)] and stopped.finish_reason == "stop"


@pytest.mark.parametrize(
    "sampling", [{"temp": 1.0}, {"temp": 0.7, "repeat_penalty": 1.3}, {"temp": 1.0, "mirostat_mode": 2}], ids=str
)
def test_samples_are_those_of_each_prompt_alone(path, open_model, sampling):
    prompts = ["the", "a", "the", "weather", "in", "the", "north"]
    given = {("temperature" if name == "temp" else name): value for name, value in sampling.items()}
    options = {"max_tokens": 20, "grammar": llama_cpp.LlamaGrammar.from_string("root ::= [a-z ]+", verbose=False)}
    with plain(path, **F32_CACHE) as reference:
        expected = [completed(reference, prompt, seed=7, **given, **options) for prompt in prompts]
    llm = open_model(None, seed=7)
    for seed in ({"seed": 7}, {}):
        got = list(llm.generate_batch(prompts, n_parallel=3, **seed, **sampling, **options))
        assert [(completion.text, completion.finish_reason) for completion in got] == expected
    other = list(llm.generate_batch(prompts, seed=8, **sampling, **options))
    assert [completion.text for completion in other] != [text for text, _ in expected]


def test_each_text_has_the_grammar_to_itself(open_model):
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "ab" [0-9] [0-9] "."', verbose=False)
    got = list(open_model(None).generate_batch(TAILS, max_tokens=20, n_parallel=2, grammar=grammar))
    for completion in got:
        assert completion.text[:2] == "ab" and completion.text[2:4].isdigit() and completion.text[4:] == "."
        assert completion.finish_reason == "stop" and len(completion.tokens) == 5


@pytest.mark.parametrize(("max_tokens", "expected"), [(0, [0, 0, 0]), (1, [1, 1, 1]), (None, [1, 7, 254])])
def test_texts_end_with_max_tokens_and_with_the_context(open_model, max_tokens, expected):
    """Which has a cell for each token but the last."""
    endless = llama_cpp.LlamaGrammar.from_string("root ::= [a-z] root", verbose=False)
    prompts = [[1] * 256, [1] * 250, [1] * 3]
    got = list(open_model(None, n_ctx=256).generate_batch(prompts, max_tokens=max_tokens, grammar=endless))
    assert [len(completion.tokens) for completion in got] == [len(completion.text) for completion in got] == expected
    assert {completion.finish_reason for completion in got} == {"length"}


# --- the Llama around it ---------------------------------------------------------------------------------------------


def test_it_may_be_left_and_the_model_goes_on(open_model):
    llm, fresh = open_model(CONFIGS["ffn_skip"]), open_model(CONFIGS["ffn_skip"])
    for prompts in PROMPTS.values():
        completions = llm.generate_batch(prompts, temp=0.0)
        next(completions)
        completions.close()
        assert llm.n_tokens == 0
        assert alone(llm, TAILS[2]) == alone(fresh, TAILS[2])
        score, expected = (model.score(TAILS[0], TAILS[1:5]) for model in (llm, fresh))
        np.testing.assert_allclose(score.log_likelihood, expected.log_likelihood, rtol=1e-4)


USES = {
    "eval": lambda llm, state: llm.eval([1, 2, 3]),
    "eval and reset": lambda llm, state: (llm.eval([1, 2, 3]), llm.reset()),
    "generate": lambda llm, state: next(llm.generate([1, 2, 3])),
    "forward": lambda llm, state: llm.forward([1, 2, 3]),
    "score": lambda llm, state: llm.score([1], [[2]]),
    "another": lambda llm, state: next(iter(llm.generate_batch([[1], [2]], max_tokens=2))),
    "skip": lambda llm, state: setattr(llm, "skip", CONFIGS["ffn_skip"]),  # which makes the context anew
    "load_state": lambda llm, state: llm.load_state(state),
}


@pytest.mark.parametrize(
    ("use", "options"), [*((use, {}) for use in USES), *((use, {"n_ubatch": 1}) for use in USES if use != "skip")]
)
@pytest.mark.parametrize("max_tokens", [2, 5])
def test_what_another_use_has_ended_says_so(open_model, use, options, max_tokens):
    llm, prompts = open_model(None, **options), PROMPTS["with a common beginning"]
    llm.eval([1, 2, 3])
    state = llm.save_state()
    completions = llm.generate_batch(prompts, temp=0.0, max_tokens=max_tokens, n_parallel=1)
    next(completions)
    USES[use](llm, state)
    with pytest.raises(RuntimeError, match="used for something else"):
        list(completions)


def test_a_generation_before_it_has_ended(open_model):
    llm = open_model(None)
    generation = llm.generate([1, 2, 3])
    next(generation)
    list(llm.generate_batch([[1], [2]], max_tokens=2))
    with pytest.raises(RuntimeError, match="began on this Llama"):
        next(generation)


def test_a_closed_model_says_so(open_model):
    llm = open_model(None)
    completions = llm.generate_batch(TAILS, n_parallel=2)
    next(completions)
    llm.close()
    with pytest.raises(RuntimeError, match="the model is closed"):
        next(completions)
    with pytest.raises(RuntimeError, match="the model is closed"):
        llm.generate_batch(TAILS)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], [2] * 257, []], r"prompts\[1\]: it has 257 tokens; 1 to n_ctx=256"),
        ([[1], [2], []], r"prompts\[2\]: it has no tokens"),
        ([[1], [2, 259]], r"prompts\[1\]: ids must be in \[0, 259\); got 2 to 259"),
    ],
)
def test_a_prompt_that_cannot_be_gone_on_from_is_named(open_model, prompts, message):
    llm = open_model(CONFIGS["layers"], n_ctx=256)
    llm.eval([1, 2, 3])
    with pytest.raises(ValueError, match=message):
        llm.generate_batch(prompts)
    assert list(llm.eval_tokens) == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_tokens": -1}, ArgumentError, "max_tokens: -1 is negative"),
        ({"skip_prompts": -1}, ArgumentError, "skip_prompts: -1 is negative"),
        ({"n_parallel": 0}, ArgumentError, r"n_parallel: 0 is outside \[1, 255\]"),
        ({"n_parallel": 256}, ArgumentError, "n_parallel: 256 is outside"),
        ({"seed": 2**32}, ArgumentError, r"seed: 4294967296 is outside \[0, 2\*\*32\)"),
        ({"stop": [""]}, ArgumentError, "stop: an empty string"),
        ({"stop": "\n"}, TypeError, "stop: .* is one string; give a list"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens: 1.5 is no whole number"),
        ({"temperature": 0.0}, TypeError, "no option 'temperature'; use temp"),
        ({"reset": False}, TypeError, "generate_batch.. has no option 'reset'"),
        ({"logits_processor": None}, TypeError, "has no option 'logits_processor'; generate.. has it"),
    ],
    ids=str,
)
def test_arguments_that_are_wrong_are_refused_at_once(open_model, arguments, error, message):
    with pytest.raises(error, match=message):
        open_model(None).generate_batch([[1]], **arguments)


def test_one_text_is_no_list_of_texts_and_no_text_is_no_work(open_model):
    llm = open_model(None)
    with pytest.raises(TypeError, match="prompts: 'the' is one text"):
        llm.generate_batch("the")
    assert list(llm.generate_batch([])) == []


def test_an_embedding_context_generates_nothing(open_model):
    with pytest.raises(UnsupportedModelError, match="embedding"):
        list(open_model(None, embedding=True).generate_batch(["the"]))
