"""Bad input is refused with an exception that says what is wrong, and the object works on.

Where llama.cpp would bring the process down, the test would not end with a failure but with a signal.
"""

from __future__ import annotations

import gc
import itertools
import re
import sys
from contextlib import closing

import gguf
import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import Llama, SkipConfig, Unsupported
from ffnskip_cpp.benchmark.random_model import random_model
from ffnskip_cpp.benchmark.shapes import Shape
from support import tiny_models

OPTIONS = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "seed": 11, "verbose": False}
EAGER = SkipConfig(sim_threshold=0.85, warm_up_index=0, max_skip=4)
PROMPT = [104, 101, 108, 108, 111]
MESSAGES = [{"role": "user", "content": "the weather?"}]


def take(generation, n):
    return list(itertools.islice(generation, n))


@pytest.fixture(scope="module")
def path(model_file):
    return str(model_file("llama", n_layer=12))


@pytest.fixture
def llm(path):
    with closing(Llama(path, skip=EAGER, **OPTIONS)) as llm:
        yield llm


@pytest.fixture
def works(llm):
    """Says whether the object still generates what a new one does."""
    expected = take(llm.generate(PROMPT, temp=0.0), 20)
    llm.reset()
    return lambda: take(llm.generate(PROMPT, temp=0.0), 20) == expected


# --- model files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", ["auto", None, 0.25], ids=str)
def test_a_file_that_does_not_exist_is_named(tmp_path, skip):
    with pytest.raises(ValueError, match=r"does not exist.*nothing\.gguf"):
        Llama(tmp_path / "nothing.gguf", skip=skip, **OPTIONS)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, path, share):
    with open(path, "rb") as file:
        data = file.read()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"cut\.gguf.*(truncated|not a GGUF file|is corrupted or incomplete)"):
        Llama(cut, **OPTIONS)


def test_a_file_of_another_kind_is_said_to_be_no_gguf(tmp_path):
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(ValueError, match=r"not a GGUF file \(it starts with b'PK\\x03\\x04'\)"):
        Llama(other, **OPTIONS)


def test_text_for_a_model_without_a_vocabulary_is_refused():
    shape = Shape("llama", 4, 64, 128, 2, 2, n_vocab=100, head_dim=32, n_ctx_train=128, rope_freq_base=1e4)
    with random_model(shape, "f16") as path, closing(Llama(path, skip=None, **{**OPTIONS, "n_ctx": 64})) as llm:
        for use in (lambda: llm.tokenize(b"text"), lambda: llm.generate("text"), lambda: llm.detokenize([5])):
            with pytest.raises(ValueError, match="no vocabulary"):
                use()
        assert llm.forward([5, 6]).shape == (2, 100)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a directory, not a GGUF file"):
        Llama(tmp_path, **OPTIONS)


def test_an_architecture_unknown_to_llama_cpp_is_refused(tmp_path):
    tiny_models.TinyModel(tmp_path / "model.gguf", "no-such-architecture", n_layer=2).save()
    with pytest.raises(ValueError, match=r"model\.gguf: unknown model architecture: 'no-such-architecture'"):
        Llama(tmp_path / "model.gguf", **OPTIONS)


def test_something_that_is_no_path_is_refused():
    with pytest.raises(TypeError):
        Llama(7, **OPTIONS)


def test_an_unknown_option_is_refused_or_ignored_as_in_llama_cpp(path):
    with closing(llama_cpp.Llama(path, no_such_option=1, **OPTIONS)), closing(Llama(path, no_such_option=1, **OPTIONS)):
        pass


def test_a_lora_file_that_does_not_exist_is_refused(path, tmp_path):
    with pytest.raises(RuntimeError, match="LoRA"):
        Llama(path, lora_path=str(tmp_path / "nothing.gguf"), **OPTIONS)


# --- models without an FFN to skip -----------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [0.25, EAGER], ids=str)
@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [("mamba", {}, "mamba"), ("bert", {"embedding": True}, "embedding"), ("llama", {"embedding": True}, "embedding")],
)
def test_skipping_is_refused_where_there_is_nothing_to_skip(model_file, kind, options, name, skip):
    with pytest.raises(Unsupported, match=name):
        Llama(model_file(kind), skip=skip, **options, **OPTIONS)


@pytest.mark.parametrize("skip", [None, "auto", SkipConfig(policy="dense", warm_up_index=3)], ids=str)
def test_a_recurrent_model_runs_dense_and_refuses_to_skip_later(model_file, skip):
    with closing(Llama(model_file("mamba"), skip=skip, **OPTIONS)) as llm:
        expected = take(llm.generate(PROMPT), 10)
        with pytest.raises(Unsupported, match="architecture 'mamba'"):
            llm.skip = 0.25
        assert llm.skip is None
        assert take(llm.generate(PROMPT), 10) == expected


@pytest.mark.parametrize("skip", [None, "auto"])
def test_an_embedding_model_embeds_and_refuses_to_skip_later(model_file, skip):
    with closing(Llama(model_file("bert"), skip=skip, embedding=True, **OPTIONS)) as llm:
        expected = llm.embed("text")
        with pytest.raises(Unsupported, match="embedding context"):
            llm.skip = 0.25
        assert llm.embed("text") == expected
        assert (llm.skip, llm.stats.tokens) == (None, 0)


@pytest.mark.parametrize(("n_layer", "message"), [(1, "no FFN block"), (2, "leaves no adaptive region")])
def test_a_model_with_too_few_layers_for_an_adaptive_region_runs_dense(model_file, n_layer, message):
    file = model_file("llama", n_layer=n_layer)
    with pytest.raises(ValueError, match=message):
        Llama(file, skip=EAGER, **OPTIONS)
    for skip in (None, "auto"):
        with closing(Llama(file, skip=skip, **OPTIONS)) as llm:
            assert llm.skip is None
            assert len(take(llm.generate(PROMPT), 5)) == 5


# --- SkipConfig ------------------------------------------------------------------------------------------------------

WRONG_FOR_ANY_MODEL = [
    ({"cold_s": 5, "cold_e": 5}, "cold_s: 5 must be below cold_e = 5"),
    ({"cold_s": 6, "cold_e": 5}, "cold_s: 6 must be below cold_e = 5"),
    ({"cold_s": -1}, "cold_s: -1 is negative"),
    ({"sim_threshold": float("nan")}, "sim_threshold: nan"),
    ({"skip_ratio": -0.01}, r"skip_ratio: -0.01 is outside \[0, 1\]"),
    ({"skip_ratio": 1.01}, r"skip_ratio: 1.01 is outside \[0, 1\]"),
    ({"skip_ratio": float("nan")}, r"skip_ratio: nan is outside \[0, 1\]"),
    ({"max_skip": -1}, "max_skip: -1 is negative"),
    ({"warm_up_index": -1}, "warm_up_index: -1 is negative"),
    ({"seed": -1}, "seed: -1 is not a whole number in"),
    ({"max_skip": 2**40}, "max_skip: 1099511627776 is not a whole number below"),
    ({"policy": "nothing"}, "policy: 'nothing' is unknown; known are dense, ffn_skip"),
    ({"policy": "fixed"}, "layers: the list is empty"),
    ({"policy": "nothing"}, "known are .*, short_gpt"),
    (
        {"policy": "short_gpt", "layers": [5], "attention_layers": [6]},
        "attention_layers: policy 'short_gpt' leaves out whole layers",
    ),
    ({"policy": "short_gpt"}, "layers: policy 'short_gpt' leaves out these, and none are named"),
    ({"policy": "channels", "check_interval": 2}, "check_interval: policy 'channels' has no use for it"),
    ({"budget_decay": 64}, "budget_decay: only policy 'skip_decode' takes it, not 'ffn_skip'"),
    ({"policy": "random", "layers": [1]}, "layers: only policies 'ffn_skip' and 'channels' take layers, not 'random'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_FOR_ANY_MODEL, ids=str)
def test_a_value_that_fits_no_model_is_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        SkipConfig(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"policy": 1}, {"cold_s": 1.5}, {"skip_ratio": "high"}, {"layers": 3}],
    ids=str,
)
def test_a_value_of_another_type_is_refused(arguments):
    with pytest.raises(TypeError):
        SkipConfig(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cold_e": 12}, "cold_e: 12 is past 11; the last of the 12 layers always runs"),
        ({"cold_e": 100}, "cold_e: 100 is past 11"),
        ({"cold_s": 10}, "cold_s: 10 leaves no adaptive region below cold_e = 10 in a model of 12 layers"),
        ({"max_skip": 8}, r"max_skip: 8 is too many; policy 'ffn_skip' over layers \[2, 10\) can skip at most 7 of 12"),
        ({"skip_ratio": 1.0}, "skip_ratio: 1 asks for 12; .* can skip at most 7 of 12"),
        ({"policy": "random", "max_skip": 12}, r"max_skip: 12 .* over layers \[0, 11\) can skip at most 11 of 12"),
        ({"policy": "random_adaptive_region", "max_skip": 9}, "max_skip: 9 .* can skip at most 8 of 12"),
        ({"policy": "fixed", "layers": [11]}, r"layers: 11 is out of range; .* \[0, 10\]"),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_the_model_is_refused_and_the_old_one_stays(path, llm, works, arguments, message):
    config = SkipConfig(**arguments)
    with pytest.raises(ValueError, match=message):
        Llama(path, skip=config, **OPTIONS)
    with pytest.raises(ValueError, match=message):
        llm.skip = config
    assert llm.skip == EAGER
    assert works()


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_ratio_outside_0_to_1_is_refused(path, ratio):
    with pytest.raises(ValueError, match=r"skip_ratio: .* is outside \[0, 1\]"):
        Llama(path, skip=ratio, **OPTIONS)


@pytest.mark.parametrize("skip", ["max", b"auto", [0.25], {}, True], ids=str)
def test_a_skip_of_no_known_kind_is_refused(path, skip):
    with pytest.raises(ValueError, match=f"skip: {re.escape(repr(skip))} is not"):
        Llama(path, skip=skip, **OPTIONS)


# --- hidden states that are no numbers -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken_file(model_file, tmp_path_factory):
    """broken_file(value, layer): the model with one weight of a layer's FFN output set to `value`."""
    original = model_file("llama", n_layer=12)
    folder = tmp_path_factory.mktemp("broken")

    def write(value, layer):
        reader = gguf.GGUFReader(original)
        (tensor,) = (t for t in reader.tensors if t.name == f"blk.{layer}.ffn_down.weight")
        data = bytearray(original.read_bytes())
        np.frombuffer(data, np.float32, 8, tensor.data_offset)[:] = value
        path = folder / f"{value}-{layer}.gguf"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_hidden_state_that_is_not_finite_never_trips(broken_file, value):
    """The cosine is NaN from there on: no block after it is skipped, and the logits are those of llama.cpp."""
    file, n = broken_file(value, layer=4), 12
    config = SkipConfig(sim_threshold=-1.0, cold_s=4, cold_e=10, warm_up_index=0, max_skip=5)
    with closing(Llama(file, skip=config, **OPTIONS)) as llm:
        tokens = list(range(97, 97 + n))
        with llm.trace() as trace:
            logits = llm.forward(tokens)
        assert np.isnan(trace.similarity).all()
        assert not trace.skipped.any()
        assert (llm.stats.ffn_skipped, llm.stats.checks, llm.stats.tokens_never_tripped) == (0, 6 * n, n)
        with llm.dense():
            assert logits.tobytes() == llm.forward(tokens).tobytes()


def test_a_model_whose_logits_are_not_numbers_generates_what_llama_cpp_does(broken_file):
    file = str(broken_file(float("nan"), layer=4))
    with closing(llama_cpp.Llama(file, **OPTIONS)) as plain, closing(Llama(file, skip=EAGER, **OPTIONS)) as llm:
        expected = take(plain.generate(PROMPT, temp=0.0), 5)
        assert take(llm.generate(PROMPT, temp=0.0), 5) == expected


# --- prompts and the context -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", []], ids=["text", "tokens"])
def test_an_empty_prompt_is_refused(llm, works, prompt):
    with pytest.raises(ValueError, match="the prompt is empty"):
        llm.generate(prompt)
    assert works()


@pytest.mark.parametrize("prompt", ["a" * 257, [97] * 257], ids=["text", "tokens"])
def test_a_prompt_beyond_the_context_is_refused(llm, works, prompt):
    with pytest.raises(ValueError, match="the prompt has 257 tokens, more than n_ctx=256"):
        llm.generate(prompt)
    assert works()


def test_an_empty_prompt_goes_on_only_from_a_context(llm):
    with pytest.raises(ValueError, match="the prompt is empty"):
        llm.generate([], reset=False)


@pytest.mark.parametrize("max_tokens", [-1, -5])
def test_negative_max_tokens_are_refused(llm, works, max_tokens):
    for prompt in ("text", PROMPT):
        with pytest.raises(ValueError, match=f"max_tokens: {max_tokens} is negative"):
            llm.generate(prompt, max_tokens=max_tokens)
    assert works()


@pytest.mark.parametrize("max_tokens", [float("nan"), float("inf"), 2.5, "3"])
def test_max_tokens_that_are_no_whole_number_are_refused(llm, works, max_tokens):
    for prompt in ("text", PROMPT):
        with pytest.raises(TypeError, match=f"max_tokens: {max_tokens!r} is no whole number"):
            llm.generate(prompt, max_tokens=max_tokens)
    assert works()


@pytest.mark.parametrize("prompt", [None, 7, [1.5], ["1", "2"], [b"1"], [None]], ids=str)
def test_a_prompt_that_is_neither_text_nor_tokens_is_refused(llm, works, prompt):
    with pytest.raises((TypeError, ValueError)):
        llm.generate(prompt)
    assert works()


@pytest.mark.parametrize("token", [-1, tiny_models.N_VOCAB, 2**30])
def test_a_token_id_out_of_range_is_refused(llm, works, token):
    with pytest.raises(RuntimeError, match="llama_decode returned -1: the batch is invalid"):
        next(llm.generate([97, token]))
    assert works()


@pytest.mark.parametrize("token", [-1, tiny_models.N_VOCAB, 2**40])
def test_no_text_is_made_of_what_is_no_token(llm, works, token):
    with pytest.raises(ValueError, match=f"got {token}"):
        llm.detokenize([97, token])
    assert works()


def test_a_full_context_is_named_and_the_object_works_on(llm, works):
    llm.eval([97] * 250)
    with pytest.raises(RuntimeError, match=r"the context is full.*n_ctx=256"):
        llm.eval([97] * 7)
    assert llm.n_tokens == 250
    llm.eval([97] * 6)
    with pytest.raises(RuntimeError, match=r"the context is full.*n_ctx=256"):
        llm.eval([llm.sample()])
    assert works()


def test_a_completion_beyond_the_context_is_refused_as_in_llama_cpp(llm, works):
    with pytest.raises(ValueError, match=r"Requested tokens \(256\) exceed context window of 256"):
        llm("a" * 256)
    assert works()


# --- Python that fails in the middle ---------------------------------------------------------------------------------


class Failure(Exception):
    pass


def failing_after(n):
    """A logits processor that raises at token n."""
    calls = itertools.count()

    def process(input_ids, scores):
        if next(calls) == n:
            raise Failure("by the user")
        return scores

    return llama_cpp.LogitsProcessorList([lambda input_ids, scores: scores, process])


@pytest.mark.parametrize("n", [0, 1, 6])
def test_an_exception_of_a_logits_processor_reaches_the_caller(llm, works, capfd, n):
    generation = llm.generate(PROMPT, logits_processor=failing_after(n))
    assert len(take(generation, n)) == n
    with pytest.raises(Failure, match="by the user"):
        next(generation)
    with pytest.raises(StopIteration):
        next(generation)
    assert "Exception ignored" not in capfd.readouterr().err
    assert works()


@pytest.mark.parametrize(
    "call",
    [
        lambda llm, processors: llm("text", logits_processor=processors),
        lambda llm, processors: list(llm("text", logits_processor=processors, stream=True)),
        lambda llm, processors: list(llm.generate("text", logits_processor=processors)),
        lambda llm, processors: llm.create_chat_completion(MESSAGES, logits_processor=processors),
    ],
    ids=["completion", "stream", "text", "chat"],
)
def test_an_exception_of_a_logits_processor_passes_through_completions(llm, works, call):
    with pytest.raises(Failure, match="by the user"):
        call(llm, failing_after(1))
    assert works()


def test_no_logits_processor_is_called_after_one_failed(llm):
    later = []
    processors = failing_after(0)
    processors.append(lambda input_ids, scores: later.append(1) or scores)
    with pytest.raises(Failure):
        next(llm.generate(PROMPT, logits_processor=processors))
    assert not later


def test_a_keyboard_interrupt_in_a_logits_processor_reaches_the_caller(llm, works):
    def interrupted(input_ids, scores):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(llm.generate(PROMPT, logits_processor=llama_cpp.LogitsProcessorList([interrupted])))
    assert works()


def test_a_logits_processor_that_returns_another_shape_is_refused(llm, works):
    processors = llama_cpp.LogitsProcessorList([lambda input_ids, scores: scores[:3]])
    with pytest.raises(ValueError, match="shape"):
        next(llm.generate(PROMPT, logits_processor=processors))
    assert works()


def test_an_exception_of_a_stopping_criterion_reaches_the_caller(llm, works):
    def failing(input_ids, logits):
        raise Failure

    with pytest.raises(Failure):
        next(llm.generate(PROMPT, stopping_criteria=llama_cpp.StoppingCriteriaList([failing])))
    assert works()


def test_an_exception_of_a_draft_model_reaches_the_caller(path):
    class Failing(llama_cpp.llama_speculative.LlamaDraftModel):
        def __call__(self, input_ids, /, **kwargs):
            raise Failure

    with closing(Llama(path, skip=EAGER, draft_model=Failing(), **OPTIONS)) as llm:
        generation = llm.generate(PROMPT, temp=0.0)
        next(generation)
        with pytest.raises(Failure):
            next(generation)
        assert next(llm.generate(PROMPT, temp=0.0)) is not None


def test_a_grammar_that_cannot_be_parsed_is_refused(llm, works):
    grammar = llama_cpp.LlamaGrammar.from_string("root ::= (", verbose=False)
    for call in (llm, llm.generate):
        with pytest.raises(ValueError, match="grammar"):
            list(call("text", grammar=grammar))
    assert works()


def test_a_refused_argument_leaves_no_error_behind(path, monkeypatch):
    """`__del__` closes what was never opened."""
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with pytest.raises(TypeError):
        Llama(path, skip_ratio=0.25)
    with pytest.raises(ValueError):
        Llama(path, reuse="some")
    gc.collect()
    assert not unraisable
