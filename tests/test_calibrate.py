"""`ffnskip calibrate` finds settings that skip what was asked for and cost less than the paper's values, on text it has
never seen; and what can't be calibrated is refused before there is anything to lose."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import demo_world
from ffnskip_cpp import Llama, SkipConfig, Unsupported, calibrate, demo_model, read_profile
from ffnskip_cpp.calibrate_command import report
from ffnskip_cpp.calibration import calibrate as calibration_module
from ffnskip_cpp.calibration.progress import Bar
from ffnskip_cpp.profile import profile_keys, profile_path

N_CTX = 256
OPTIONS = {"n_ctx": N_CTX, "n_threads": 2, "n_gpu_layers": 0}


def registers(seed, n):
    world, rng = demo_world.World(0), random.Random(seed)
    return [world.register_document(rng)[0].text for _ in range(n)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "registers.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in registers("calibrate", 24)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def fresh_tokens():
    """Text that no calibration here has seen."""
    with Llama(demo_model(), n_ctx=N_CTX, skip=None, verbose=False) as llm:
        return [llm.tokenize(text.encode())[:N_CTX] for text in registers("fresh", 12)]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    path.symlink_to(demo_model())
    return path


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def kl_and_ratio(skip, chunks):
    """Not by ffnskip_cpp.quality: KL(dense || skipping) and the share of FFN blocks skipped, past the warm-up."""
    kl, skipped = [], []
    with Llama(demo_model(), n_ctx=N_CTX, skip=skip, verbose=False) as llm:
        for tokens in chunks:
            with llm.trace() as trace:
                q = log_softmax(llm.forward(tokens)[30:])
            with llm.dense():
                p = log_softmax(llm.forward(tokens)[30:])
            kl.append((np.exp(p) * (p - q)).sum(axis=1))
            skipped.append(trace.skipped[30:])
    return float(np.concatenate(kl).mean()), float(np.concatenate(skipped).mean())


@pytest.fixture(scope="module")
def calibrated(text, tmp_path_factory):
    found = {}

    def at(ratio):
        if ratio not in found:
            output = tmp_path_factory.mktemp("profile") / "demo.ffnskip.gguf"
            found[ratio] = calibrate(demo_model(), [text], skip_ratio=ratio, output=output, **OPTIONS)
        return found[ratio]

    return at


@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_the_ratio_is_met_on_held_out_text_and_nearly_so_on_other_text(calibrated, fresh_tokens, ratio):
    calibration = calibrated(ratio)
    assert calibration.chosen.skip_ratio == pytest.approx(ratio, abs=0.01)
    _, achieved = kl_and_ratio(read_profile(calibration.path).config, fresh_tokens)
    assert achieved == pytest.approx(ratio, abs=0.03)


def test_it_costs_less_than_the_papers_values_at_the_same_ratio(calibrated, fresh_tokens):
    calibration = calibrated(0.3)
    kl, _ = kl_and_ratio(read_profile(calibration.path).config, fresh_tokens)
    paper, _ = kl_and_ratio(SkipConfig(skip_ratio=0.3), fresh_tokens)
    assert kl < paper / 2
    assert calibration.chosen.kl == min(
        row.kl for row in calibration.candidates if abs(row.skip_ratio - 0.3) <= 0.01 and "," not in row.policy
    )


def test_the_table_has_every_policy_and_what_they_are_compared_with(calibrated):
    policies = [row.policy for row in calibrated(0.3).candidates]
    assert policies == [
        *("fixed", "ffn_skip", "ffn_skip_per_layer", "fixed_plus_ffn_skip"),
        *("ffn_skip, uncalibrated", "random_adaptive_region", "random"),
    ]
    lines = report(calibrated(0.3))
    assert all(f"| {policy}" in lines for policy in policies)
    best = calibrated(0.3).chosen.policy
    assert ("Algorithm 1 is not the best here" in lines) == (best != "ffn_skip")


def test_the_profile_has_what_was_learnt(calibrated, fresh_tokens):
    keys = profile_keys(calibrated(0.3).path)
    assert keys["skip_ratio"] == pytest.approx(calibrated(0.3).chosen.skip_ratio)
    for name in ("similarity_mean", "similarity_low", "similarity_high", "block_influence", "block_kl"):
        assert len(keys[name]) == 16, name
        assert np.isfinite(keys[name][:15]).all() and np.isnan(keys[name][15]), name
    assert np.allclose(np.add(keys["similarity_mean"], keys["block_influence"])[:15], 1)
    every = SkipConfig(sim_threshold=2, cold_s=0, cold_e=15, max_skip=1)
    with Llama(demo_model(), n_ctx=N_CTX, skip=every, verbose=False) as llm, llm.trace() as trace:
        for tokens in fresh_tokens:
            llm.forward(tokens)
    assert np.allclose(keys["similarity_mean"][1:15], np.nanmean(trace.similarity[:, 1:15], axis=0), atol=0.02)
    assert [entry["policy"] for entry in json.loads(keys["candidates"])][:2] == ["fixed", "ffn_skip"]


def test_an_automatic_llama_uses_the_profile(model, text):
    calibration = calibrate(model, [text], skip_ratio=0.2, **OPTIONS)
    assert calibration.path == profile_path(model)
    with Llama(str(model), n_ctx=N_CTX, verbose=False) as llm:
        assert llm.skip == read_profile(calibration.path).config
        assert llm.skip.policy == calibration.chosen.policy


def test_most_is_skipped_within_a_divergence(text, tmp_path):
    at = {
        limit: calibrate(demo_model(), [text], max_kl=limit, output=tmp_path / "p.gguf", **OPTIONS).chosen
        for limit in (0.005, 0.05)
    }
    assert at[0.005].kl <= 0.005 and at[0.05].kl <= 0.05
    assert 0.01 < at[0.005].skip_ratio < at[0.05].skip_ratio


def test_embedding_leaves_one_file(model, text, tmp_path):
    model.unlink()
    model.write_bytes(Path(demo_model()).read_bytes())
    calibration = calibrate(model, [text], embed=True, **OPTIONS)
    assert calibration.path == model and os.listdir(tmp_path) == ["model.gguf"]
    with Llama(str(model), n_ctx=N_CTX, verbose=False) as llm:
        assert llm.skip.policy == calibration.chosen.policy


# ---- the same again, and interrupted ----


def test_it_is_deterministic_and_goes_on_after_an_interruption(text, tmp_path, monkeypatch):
    whole = calibrate(demo_model(), [text], output=tmp_path / "whole.gguf", **OPTIONS)
    n_tokens, told = [0], Bar.__call__

    def interrupted(bar, n):
        n_tokens[0] += n
        if n_tokens[0] > 6000:
            raise KeyboardInterrupt
        told(bar, n)

    monkeypatch.setattr(Bar, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(demo_model(), [text], output=tmp_path / "again.gguf", **OPTIONS)
    assert sorted(os.listdir(tmp_path)) == ["again.gguf.progress", "whole.gguf"]
    monkeypatch.setattr(Bar, "__call__", told)

    evaluated = [0]
    decode = Llama._evaluate

    def counted(llm, ids, kinds, logits=None):
        evaluated[0] += len(ids)
        decode(llm, ids, kinds, logits)

    monkeypatch.setattr(Llama, "_evaluate", counted)
    again = calibrate(demo_model(), [text], output=tmp_path / "again.gguf", **OPTIONS)
    resumed, evaluated[0] = evaluated[0], 0
    calibrate(demo_model(), [text], output=tmp_path / "third.gguf", **OPTIONS)
    assert resumed < evaluated[0] - 4000
    files = [(tmp_path / f"{name}.gguf").read_bytes() for name in ("whole", "again", "third")]
    assert files[0] == files[1] == files[2]
    assert again.chosen == whole.chosen and not list(tmp_path.glob("*.progress"))


def test_all_of_it_evaluates_less_than_the_text_twice(tmp_path, monkeypatch):
    """Of a text large enough that the held-out part is not the least there may be."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(registers("long", 90)), encoding="utf-8")
    evaluated, decode = [0], Llama._evaluate

    def counted(llm, ids, kinds, logits=None):
        evaluated[0] += len(ids)
        decode(llm, ids, kinds, logits)

    monkeypatch.setattr(Llama, "_evaluate", counted)
    calibrate(demo_model(), [path], output=tmp_path / "p.gguf", **{**OPTIONS, "n_ctx": 512})
    assert 10_000 < evaluated[0] < 40_000


# ---- bad input ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skip_ratio": 0}, r"skip-ratio: 0 is outside \(0, 1\)"),
        ({"skip_ratio": 1.5}, "skip-ratio: 1.5"),
        ({"skip_ratio": 0.97}, "skip-ratio: 0.97 can't be reached; at most 0.938"),
        ({"max_kl": 0}, "max-kl: 0"),
        ({"max_kl": 1e-9}, r"max-kl: 1e-09 can't be reached; skipping [0-9.]+% of the FFN blocks costs"),
        ({"max_kl": 0.1, "skip_ratio": 0.2}, "give one of the two"),
        ({"n_ctx": 16}, "n-ctx: 16 is too few"),
        ({"max_tokens": 1}, "max-tokens: 1 is too few"),
        ({"max_tokens": 200}, "max-tokens: 200 is less than the 256 of one chunk"),
        ({"seed": -1}, "seed: -1 is outside"),
        ({"n_threads": 0}, "threads: 0"),
        ({"warm_up_index": -1}, "warm-up: -1 is negative"),
        ({"embed": True, "output": "x.gguf"}, "embed and output"),
    ],
)
def test_a_bad_value_is_refused(model, text, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        calibrate(model, [text], **{**OPTIONS, **arguments})
    assert not profile_path(model).exists()


def test_text_that_is_too_short_empty_or_binary_is_refused(model, tmp_path):
    for content, message in (
        (b"Herno Jotsen was born in Stunburg. " * 8, "too short"),
        (b" \n", "no text in it"),
        (b"a\0b", "binary"),
    ):
        path = tmp_path / "text.txt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            calibrate(model, [path], **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "text.txt"]


def test_missing_files_and_models_that_cannot_skip_are_refused(model, text, tmp_path, model_file):
    with pytest.raises(FileNotFoundError, match=r"none\.gguf: no such file"):
        calibrate(tmp_path / "none.gguf", [text])
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        calibrate(model, [tmp_path / "none.txt"])
    with pytest.raises(Unsupported, match="mamba"):
        calibrate(model_file("mamba"), [text], output=tmp_path / "p.gguf")


def test_a_folder_that_cannot_be_written_is_left_for_the_working_one(model, text, tmp_path, monkeypatch):
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    monkeypatch.setattr(calibration_module.os, "access", lambda path, mode: os.path.basename(path) == "working")
    calibration = calibrate(model, [text], skip_ratio=0.2, **OPTIONS)
    assert (working / "model.ffnskip.gguf").is_file() and calibration.path.resolve().parent == working
    assert any(f"{tmp_path} can't be written" in note and "--profile" in note for note in calibration.notes)
    with pytest.raises(PermissionError, match="can't be written"):
        calibrate(model, [text], output=tmp_path / "p.gguf", **OPTIONS)


# ---- the command ----


def command(*arguments):
    words = [sys.executable, "-m", "ffnskip_cpp.cli", "calibrate", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_command_prints_its_tables_and_writes_the_profile(model, text):
    done = command(model, "--text", text, "--skip-ratio", "0.2", "--n-ctx", N_CTX, "-ngl", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "held-out text" in done.stdout and f"written to {profile_path(model)}" in done.stdout
    assert read_profile(profile_path(model)).config.warm_up_index == 30


@pytest.mark.parametrize("options", [["--skip-ratio", "0.99"], ["--n-ctx", "3"], ["--text", "none.txt"]])
def test_the_command_refuses_in_one_line(model, text, options):
    done = command(model, *(() if "--text" in options else ("--text", text)), *options)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("ffnskip calibrate: ") and done.stderr.count("\n") == 1
