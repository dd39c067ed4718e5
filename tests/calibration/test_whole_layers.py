"""Attention blocks and whole layers: what is chosen, and what it costs, against files in which they add nothing."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

import demo_world
from ffnskip_cpp import Llama, SkipConfig, calibrate, demo_model, read_profile
from ffnskip_cpp.calibration.costs import ATTENTION, FFN, byte_costs
from ffnskip_cpp.calibration.layers import short_gpt
from ffnskip_cpp.calibration.search import Model
from ffnskip_cpp.profile import profile_keys
from support.logits import log_softmax
from support.running import with_changed_tensors

N_LAYER, N_CTX = 16, 128
OPTIONS = {"n_ctx": N_CTX, "n_threads": 1, "n_gpu_layers": 0, "effort": "quick", "max_tokens": 1000}


def registers(seed, n):
    world, rng = demo_world.World(0), random.Random(seed)
    return [world.register_document(rng)[0].text for _ in range(n)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "registers.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in registers("layers", 24)), encoding="utf-8")
    return path


def logits_of(path, skip, chunks):
    with Llama(str(path), n_ctx=N_CTX, skip=skip, verbose=False) as llm:
        return [log_softmax(llm.forward(tokens)[30:]) for tokens in chunks]


@pytest.fixture(scope="module")
def fresh_tokens():
    with Llama(demo_model(), n_ctx=N_CTX, skip=None, verbose=False) as llm:
        return [llm.tokenize(text.encode())[:N_CTX] for text in registers("fresh", 4)]


# ---- short_gpt ----


def model_of(n_layer, whole):
    blocks = np.tile([1.0, 2.0, 7.0], (n_layer, 1))
    share = byte_costs(20.0 * n_layer, blocks).share_per_block
    return Model(n_layer, tuple(sorted(whole)), share, (0, n_layer), 30, frozenset(whole))


def test_the_layers_of_lowest_influence_go_where_all_of_them_can():
    influence = np.array([0.9, 0.2, 0.3, 0.05, 0.1, 0.4, 0.01, np.nan])
    whole = {(il, kind) for il in range(7) for kind in (ATTENTION, FFN)} - {(3, ATTENTION)}
    model = model_of(8, whole)
    for share, layers in ((0.01, [6]), (1 / 8, [6]), (0.13, [4, 6]), (0.5, [1, 2, 4, 6]), (0.75, [0, 1, 2, 4, 5, 6])):
        assert short_gpt(influence, share, model) == SkipConfig("short_gpt", layers=layers)
    assert short_gpt(influence, 0.8, model) is None


def test_short_gpt_is_found_and_costs_what_a_file_without_these_layers_does(text, tmp_path, fresh_tokens):
    options = {**OPTIONS, "policies": ["short_gpt"], "output": tmp_path / "p.gguf"}
    found = calibrate(demo_model(), [text], skip_ratio=2 / N_LAYER, **options)
    layers = list(found.chosen.config.layers)
    assert found.chosen.policy == "short_gpt" and found.chosen.skip_ratio == pytest.approx(2 / N_LAYER)
    assert sorted(np.argsort(found.layer_influence)[:2].tolist()) == layers
    assert np.isfinite(found.layer_influence[:-1]).all() and np.isnan(found.layer_influence[-1])
    kept = read_profile(found.path).config
    assert kept == found.chosen.config and kept.every_row and list(kept.attention_layers) == layers
    assert np.allclose(profile_keys(found.path)["layer_influence"], found.layer_influence, equal_nan=True)

    gone = {f"blk.{il}.{part}.weight" for il in layers for part in ("ffn_down", "attn_output")}
    path = with_changed_tensors(
        demo_model(), tmp_path / "without.gguf", lambda name, data: data.fill(0) if name in gone else None
    )
    ours = logits_of(demo_model(), kept, fresh_tokens)
    plain = logits_of(path, None, fresh_tokens)
    dense = logits_of(demo_model(), None, fresh_tokens)
    assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(ours, plain))
    kl = np.concatenate([(np.exp(p) * (p - q)).sum(axis=1) for p, q in zip(dense, plain)]).mean()
    assert kl == pytest.approx(found.chosen.kl, rel=0.5)


def test_whole_layers_want_a_ratio(text, tmp_path):
    for policy in ("short_gpt", "skip_decode"):
        with pytest.raises(ValueError, match=f"policy: {policy} is for a share of the layers: give a skip-ratio"):
            calibrate(demo_model(), [text], policies=[policy], output=tmp_path / "p.gguf", **OPTIONS)


# ---- attention blocks ----


def test_attention_blocks_take_part_and_are_counted_by_what_is_not_read(model_file, text, tmp_path):
    model, n_layer = model_file("llama", n_layer=8), 8
    options = {**OPTIONS, "policies": ["blocks"], "tensors": "all", "output": tmp_path / "p.gguf"}
    found = calibrate(model, [text], skip_ratio=0.2, **options)
    with Llama(str(model), skip=None, n_ctx=N_CTX, verbose=False) as llm:
        n_bytes = {(block.layer, block.kind): (block.bytes_per_token, block.bytes_of_cache) for block in llm.blocks}
    total = sum(of_block for of_block, _ in n_bytes.values())
    fixed = next(row for row in found.candidates if "ffn_skip" not in row.policy and row.config.policy == "ffn_skip")
    attention, ffn = fixed.config.attention_layers or (), fixed.config.layers or ()
    saved = sum(n_bytes[il, "attention"][0] - n_bytes[il, "attention"][1] for il in attention)
    saved += sum(n_bytes[il, "ffn"][0] for il in ffn)
    assert fixed.skip_ratio == pytest.approx(saved / total) and fixed.skip_ratio >= 0.19
    assert len(attention) > 0
    alone = [row for row in found.tried if row.config.attention_layers is not None and row.config.layers is None]
    assert len({row.config for row in alone if len(row.config.attention_layers) == 1}) == n_layer - 1


def test_skip_decode_is_measured_and_written_as_it_was_asked_for(text, tmp_path):
    options = {**OPTIONS, "policies": ["short_gpt", "skip_decode"], "output": tmp_path / "p.gguf"}
    found = calibrate(demo_model(), [text], skip_ratio=0.25, **options)
    assert [row.policy for row in found.candidates] == ["short_gpt", "skip_decode"]
    row = found.candidates[1]
    assert row.config == SkipConfig("skip_decode", skip_ratio=0.25, warm_up_index=30)
    # Of all blocks alike, and less than it comes to in the end: no text is as long as the fall takes.
    assert 0.02 < row.skip_ratio < 0.25 and row.kl > 0
    assert found.chosen is found.candidates[0]
