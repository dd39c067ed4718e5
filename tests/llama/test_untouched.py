"""A model without a profile and untouched by any option: every way in gives what llama.cpp gives, and says why.

FFNSKIP_MODELS names models of yours to try it on as well, separated as in PATH.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path

import llama_cpp
import pytest

import ffnskip_cpp

PROMPT = "The capital of France is"
N_TOKENS = 150  # well past the warm-up
NOTHING = "nothing is skipped"
GIVEN = [path for path in os.environ.get("FFNSKIP_MODELS", "").split(os.pathsep) if path]
OPTIONS = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
MAIN = Path(sys.executable).with_name("ffnskip-main")


@pytest.fixture(scope="module", params=["made for the test", *GIVEN])
def model(request, model_file):
    return str(model_file("llama", n_layer=12)) if request.param == "made for the test" else request.param


def run(*words):
    return subprocess.run([str(word) for word in words], capture_output=True, timeout=600)


def generated(kind, path):
    with contextlib.closing(kind(path, **OPTIONS)) as llm:
        prompt = llm.tokenize(PROMPT.encode())
        tokens = list(itertools.islice(llm.generate(prompt, temp=0.0), N_TOKENS))
        answer = llm.create_completion(PROMPT, max_tokens=N_TOKENS, temperature=0.0)["choices"]
        return tokens, answer


def test_python(model, caplog):
    with caplog.at_level(logging.INFO, logger="ffnskip_cpp"):
        assert generated(ffnskip_cpp.Llama, model) == generated(llama_cpp.Llama, model)
    assert [NOTHING in record.message for record in caplog.records] == [True]


def test_ffnskip_main(model):
    arguments = ("-m", model, "-p", PROMPT, "-n", N_TOKENS, "-t", 1, "-c", 512, "--temp", 0, "--no-conversation")
    main = run(MAIN, *arguments, "--no-display-prompt", "-fa", "off")
    with contextlib.closing(llama_cpp.Llama(model, **OPTIONS)) as llm:
        tokens, ends = [], set()
        for token in itertools.islice(llm.generate(llm.tokenize(PROMPT.encode()), temp=0.0), N_TOKENS):
            if llama_cpp.llama_vocab_is_eog(llm._model.vocab, token):
                ends = {b"\n"}
                break
            tokens.append(token)
        expected = b"".join(llm.detokenize([token]) for token in tokens)
    assert main.returncode == 0, main.stderr
    assert main.stdout.decode("utf-8", "replace").rstrip("\n") == expected.decode("utf-8", "replace").rstrip("\n"), ends
    assert main.stderr.decode().count(NOTHING) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ffnskip run needs Linux")
def test_ffnskip_run(model, client):
    program = (client("greedy"), model, N_TOKENS)
    alone, under = run(*program), run(sys.executable, "-m", "ffnskip_cpp", "run", "--", *program)
    assert alone.returncode == under.returncode == 0, under.stderr
    assert under.stdout == alone.stdout
    assert under.stderr.decode().count(NOTHING) == 1
