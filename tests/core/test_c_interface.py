"""Property: a C program on the installed package generates what Python does, and skips the same blocks.

The program is examples/c/generate.c, compiled as strict C99. Every single function and refusal: tests/c/test_c_api.c.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from pathlib import Path

import llama_cpp
import pytest

import ffnskip_cpp
from ffnskip_cpp import SkipConfig
from support.running import ours

EXAMPLE = Path(__file__).parents[2] / "examples" / "c" / "generate.c"
STRICT = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1"]
PROMPT, N_TOKENS = "Herno Jotsen", 48


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    site = Path(ffnskip_cpp.cmake_prefix())
    ffnskip, llama = site / "ffnskip_cpp", Path(llama_cpp.__file__).parent
    to = tmp_path_factory.mktemp("c") / "generate"
    includes = [f"-I{ffnskip}/include", "-isystem", f"{llama.parent}/include"]
    libraries = [f"-L{ffnskip}/lib", f"-L{llama}/lib", "-lffnskip", "-lllama", "-lggml", "-lggml-base"]
    rpaths = [f"-Wl,-rpath,{ffnskip}/lib", f"-Wl,-rpath,{llama}/lib"]
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, *STRICT, *includes, str(EXAMPLE), "-o", str(to), *libraries, *rpaths], check=True)
    return to


def run(program, model):
    command = [program, model, PROMPT, str(N_TOKENS)]
    result = subprocess.run(command, capture_output=True, check=True)
    errors = result.stderr.decode()
    counts, per_layer = re.search(r"^(tokens .*)\nper layer:(.*)$", errors, re.M).groups()
    numbers = [int(number) for number in re.findall(r"\d+", counts)]
    return result.stdout, numbers, [int(number) for number in per_layer.split()], errors


@pytest.mark.filterwarnings("ignore:skip. ffn_skip")  # the values are not calibrated
@pytest.mark.parametrize(("kind", "skip"), [("demo", "auto"), ("llama", SkipConfig(skip_ratio=0.1))])
def test_text_and_statistics_are_those_of_python(program, model_file, kind, skip):
    model = model_file(kind)
    with ours(model, skip, n_threads=4, n_threads_batch=4) as llm:  # as many as llama.cpp takes by itself
        tokens = llm.tokenize(PROMPT.encode(), special=True)
        text = b""
        for token in itertools.islice(llm.generate(tokens, temp=0.0, repeat_penalty=1.0), N_TOKENS):
            if token == llm.token_eos():
                break
            text += llm.detokenize([token], [*tokens, token])
        stats = llm.stats
    said, numbers, per_layer, _ = run(program, model)
    assert said == text + b"\n"
    assert numbers == [stats.tokens, stats.ffn_total, stats.ffn_skipped, stats.checks]
    assert per_layer == list(stats.skipped_per_layer)
    assert stats.ffn_skipped > 0


def test_a_model_without_ffn_blocks_runs_dense_and_says_so(program, model_file):
    said, numbers, _, errors = run(program, model_file("mamba"))
    assert said and numbers[2] == 0
    assert "has no FFN block that can be skipped; it runs dense" in errors
