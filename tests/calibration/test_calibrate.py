"""`ffnskip calibrate` finds settings that skip what was asked for and cost less than the paper's values, on text it has
never seen; and what can't be calibrated is refused before there is anything to lose."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

import demo_world
from ffnskip_cpp import (
    Llama,
    SkipConfig,
    TargetUnreachableError,
    UnsupportedModelError,
    calibrate,
    demo_model,
    read_profile,
)
from ffnskip_cpp.calibration import output as output_module
from ffnskip_cpp.calibration.progress import Bar
from ffnskip_cpp.profile import profile_keys, profile_path
from support import tiny_models
from support.logits import log_softmax

N_CTX, WARM_UP = 64, 10
ON_LONG_TEXT = {"n_ctx": N_CTX, "warm_up_index": WARM_UP, "n_threads": 1, "n_gpu_layers": 0, "effort": "quick"}
OPTIONS = {**ON_LONG_TEXT, "max_tokens": 800}
BLOCKS = {**OPTIONS, "policies": ["blocks"]}
A_QUARTER = {**BLOCKS, "skip_ratio": 0.25}
LITTLE = {"max_tokens": 3 * N_CTX}  # where what is found need not be good


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
def model(model_file, tmp_path):
    """Of random weights, and small: where what is found need not be good."""
    path = tmp_path / "model.gguf"
    path.symlink_to(model_file("llama", n_layer=8))
    return path


def kl_and_ratio(skip, chunks):
    """Not by measure.quality: KL(dense || skipping) and the share of FFN blocks skipped, past the warm-up."""
    kl, skipped = [], []
    with Llama(demo_model(), n_ctx=N_CTX, skip=skip, verbose=False) as llm:
        for tokens in chunks:
            with llm.trace() as trace:
                q = log_softmax(llm.forward(tokens)[WARM_UP:])
            with llm.dense():
                p = log_softmax(llm.forward(tokens)[WARM_UP:])
            kl.append((np.exp(p) * (p - q)).sum(axis=1))
            skipped.append(trace.skipped[WARM_UP:])
    return float(np.concatenate(kl).mean()), float(np.concatenate(skipped).mean())


@pytest.fixture(scope="module")
def of_demo(text, tmp_path_factory):
    """of_demo(**options): a calibration of the demo model, with a profile of its own. What one of them measures, the
    others find: it is kept for one that was interrupted, with the same output."""
    folder = tmp_path_factory.mktemp("profile")
    output = folder / "demo.ffnskip.gguf"

    def interrupted(bar, n):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Bar, "__call__", interrupted)
        calibrate(demo_model(), [text], output=output, skip_ratio=0.5, **BLOCKS)
    found = {}

    def at(**options):
        key = repr(options)
        if key not in found:
            calibration = calibrate(demo_model(), [text], output=output, **{**OPTIONS, **options})
            path = folder / f"{len(found)}.ffnskip.gguf"
            found[key] = dataclasses.replace(calibration, path=shutil.copy(output, path))
        return found[key]

    return at


@pytest.fixture(scope="module")
def calibrated(of_demo):
    return lambda ratio: of_demo(skip_ratio=ratio, policies=["blocks"])


@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_as_much_is_skipped_as_was_asked_for_and_nearly_so_on_other_text(calibrated, fresh_tokens, ratio):
    calibration = calibrated(ratio)
    assert calibration.chosen.skip_ratio >= ratio - 0.01
    _, achieved = kl_and_ratio(read_profile(calibration.path).config, fresh_tokens)
    assert achieved == pytest.approx(calibration.chosen.skip_ratio, abs=0.03)


def test_it_costs_less_than_the_papers_values_at_the_same_ratio(calibrated, fresh_tokens):
    calibration = calibrated(0.3)
    kl, _ = kl_and_ratio(read_profile(calibration.path).config, fresh_tokens)
    paper, _ = kl_and_ratio(SkipConfig(skip_ratio=0.3, warm_up_index=WARM_UP), fresh_tokens)
    assert kl < paper / 2


@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_no_row_of_the_table_beats_the_chosen_one(calibrated, ratio):
    """By the figures in the table alone: two rows whose errors overlap are as good."""
    calibration = calibrated(ratio)
    chosen = calibration.chosen
    for row in calibration.candidates:
        better = row.kl + row.kl_error < chosen.kl - chosen.kl_error
        assert not (better and row.skip_ratio >= chosen.skip_ratio), row
    assert chosen in calibration.candidates


def test_the_error_of_a_divergence_is_that_of_its_mean_over_chunks(calibrated):
    for row in calibrated(0.3).candidates:
        of_chunks = [row.kl_of_rows[row.chunk == i] for i in np.unique(row.chunk)]
        sizes = np.array([len(kl) for kl in of_chunks])
        assert row.kl == pytest.approx(np.concatenate(of_chunks).mean(), rel=1e-6) and len(of_chunks) > 3
        resampled = [
            np.concatenate(
                [of_chunks[i] for i in np.random.default_rng(n).integers(len(sizes), size=len(sizes))]
            ).mean()
            for n in range(400)
        ]
        assert row.kl_error == pytest.approx(np.std(resampled), rel=0.35)


def test_the_table_has_every_policy_and_what_they_are_compared_with(calibrated):
    policies = [row.policy for row in calibrated(0.3).candidates]
    assert policies == [
        *("fixed layers", "ffn_skip", "fixed layers + ffn_skip"),
        *("ffn_skip, uncalibrated", "random in adaptive region", "random"),
    ]
    lines = repr(calibrated(0.3))
    assert all(f"| {policy}" in lines for policy in policies)
    assert f"chosen: {calibrated(0.3).chosen.policy}, " in lines and " ± " in lines


def test_the_result_shows_what_was_chosen_and_is_json_for_programs(calibrated):
    calibration = calibrated(0.3)
    assert repr(calibration).splitlines()[-1] == f"written to {calibration.path}"
    found = json.loads(json.dumps(calibration.as_dict(), allow_nan=False))
    assert found["chosen"]["kl"] == calibration.chosen.kl and found["path"] == str(calibration.path)
    assert SkipConfig(**found["chosen"]["config"]) == calibration.chosen.config
    assert len(found["tried"]) == len(calibration.tried) and found["block_kl"][15] is None


def test_the_profile_has_what_was_learnt(calibrated, fresh_tokens):
    keys = profile_keys(calibrated(0.3).path)
    assert keys["skip_ratio"] == pytest.approx(calibrated(0.3).chosen.skip_ratio)
    for name in ("similarity_mean", "similarity_low", "similarity_high", "block_influence", "block_kl"):
        assert len(keys[name]) == 16, name
        assert np.isfinite(keys[name][:15]).all() and np.isnan(keys[name][15]), name
    every = SkipConfig(sim_threshold=2, cold_s=0, cold_e=15, max_skip=1, warm_up_index=WARM_UP)
    with Llama(demo_model(), n_ctx=N_CTX, skip=every, verbose=False) as llm, llm.trace() as trace:
        for tokens in fresh_tokens:
            llm.forward(tokens)
    mean = np.nanmean(trace.similarity[:, 1:15], axis=0)
    assert np.allclose(keys["similarity_mean"][1:15], mean, atol=0.02)
    assert np.allclose(keys["block_influence"][1:15], 1 - mean, atol=0.02)
    assert [entry["policy"] for entry in json.loads(keys["candidates"])][:2] == ["fixed layers", "ffn_skip"]


def test_an_automatic_llama_uses_the_profile(model, text):
    calibration = calibrate(model, [text], **{**A_QUARTER, **LITTLE})
    assert calibration.path == profile_path(model)
    with Llama(str(model), n_ctx=N_CTX, verbose=False) as llm:
        assert llm.skip == read_profile(calibration.path).config
        assert llm.skip.label == calibration.chosen.policy


def test_most_is_skipped_within_a_divergence(of_demo):
    at = {limit: of_demo(max_kl=limit, policies=["blocks"]).chosen for limit in (0.005, 0.02)}
    assert at[0.005].kl <= 0.005 and at[0.02].kl <= 0.02
    assert 0.01 < at[0.005].skip_ratio < at[0.02].skip_ratio


def test_embedding_leaves_one_file(model, model_file, text, tmp_path):
    model.unlink()
    model.write_bytes(model_file("llama", n_layer=8).read_bytes())
    calibration = calibrate(model, [text], embed=True, **{**A_QUARTER, **LITTLE})
    assert calibration.path == model and os.listdir(tmp_path) == ["model.gguf"]
    with Llama(str(model), n_ctx=N_CTX, verbose=False) as llm:
        assert llm.skip.label == calibration.chosen.policy


# ---- the same again, and interrupted ----


def test_it_is_deterministic_and_goes_on_after_an_interruption(model_file, text, tmp_path, monkeypatch):
    model = model_file("llama", n_layer=8)
    options = {**OPTIONS, "policies": ["channels"], "skip_ratio": 0.3}
    whole = calibrate(model, [text], output=tmp_path / "whole.gguf", **options)
    n_tokens, told = [0], Bar.__call__

    def interrupted(bar, n):
        n_tokens[0] += n
        if n_tokens[0] > 2000:
            raise KeyboardInterrupt
        told(bar, n)

    monkeypatch.setattr(Bar, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, [text], output=tmp_path / "again.gguf", **options)
    assert sorted(os.listdir(tmp_path)) == ["again.gguf.progress", "whole.gguf"]
    monkeypatch.setattr(Bar, "__call__", told)

    evaluated = [0]
    forward = Llama.forward

    def counted(llm, ids, *args, **kwargs):
        evaluated[0] += len(ids)
        return forward(llm, ids, *args, **kwargs)

    monkeypatch.setattr(Llama, "forward", counted)
    again = calibrate(model, [text], output=tmp_path / "again.gguf", **options)
    resumed, evaluated[0] = evaluated[0], 0
    calibrate(model, [text], output=tmp_path / "third.gguf", **options)
    assert resumed < evaluated[0] - 1000
    files = [(tmp_path / f"{name}.gguf").read_bytes() for name in ("whole", "again", "third")]
    assert files[0] == files[1] == files[2]
    assert again.chosen == whole.chosen and not list(tmp_path.glob("*.progress"))


def test_another_seed_holds_out_other_text_and_finds_as_good_a_setting(model, text):
    one, other = (calibrate(model, [text], seed=seed, **A_QUARTER).chosen for seed in (1, 2))
    assert one.kl != other.kl
    assert abs(one.kl - other.kl) < 3 * np.hypot(one.kl_error, other.kl_error)


# ---- channels ----


def kl_and_left_out(path, skip, chunks):
    """KL(dense || skipping) past the warm-up, and the share of the FFN's weight bytes that the core left out."""
    kl = []
    left_out = total = 0
    with Llama(str(path), n_ctx=N_CTX, skip=skip, verbose=False) as llm:
        for tokens in chunks:
            q = log_softmax(llm.forward(tokens)[WARM_UP:])
            left_out, total = llm.stats.bytes_left_out, llm.stats.bytes_total * (1 - WARM_UP / len(tokens))
            with llm.dense():
                p = log_softmax(llm.forward(tokens)[WARM_UP:])
            kl.append((np.exp(p) * (p - q)).sum(axis=1))
    return float(np.concatenate(kl).mean()), left_out / total


@pytest.fixture(scope="module")
def of_channels(of_demo):
    return of_demo(skip_ratio=0.4, policies=["channels"])


def test_channels_save_what_was_asked_for_on_other_text_too(of_channels, fresh_tokens):
    config = read_profile(of_channels.path).config
    assert config == of_channels.chosen.config and config.policy == "channels" and len(config.channel_thresholds) == 64
    assert of_channels.chosen.skip_ratio == pytest.approx(0.4, abs=0.01)
    kl, left_out = kl_and_left_out(demo_model(), config, fresh_tokens)
    assert left_out == pytest.approx(0.4, abs=0.03)
    assert kl == pytest.approx(of_channels.chosen.kl, rel=0.5)
    equal = SkipConfig("channels", skip_ratio=0.4, warm_up_index=WARM_UP)
    assert kl < 1.1 * kl_and_left_out(demo_model(), equal, fresh_tokens)[0]


def test_the_page_and_the_profile_say_what_is_kept(of_channels):
    keys = profile_keys(of_channels.path)
    kept = np.reshape(keys["channels_kept"], (16, 4))
    assert np.isnan(kept[:, :2]).all() and (kept[:, 2:] > 0.05).all() and (kept[:, 2:] < 1).all()
    up, down = kept[:, 2:].mean(axis=0)
    assert f"kept: up {up:.0%}, down {down:.0%}" in repr(of_channels)
    assert [row.policy for row in of_channels.candidates] == ["channels", "channels, uncalibrated"]
    assert "block_kl" not in keys and np.isnan(of_channels.block_kl).all()
    json.dumps(of_channels.as_dict(), allow_nan=False)


@pytest.fixture(scope="module")
def of_tiny(model_file, text, tmp_path_factory):
    """of_tiny(**target): a model of random weights, whose FFN blocks are all needed."""
    output = tmp_path_factory.mktemp("profile") / "tiny.ffnskip.gguf"
    options = {**OPTIONS, "n_ctx": 128, "max_tokens": 1500, "warm_up_index": 30, "output": output}
    return lambda **target: calibrate(model_file("llama", n_layer=12), [text], **options, **target)


def test_blocks_that_cost_far_more_than_channels_are_not_searched_for_further(of_tiny):
    calibration = of_tiny(skip_ratio=0.3)
    assert [row.policy for row in calibration.candidates] == [
        *("fixed layers", "channels", "fixed layers + channels", "channels, uncalibrated")
    ]
    blocks, channels, both, uncalibrated = calibration.candidates
    assert blocks.kl > 2 * channels.kl and blocks.skip_ratio == pytest.approx(1 / 12)
    assert len(both.config.layers) == 1 and both.skip_ratio == pytest.approx(0.3, abs=0.01)
    assert calibration.chosen is channels and channels.kl < uncalibrated.kl
    assert any(
        note.startswith("1 of the 4 FFN blocks that would be needed cost more than 2 times")
        for note in calibration.notes
    )
    assert len({row.config for row in calibration.tried if row.config.policy == "ffn_skip"}) == 11


def test_a_divergence_is_all_that_is_given_away_by_default(of_tiny):
    calibration = of_tiny()
    assert 0.04 < calibration.chosen.kl <= 0.05 and calibration.chosen.policy == "channels"
    assert [row.policy for row in calibration.candidates] == ["channels", "fixed layers", "channels, uncalibrated"]
    assert any("one FFN block alone costs more" in note for note in calibration.notes)
    more = of_tiny(max_kl=0.2)
    assert 0.16 < more.chosen.kl <= 0.2 and more.chosen.skip_ratio > calibration.chosen.skip_ratio + 0.03


def test_all_policies_are_compared_where_blocks_are_worth_it(of_demo):
    calibration = of_demo()
    assert calibration.chosen.kl <= 0.05
    policies = {row.policy for row in calibration.candidates}
    assert {"fixed layers", "ffn_skip", "channels", "fixed layers + channels", "channels, uncalibrated"} <= policies
    within = [row.skip_ratio for row in calibration.candidates if row.kl <= 0.05 and "uncal" not in row.policy]
    assert round(calibration.chosen.skip_ratio, 3) == round(max(within), 3)


def test_a_set_beside_channels_saves_what_both_do(of_demo):
    chosen = of_demo(skip_ratio=0.3, policies=["blocks+channels"]).chosen
    assert chosen.policy == "fixed layers + channels" and len(chosen.config.layers) == 1
    assert chosen.skip_ratio == pytest.approx(0.3, abs=0.01)
    assert (chosen.channels_kept[chosen.config.layers[0], 2:] == 0).all()


def test_attention_takes_part_where_it_may(of_demo):
    calibration = of_demo(skip_ratio=0.3, policies=["channels"], tensors="all")
    assert calibration.chosen.skip_ratio == pytest.approx(0.3, abs=0.01)
    thresholds = np.reshape(read_profile(calibration.path).config.channel_thresholds, (16, 4))
    assert (thresholds > 0).all()


# ---- rounds and effort ----


def test_what_is_measured_to_the_end_is_measured_on_2048_tokens(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(registers("long", 40)), encoding="utf-8")
    options = {**ON_LONG_TEXT, "n_ctx": 256, "warm_up_index": 30, "policies": ["blocks"], "skip_ratio": 0.25}
    calibration = calibrate(demo_model(), [path], output=tmp_path / "p.gguf", **options)
    n_tokens = [row.n_tokens for row in calibration.tried]
    assert max(n_tokens) >= 2048
    alone = [row for row in calibration.tried if row.policy == "fixed layers" and len(row.config.layers) == 1]
    assert len(alone) == 15 and min(row.n_tokens for row in alone) < 300
    for policy, least in (("fixed layers", 4), ("ffn_skip", 2)):
        assert sum(row.policy == policy and row.n_tokens == max(n_tokens) for row in calibration.tried) >= least
    assert not any("give more of it" in note for note in calibration.notes)


def test_little_text_is_said_to_be_little(calibrated):
    assert any("tokens to search with" in note for note in calibrated(0.3).notes)


def test_effort_in_seconds_takes_what_fits_and_refuses_what_does_not(model, text):
    options = {**OPTIONS, **LITTLE, "policies": ["channels"], "skip_ratio": 0.3}
    calibration = calibrate(model, [text], **{**options, "effort": 1e6})
    assert "effort: thorough, which fits 1e+06 seconds" in calibration.notes
    with pytest.raises(ValueError, match=r"effort: 0\.001 seconds are too few here; the least takes about \d+"):
        calibrate(model, [text], **{**options, "effort": 0.001})


# ---- chats and adapters ----

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def with_template(model, path):
    words = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", model, path, "--chat-template", TEMPLATE]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    return path


def chats(n, **extra):
    turns = [("user", "Tell me about them."), ("assistant", "{}"), ("user", "And?"), ("assistant", "{}")]
    texts = iter(registers("chats", 2 * n))
    return [
        {"messages": [{"role": r, "content": next(texts)[:100] if c == "{}" else c} for r, c in turns], **extra}
        for _ in range(n)
    ]


def lines(path, entries):
    path.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    return path


def test_of_a_chat_the_answers_count_as_generated(model, tmp_path):
    with_template(model, tmp_path / "chat.gguf")
    text = lines(tmp_path / "c.jsonl", chats(4))
    options = {**ON_LONG_TEXT, "n_ctx": 384, "policies": ["blocks"], "skip_ratio": 0.25}
    calibration = calibrate(tmp_path / "chat.gguf", [text], **options)
    assert calibration.chosen.skip_ratio >= 0.24
    # One chat is held out: the bytes of its answers and the end of each ("th" is one token), but for warm-ups.
    answers = [[chat["messages"][i]["content"] for i in (1, 3)] for chat in chats(4)]
    n_tokens = [sum(len(answer) + 1 - answer.count("th") - WARM_UP for answer in of_chat) for of_chat in answers]
    assert min(n_tokens) - 2 <= calibration.chosen.n_tokens <= max(n_tokens)


def test_what_the_user_says_is_answered_by_the_model_and_only_once(tmp_path, monkeypatch):
    asked, complete = [], Llama.create_chat_completion

    def counted(llm, messages, **options):
        asked.append(len(messages))
        return complete(llm, messages, **options)

    monkeypatch.setattr(Llama, "create_chat_completion", counted)
    model = with_template(demo_model(), tmp_path / "chat.gguf")
    turns = [{"turns": [f"Who is number {i}?", "And then?"], "category": "x"} for i in range(4)]
    options = {**ON_LONG_TEXT, "n_ctx": 512, "policies": ["short_gpt"], "skip_ratio": 1 / 16}
    calibrate(model, [lines(tmp_path / "mt.jsonl", turns)], **options)
    assert asked == [1, 3] * 4


def test_chats_are_refused_where_the_model_has_no_template(model_file, tmp_path):
    text = lines(tmp_path / "c.jsonl", chats(4))
    with pytest.raises(ValueError, match=r"c\.jsonl:1: a chat, and the model has no chat template"):
        calibrate(model_file("llama"), [text], output=tmp_path / "p.gguf", **OPTIONS)


def test_a_profile_says_which_adapter_it_was_made_with(model_file, tmp_path):
    model = model_file("llama", n_layer=6)
    adapter = tiny_models.write_lora(tmp_path / "style.gguf", n_layer=6)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(registers("lora", 2)), encoding="utf-8")
    options = {**A_QUARTER, **LITTLE, "output": tmp_path / "p.gguf"}
    plain = calibrate(model, [text], **options)
    assert "lora" not in profile_keys(plain.path)
    found = {}
    for lora, scale in ((adapter, 1.0), (f"{adapter}:0", 0.0)):
        calibration = calibrate(model, [text], lora=lora, **options)
        keys = profile_keys(calibration.path)
        assert (keys["lora"], keys["lora_scale"]) == ("style.gguf", scale)
        assert keys["lora_sha256"] == hashlib.sha256(adapter.read_bytes()).hexdigest()
        found[scale] = calibration.similarity[:-1, 0]
    assert np.allclose(found[0.0], plain.similarity[:-1, 0], atol=1e-6)
    assert not np.allclose(found[1.0], plain.similarity[:-1, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("lora", "message"), [("none.gguf", "none.gguf: no such file"), ("{model}:x", "'x' in .* is no scale")]
)
def test_a_bad_adapter_is_refused(model, text, lora, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        calibrate(model, [text], lora=lora.format(model=model), **OPTIONS)


# ---- bad input ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skip_ratio": 0}, r"skip-ratio: 0 is outside \(0, 1\)"),
        ({"skip_ratio": 1.5}, "skip-ratio: 1.5"),
        ({"skip_ratio": 0.97}, "skip-ratio: 0.97 can't be reached; at most 0.875"),
        ({"effort": "much"}, "effort: 'much' is neither of quick, normal, thorough nor a number of seconds above 0"),
        ({"effort": 0}, "effort: 0 is neither"),
        ({"max_kl": 0}, "max-kl: 0"),
        ({"max_kl": 1e-9}, r"max-kl: 1e-09 can't be reached; skipping [0-9.]+% of the weights costs"),
        ({"max_kl": 0.1, "skip_ratio": 0.2}, "give one of the two"),
        ({"n_ctx": 16, "warm_up_index": 30}, "n-ctx: 16 is too few"),
        ({"max_tokens": 1}, "max-tokens: 1 is too few"),
        ({"max_tokens": 60}, "max-tokens: 60 is less than the 64 of one chunk"),
        ({"seed": -1}, "seed: -1 is outside"),
        ({"policies": ["chanels"]}, "policy: 'chanels' is none of blocks, channels, blocks.channels"),
        ({"policies": []}, "policy: none is named"),
        ({"tensors": "attention"}, "tensors: 'attention' is neither of ffn, all"),
        ({"policies": ["channels"], "skip_ratio": 0.99}, "skip-ratio: 0.99 can't be reached by what is to be tried"),
        (
            {"policies": ["channels"], "max_kl": 1e-9},
            r"max-kl: 1e-09 can't be reached; skipping [0-9.]+% of the weights",
        ),
        ({"n_threads": 0}, "threads: 0"),
        ({"n_threads": 100_000}, "threads: 100000 can't compute anything; 1 to 512"),
        ({"warm_up_index": -1}, "warm-up: -1 is negative"),
        ({"embed": True, "output": "x.gguf"}, "embed and output"),
    ],
)
def test_a_bad_value_is_refused(model, text, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TargetUnreachableError if "reached" in message else ValueError, match=message):
        calibrate(model, [text], **{**BLOCKS, **LITTLE, **arguments})
    assert not profile_path(model).exists()


def test_too_little_effort_is_refused_and_leaves_nothing(model, text, tmp_path):
    with pytest.raises(ValueError, match=r"effort: 0.001 seconds are too few"):
        calibrate(model, [text], **{**OPTIONS, "effort": 0.001})
    assert os.listdir(tmp_path) == ["model.gguf"]


def test_text_that_is_too_short_empty_or_binary_is_refused(model, tmp_path):
    for content, message in (
        (b"Herno Jotsen was born in Stunburg. ", "too short"),
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
    with pytest.raises(UnsupportedModelError, match="mamba"):
        calibrate(model_file("mamba"), [text], output=tmp_path / "p.gguf")


def test_a_folder_that_cannot_be_written_is_left_for_the_working_one(model, text, tmp_path, monkeypatch):
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    monkeypatch.setattr(output_module.os, "access", lambda path, mode: os.path.basename(path) == "working")
    calibration = calibrate(model, [text], **{**A_QUARTER, **LITTLE})
    assert (working / "model.ffnskip.gguf").is_file() and calibration.path.resolve().parent == working
    assert any(f"{tmp_path} can't be written" in note and "--profile" in note for note in calibration.notes)
    with pytest.raises(PermissionError, match="can't be written"):
        calibrate(model, [text], output=tmp_path / "p.gguf", **OPTIONS)


@pytest.mark.parametrize("name", ["model.gguf", "text.jsonl", "notes.txt"])
def test_an_output_that_is_something_else_is_left_as_it_is(model, model_file, tmp_path, name):
    model.unlink()
    model.write_bytes(model_file("llama", n_layer=8).read_bytes())
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "some text"}), encoding="utf-8")
    (tmp_path / "notes.txt").write_text("mine")
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match=f"{name}: is no skip profile, and is left as it is"):
        calibrate(model, [text], output=tmp_path / name, **OPTIONS)
    assert (tmp_path / name).read_bytes() == before


# ---- the command ----


def command(*arguments):
    words = [sys.executable, "-m", "ffnskip_cpp", "calibrate", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_command_prints_its_tables_and_writes_the_profile(model, text):
    options = ["--policy", "blocks", "--max-tokens", LITTLE["max_tokens"], "-t", "1", "-ngl", "0"]
    done = command("--skip-ratio", "0.2", "--n-ctx", N_CTX, *options, "--text", text, model)
    assert (done.returncode, done.stderr) == (0, "")
    assert "held-out text" in done.stdout and f"written to {profile_path(model)}" in done.stdout
    assert read_profile(profile_path(model)).config.warm_up_index == 30


@pytest.mark.parametrize(
    ("status", "options"),
    [
        (1, ["--skip-ratio", "0.99", "--policy", "blocks"]),
        (1, ["--text", "none.txt"]),
        (2, ["--n-ctx", "3"]),
        (2, ["--policy", "chanels"]),
        (2, ["--skip-ratio", "7"]),
    ],
)
def test_the_command_refuses_in_one_line(model, text, status, options):
    done = command(model, *(() if "--text" in options else ("--text", text)), *options)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("ffnskip calibrate: ") and done.stderr.count("\n") == 1
