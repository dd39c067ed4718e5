"""Skipping under the harness, and what is told of it; and the command."""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ffnskip_cpp import RowKind, SkipConfig
from support.running import F32_CACHE, ours

harness = pytest.importorskip("support.harness")

pytestmark = pytest.mark.filterwarnings("ignore:skip")  # settings that were not calibrated


# ---- skipping ----


def test_what_could_skip_is_told_by_task(models, caplog):
    """A row predicts the token after it: of a continuation of n tokens, n - 1 come from rows of generated tokens, and
    the first from the last row of the context."""
    mine = harness.ffnskip(models()[1], skip="random", skip_ratio=0.5, warm_up_index=0)
    words = " lamp bird yard"
    n = len(mine.tok_encode(words))
    with caplog.at_level("INFO", logger="lm_eval"):
        harness.answers(mine, "loglikelihood", ("the", words), ("the", "!"), task="words")
        harness.answers(mine, "loglikelihood", ("the", "!"), ("the", "?"), task="marks")
    assert mine.get_model_info()["ffnskip"]["tasks"] == {
        "words": {"n_scored": n + 1, "could_skip": (n - 1) / (n + 1)},
        "marks": {"n_scored": 2, "could_skip": 0.0},
    }
    assert "no token that figures hang on could skip: marks." in caplog.text
    assert (
        f"{100 * (n - 1) / (n + 3):.1f} % of the tokens that figures hang on could skip; skipped: 50.0 %" in caplog.text
    )


def test_with_skip_prompts_contexts_skip(models):
    """Next to the model itself, fed the tokens one by one."""
    path = models()[1]
    skip = SkipConfig(policy="random", skip_ratio=0.5, warm_up_index=1, seed=3)
    context, continuation = "the lamp in the yard is out", " and nobody sings"
    mine = harness.ffnskip(path, skip=skip, skip_prompts=2)
    ((found, _),) = harness.answers(mine, "loglikelihood", (context, continuation), task="words")
    before, after = mine._encode_pair(context, continuation)
    with ours(path, skip, **F32_CACHE) as llm:
        kinds = [RowKind.prompt] * 2 + [RowKind.warm_up] + [RowKind.skippable] * (len(before) + len(after) - 3)
        logits = llm.forward(before + after, kinds)[len(before) - 1 : -1].astype(np.float64)
    chosen = logits[np.arange(len(after)), after] - np.log(np.exp(logits).sum(axis=1))
    assert found == pytest.approx(chosen.sum(), abs=harness.TOLERANCE)
    assert mine.get_model_info()["ffnskip"]["tasks"]["words"]["could_skip"] == 1.0
    ((dense, _),) = harness.answers(harness.ffnskip(path), "loglikelihood", (context, continuation))
    assert abs(dense - found) > 0.1


def test_prompts_shorter_than_skip_prompts_run_in_full(models):
    path = models()[1]
    asked = [(text, {"max_gen_toks": 8}) for text in ("a", "the lamp in the yard")]
    skip = {"skip": "random", "skip_ratio": 0.5, "warm_up_index": 0}
    found = harness.answers(harness.ffnskip(path, skip_prompts=4, batch_size=2, **skip), "generate_until", *asked)
    in_full = harness.answers(harness.ffnskip(path, **skip), "generate_until", *asked)
    assert found[0] == in_full[0]
    assert found[1] != in_full[1]


# ---- the command ----


@pytest.fixture
def command(monkeypatch, tmp_path, capfd):
    """command(model_args, *options): exit status and output of the harness's command on the task "lamps"."""
    program = pytest.importorskip("ffnskip_cpp.harness.__main__")
    logger = logging.getLogger("lm_eval")
    for name, value in {"handlers": [], "propagate": True, "level": logger.level}.items():  # the command sets them
        monkeypatch.setattr(logger, name, value)
    monkeypatch.setattr("lm_eval.utils._LOGGING_CONFIGURED", False)
    folder = harness.write_tasks(tmp_path, harness.DOCUMENTS)
    # The thousands of tasks that come with it, and programs that describe the machine, take a minute.
    few = functools.partial(harness.TaskManager, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **given: few(include_path=str(folder)))
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)

    def run(model_args: str, *options: Any) -> tuple[int, str, str]:
        words = ["--model", "ffnskip", "--model_args", model_args, "--tasks", "lamps", *map(str, options)]
        monkeypatch.setattr(sys, "argv", ["lm-eval", *words])
        status = program.main()
        return (status, *capfd.readouterr())

    return run


def test_the_command_says_what_could_skip(command, models, tmp_path):
    arguments = f"pretrained={models()[1]},skip=random,skip_ratio=0.5,warm_up_index=0,skip_prompts=0,threads=1"
    status, out, err = command(arguments, "--output_path", tmp_path / "out", "--limit", 2, "--device", "cpu")
    assert status == 0
    assert "100.0 % of the tokens that figures hang on could skip; skipped: 50.0 %" in err
    assert "|lamps|" in out
    (written,) = (tmp_path / "out").rglob("results_*.json")
    told = json.loads(written.read_text(encoding="utf-8"))["config"]["ffnskip"]
    assert told["skip_ratio"] == 0.5
    assert told["tasks"]["lamps"]["could_skip"] == 1.0
    assert told["skip"]["policy"] == "random"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("pretrained={model},skip_ration=0.5", 2, "model_args: 'skip_ration' is not known; did you mean skip_ratio?"),
        ("pretrained={model},skip=random,layers=[1]", 2, "model_args: layers: only policies"),
        ("pretrained=missing.gguf", 1, "pretrained: missing.gguf: no such file"),
        ("pretrained={tasks}", 1, "lamps.yaml"),
        ("pretrained={model},profile=missing.gguf", 1, "missing.gguf"),
    ],
)
def test_what_is_wrong_with_the_model_is_one_line(arguments, status, message, command, models, tmp_path):
    found, _, err = command(arguments.format(model=models()[1], tasks=tmp_path / "lamps.yaml"))
    assert found == status
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("ffnskip: ") and message in last


def test_the_module_is_the_command_of_the_harness():
    words = [sys.executable, "-m", "ffnskip_cpp.harness", "run", "--help"]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0
    assert "--model_args" in ran.stdout


def test_the_harness_finds_the_class_by_its_entry_point():
    """As releases after 0.4.13 do, which keep the entry point in the place of the class until it is asked for."""
    program = """
from importlib.metadata import entry_points
from lm_eval.api.registry import get_model, model_registry
(found,) = entry_points(group="lm_eval.models", name="ffnskip")
model_registry.register("ffnskip", target=found)
print(get_model("ffnskip"))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert ran.stdout == "<class 'ffnskip_cpp.harness.model.FfnSkipLM'>\n", ran.stderr
    assert harness.get_model("ffnskip") is harness.FfnSkipLM  # where it was imported
