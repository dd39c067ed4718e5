"""What `--model_args` and `generation_kwargs` mean to the harness's model class `ffnskip`."""

from __future__ import annotations

import pytest

from ffnskip_cpp import SkipConfig
from ffnskip_cpp.errors import ArgumentError

arguments = pytest.importorskip("ffnskip_cpp.harness.arguments")


def opened(path, **options):
    from ffnskip_cpp.harness import FfnSkipLM

    return FfnSkipLM(str(path), **{"threads": 1, **options})


# ---- model_args ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_ration": 0.5}, "'skip_ration' is not known; did you mean skip_ratio?"),
        ({"max_lenght": 10}, "'max_lenght' is not known; did you mean max_length?"),
        ({"xyzzy": 1}, "'xyzzy' is not known: see docs/harness.md"),
        ({"skip": 0.5, "skip_ratio": 0.25}, "skip: 0.5 says what is skipped, and so does skip_ratio"),
        ({"skip": "random", "policy": "ffn_skip"}, "skip: 'random' says what is skipped, and so does policy"),
        ({"profile": "a.gguf", "warm_up_index": 3}, "profile: a.gguf says what is skipped, and so does warm_up_index"),
        ({"profile": "a.gguf", "skip": "random"}, "profile: a.gguf says what is skipped, and so does skip"),
        ({"skip_prompts": -1}, "skip_prompts: -1 is no number of tokens; 0 or more"),
        ({"batch_size": 0}, "batch_size: 0 is no number of texts; 1 to 255, or auto"),
        ({"batch_size": 256}, "batch_size: 256 is no number of texts"),
        ({"batch_size": "many"}, "batch_size: 'many' is no number of texts"),
        ({"device": "cuda:1"}, "device: 'cuda:1' can't be chosen; cpu, cuda"),
        ({"threads": 0}, "threads: 0 can't compute anything"),
        ({"max_length": 0}, "max_length: 0 is no number of tokens; 1 or more"),
        ({"max_length": 300, "n_ctx": 256}, "max_length: 300 tokens do not fit n_ctx=256"),
        ({"layers": "3"}, "model_args: layers"),
    ],
)
def test_wrong_arguments_are_refused(options, message, model_file):
    with pytest.raises(ArgumentError) as error:
        opened(model_file("llama"), **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"skip": 0.5}, SkipConfig(skip_ratio=0.5)),
        ({"skip": "channels"}, SkipConfig(policy="channels")),
        ({"skip": "random", "skip_ratio": 0.5, "seed": 7}, SkipConfig(policy="random", skip_ratio=0.5, seed=7)),
        ({"skip": 0.5, "sim_threshold": 0.99}, SkipConfig(skip_ratio=0.5, sim_threshold=0.99)),
        ({"layers": [1], "max_skip": 0, "warm_up_index": 2}, SkipConfig(layers=[1], max_skip=0, warm_up_index=2)),
        ({"skip": "dense"}, None),
        ({}, None),  # no profile beside the model
    ],
)
@pytest.mark.filterwarnings("ignore:skip")
def test_what_is_skipped_is_said_as_for_llama(options, expected, model_file):
    lm = opened(model_file("llama"), **options)
    assert lm.llm.skip == expected


def test_sizes_and_batches(model_file):
    path = model_file("llama", n_ctx=300)
    assert opened(path).max_length == 300
    assert opened(path, n_ctx=512).max_length == 512
    lm = opened(path, n_ctx=512, max_length=64, batch_size="auto")
    assert (lm.max_length, lm.llm.n_ctx(), lm.batch_size) == (64, 512, 8)
    assert opened(path, batch_size="auto:4", max_batch_size=3).batch_size == 3


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ({}, {"temp": 0.0}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.5}, {"temp": 0.0}),
        ({"temperature": 0.7}, {"temp": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0}),
        ({"do_sample": True, "top_p": 0.5, "top_k": 3}, {"temp": 1.0, "top_k": 3, "top_p": 0.5, "min_p": 0.0}),
        ({"repetition_penalty": 1.1}, {"temp": 0.0, "repeat_penalty": 1.1}),
    ],
)
def test_generation_kwargs_are_llama_cpps(given, sampling):
    way = arguments.generation_of(given, 256, "<end>")
    assert {name: way.sampling[name] for name in sampling} == sampling
    assert (way.max_tokens, way.stop) == (256, ("<end>",))


def test_generation_kwargs_that_no_sampler_has_are_refused():
    with pytest.raises(ArgumentError, match=r"generation_kwargs: num_beams=10 is not known; there are temperature"):
        arguments.generation_of({"num_beams": 10}, 256, "")
    assert arguments.generation_of({"until": "a", "max_new_tokens": 7}, 256, "") == arguments.generation_of(
        {"until": ["a", ""], "max_gen_toks": 7}, 256, ""
    )
