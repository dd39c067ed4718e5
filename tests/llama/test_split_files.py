"""A model in several files (-00001-of-0000N) is the same model in every way in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

import ffnskip_cpp
from ffnskip_cpp import SkipConfig, cli
from ffnskip_cpp.gguf_file.quantization import quantize
from ffnskip_cpp.inspection.inspection import inspect
from support.running import ours, split

SETTINGS = ["--sim-threshold", "-1", "--warm-up", "0"]
CONFIG = SkipConfig(sim_threshold=-1.0, warm_up_index=0)


@pytest.fixture(scope="module")
def whole(model_file):
    return model_file("llama")


@pytest.fixture(scope="module")
def first_part(whole, tmp_path_factory):
    """The model in files of 50 tensors, llama-00001-of-00003.gguf and so on."""
    folder = tmp_path_factory.mktemp("split")
    parts = split(whole, folder / "llama.gguf")
    assert [part.name for part in parts] == [f"llama-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    return parts[0]


def python_tokens(path):
    with ours(path, CONFIG) as llm:
        assert llm.stats.tokens == 0
        tokens = list(llm.generate(list(b"abc"), max_tokens=30, temp=0.0, repeat_penalty=1.0))
        assert llm.stats.ffn_skipped > 0
    return tokens


def test_python(whole, first_part):
    assert python_tokens(first_part) == python_tokens(whole)


def test_ffnskip_main(whole, first_part):
    def text(path):
        program = shutil.which("ffnskip-main") or Path(sys.executable).with_name("ffnskip-main")
        command = [program, "-m", path, "-p", "abc", "-n", "30", "--temp", "0", *SETTINGS]
        return subprocess.run(command, capture_output=True, check=True).stdout

    assert text(first_part) == text(whole)


def test_ffnskip_run(client, whole, first_part):
    def tokens(path):
        command = [sys.executable, "-m", "ffnskip_cpp", "run", *SETTINGS, "--", client("greedy"), path, "30"]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout

    assert tokens(first_part) == tokens(whole)


def test_inspect(whole, first_part):
    split, single = inspect(first_part), inspect(whole)
    assert (split.model, single.model) == (first_part.name, whole.name)
    assert replace(split, model=whole.name) == single


def test_bench(first_part, capsys):
    command = ["bench", "-m", str(first_part), "-n", "2", "-r", "1", "-t", "1", "--skip-ratio", "0.25", "-o", "json"]
    assert cli.main(command) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[-1]["policy"] == "ffn_skip" and rows[-1]["skip_ratio"] == 0.25


def test_quantize(whole, first_part, tmp_path):
    files = [quantize(path, tmp_path / f"{i}.gguf", "q8_0") for i, path in enumerate([first_part, whole])]
    tensors = [{t.name: t.data.tobytes() for t in gguf.GGUFReader(str(file)).tensors} for file in files]
    assert tensors[0] == tensors[1]


def test_a_part_that_is_missing_is_an_error_not_a_smaller_model(first_part, tmp_path):
    part = shutil.copy(first_part, tmp_path)
    with pytest.raises(ValueError):
        ffnskip_cpp.Llama(str(part), verbose=False)
    assert cli.main(["inspect", str(part)]) == 1
