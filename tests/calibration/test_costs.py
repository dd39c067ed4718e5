"""What leaving things out saves: the same search, whatever the table says; and tables that are measured or given."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import demo_world
from ffnskip_cpp import Llama, SkipConfig, calibrate, demo_model
from ffnskip_cpp.calibration import evaluation, timing
from ffnskip_cpp.calibration.costs import ATTENTION, FFN, KEYS_AND_VALUES, Costs, LeftOut, byte_costs, read_costs
from ffnskip_cpp.calibration.progress import Bar
from ffnskip_cpp.calibration.race import Race
from ffnskip_cpp.calibration.search import GreedySet, Model
from ffnskip_cpp.measure.text import Chunk
from ffnskip_cpp.profile import profile_keys
from support.made_up import MadeUp

N_LAYER = 16
OPTIONS = {"n_ctx": 128, "n_threads": 1, "n_gpu_layers": 0, "effort": "quick", "max_tokens": 700}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    import random

    world, rng = demo_world.World(0), random.Random("costs")
    path = tmp_path_factory.mktemp("text") / "registers.jsonl"
    texts = [world.register_document(rng)[0].text for _ in range(24)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return path


def half_slow(n_layer=N_LAYER):
    """Milliseconds, as of a model of which half of the layers lie on a device that takes ten times as long."""
    per_block = np.tile([0.1, 0.2, 1.0], (n_layer, 1))
    per_block[: n_layer // 2] *= 10
    per_byte = np.zeros((n_layer, 4))
    return Costs(2.0 + per_block.sum(), per_block, per_byte, 0.001)


def written(costs, path):
    path.write_text(json.dumps(costs.as_dict()), encoding="utf-8")
    return path


# ---- the table ----


def test_what_is_saved_is_the_sum_of_what_is_left_out():
    rng = np.random.default_rng(0)
    costs = Costs(100.0, rng.uniform(0, 1, (5, 3)), rng.uniform(0, 1e-3, (5, 4)), 0.01)
    left_out = LeftOut(rng.uniform(0, 1, (5, 3)), rng.uniform(0, 1e3, (5, 4)), 2.5)
    saved = -2.5 * 0.01
    for il in range(5):
        saved += sum(costs.per_block[il, kind] * left_out.blocks[il, kind] for kind in range(3))
        saved += sum(costs.per_byte[il, kind] * left_out.bytes[il, kind] for kind in range(4))
    assert costs.share(left_out) == pytest.approx(saved / costs.per_block.sum())
    assert costs.speed_up(left_out) == pytest.approx(100 / (100 - saved))
    of_ffn = costs.of("ffn")
    assert (of_ffn.per_block[:, [KEYS_AND_VALUES, ATTENTION]] == 0).all()
    assert (costs.of("all").per_block == costs.per_block).all()
    assert of_ffn.of_blocks == pytest.approx(costs.per_block[:, FFN].sum())


# ---- the search ----


@pytest.mark.parametrize("seed", range(5))
def test_a_set_grows_by_what_a_block_adds_for_what_it_saves(seed):
    rng = np.random.default_rng(seed)
    alone, gains = rng.uniform(0.1, 1, 12), rng.choice([0.3, 1, 10], 14)
    noise = rng.normal(size=160) * 0.01

    def kl_of(config):
        return sum(alone[il] for il in config.layers) ** 1.2 + noise

    def kl(layers):
        return sum(alone[il] for il in layers) ** 1.2

    chosen = []
    for _ in range(5):
        left = [il for il in range(12) if il not in chosen]
        chosen.append(min(left, key=lambda il: (kl([*chosen, il]) - kl(chosen)) / gains[il]))
    per_block = np.zeros((14, 3))
    per_block[:, FFN] = gains
    model = Model(14, tuple((il, FFN) for il in range(12)), byte_costs(100.0, per_block).share_per_block, (1, 12), 0)
    race = Race(MadeUp(kl_of), [Chunk([0] * 10, list(range(10)))] * 16, 1)
    greedy = GreedySet(model, race, 12)
    assert greedy.blocks(5) == [(il, FFN) for il in chosen]
    wanted = gains[chosen[:3]].sum() / gains.sum()
    assert greedy.saving(wanted) == 3 and greedy.saving(wanted + 1e-6) == 4


def test_a_table_of_bytes_finds_what_no_table_does(model_file, text, tmp_path):
    model, n_layer = model_file("llama", n_layer=8), 8
    options = {**OPTIONS, "policies": ["blocks", "channels"], "skip_ratio": 0.3, "output": tmp_path / "p.gguf"}
    plain = calibrate(model, [text], **options)
    with Llama(str(model), skip=None, n_ctx=256, verbose=False) as llm, llm.skipping(SkipConfig("channels")):
        of_blocks = llm.input_bytes[:, 2:, 1].sum(axis=1)
    per_block = np.zeros((n_layer, 3))
    per_block[:, FFN] = 1e-6 * of_blocks
    table = Costs(2 * per_block.sum(), per_block, np.full((n_layer, 4), 1e-6), 0.0)
    given = calibrate(model, [text], costs=written(table, tmp_path / "costs.json"), **options)
    assert given.chosen.config == plain.chosen.config
    assert [row.config for row in given.candidates] == [row.config for row in plain.candidates]
    assert given.chosen.saved == pytest.approx(given.chosen.skip_ratio)
    assert given.chosen.speed_up == pytest.approx(1 / (1 - given.chosen.saved / 2))


def test_what_lies_on_the_slow_device_is_left_out(model_file, text, tmp_path):
    """A tenth of the bytes of the blocks there saves as much as all that lies on the fast one."""
    options = {**OPTIONS, "policies": ["blocks"], "skip_ratio": 0.3, "output": tmp_path / "p.gguf"}
    model, n_layer = model_file("llama", n_layer=10), 10
    costs = half_slow(n_layer)
    found = calibrate(model, [text], costs=written(costs, tmp_path / "costs.json"), **options)
    for row in found.candidates:
        if row.policy == "fixed layers":
            saved = costs.per_block[list(row.config.layers), FFN].sum()
            assert row.saved == pytest.approx(saved / costs.per_block[:, FFN].sum())
            assert row.speed_up == pytest.approx(costs.per_token / (costs.per_token - saved))
            assert row.skip_ratio == pytest.approx(len(row.config.layers) / n_layer)
            assert max(row.config.layers) < n_layer // 2
    assert 0.29 <= found.chosen.saved < 0.45
    kept = json.loads(profile_keys(found.path)["costs"])
    report = found.as_dict()
    assert kept == report["costs"] == json.loads(json.dumps(costs.of("ffn").as_dict()))
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    again = calibrate(model, [text], costs=tmp_path / "report.json", **options)
    assert again.chosen == found.chosen
    assert found.chosen.kl < calibrate(model, [text], **options).chosen.kl
    assert f"x{found.chosen.speed_up:.2f} |" in repr(found)


# ---- measuring ----


class Clock:
    """Seconds of a token of each setting, as a machine that is not busy would take, and a noise that all share."""

    def __init__(self, per_block, per_check, of_channels):
        self._per_block, self._per_check, self._of_channels = per_block, per_check, of_channels
        self.n_measured = 0

    def __call__(self, runners, test, n_vocab, options, n_lead):
        self.n_measured += 1
        self.test = test
        noise = np.random.default_rng(0).uniform(1, 3, 48)
        for runner in runners[1:]:  # so that there are statistics
            for position in range(n_lead + 4):
                runner.generated([1], position)
        return np.array([self._of(runner) * 1e-3 * noise for runner in runners])

    def _of(self, runner):
        if not isinstance(runner, timing.SkippingRunner):
            return 40.0
        config = runner.controller.config
        if config.policy == "channels":
            return 40.0 - self._of_channels
        if config.max_skip == 0:
            attention = 0.1 * len(config.attention_layers or ())
            return 40.0 - attention - sum(self._per_block * (10 if il >= 12 else 1) for il in config.layers or ())
        return 41.0 + (self._per_check * (N_LAYER - 1) if config.policy == "ffn_skip" else 0.0)


@pytest.mark.parametrize("n_depth", [0, 64])
def test_what_blocks_checks_and_channels_take_is_found_out_in_turns(text, tmp_path, monkeypatch, n_depth):
    clock = Clock(0.8 * 15 / 42, 0.02, 3.0)  # 12 blocks of that, and 3 of ten times as much
    monkeypatch.setattr(timing, "time_test", clock)
    options = {**OPTIONS, "policies": ["channels"], "skip_ratio": 0.2, "output": tmp_path / "p.gguf"}
    found = calibrate(demo_model(), [text], costs="measured", n_depth=n_depth, **options)
    costs = found.costs
    assert clock.test.n_depth == n_depth
    assert costs.per_token == pytest.approx(40.0 * 2, rel=0.2)  # the median of the noise
    scale = costs.per_token / 40
    assert np.allclose(costs.per_block[:, FFN], 0.8 * scale)  # the last one too
    assert (costs.per_block[:, [KEYS_AND_VALUES, ATTENTION]] == 0).all()  # they are not calibrated
    assert costs.per_check == pytest.approx(0.02 * scale)
    assert (costs.per_byte[:, :2] == 0).all() and len(np.unique(costs.per_byte[:, 2:])) == 1
    assert any(note.startswith("costs measured in ") and " ms" in note for note in found.notes)
    assert found.chosen.saved == pytest.approx(0.2, abs=0.01)


def test_layers_on_another_device_are_measured_apart(text, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "time_test", Clock(0.2, 0.0, 3.0))
    monkeypatch.setattr(timing.llama_cpp, "llama_supports_gpu_offload", lambda: True)
    options = {**OPTIONS, "policies": ["channels"], "skip_ratio": 0.2, "tensors": "all", "n_gpu_layers": 5}
    found = calibrate(demo_model(), [text], costs="measured", output=tmp_path / "p.gguf", **options)
    per_block = found.costs.per_block * 40 / found.costs.per_token
    assert np.allclose(per_block[:12, FFN], 0.2) and np.allclose(per_block[12:, FFN], 2.0)
    assert np.allclose(per_block[:, ATTENTION], 0.1)
    with Llama(demo_model(), skip=None, n_ctx=256, verbose=False) as llm:
        n_bytes = {block.kind: (block.bytes_of_cache, block.bytes_per_token) for block in llm.blocks}
    keys_and_values = 0.2 * n_bytes["attention"][0] / n_bytes["ffn"][1]
    found = per_block[:12, KEYS_AND_VALUES] / keys_and_values
    assert (0.7 < found).all() and (found < 1.01).all()  # matrices of an FFN by channel are filled up


def test_a_machine_that_is_too_busy_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "time_test", Clock(-1.0, 0.0, 0.0))
    with pytest.raises(
        ValueError, match=r"costs: leaving out 15 FFN blocks made a token [0-9.]+ ms slower; this machine"
    ):
        calibrate(demo_model(), [text], costs="measured", output=tmp_path / "p.gguf", skip_ratio=0.2, **OPTIONS)


def test_a_calibration_goes_on_with_the_costs_that_it_began_with(text, tmp_path, monkeypatch):
    clock = Clock(1.5, 0.02, 3.0)
    monkeypatch.setattr(timing, "time_test", clock)
    n_told, told = itertools.count(), Bar.__call__

    def interrupted(bar, n):
        if next(n_told) == 20:
            raise KeyboardInterrupt
        told(bar, n)

    options = {**OPTIONS, "policies": ["channels"], "skip_ratio": 0.2, "output": tmp_path / "p.gguf"}
    monkeypatch.setattr(Bar, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(demo_model(), [text], costs="measured", **options)
    monkeypatch.setattr(Bar, "__call__", told)
    monkeypatch.setattr(evaluation, "measure_costs", lambda *_, **__: pytest.fail("measured again"))
    calibrate(demo_model(), [text], costs="measured", **options)
    assert clock.n_measured == 1


# ---- what is given ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"per_block": [[1, 2, 3]]},
            r"costs: per_block of .*costs.json is of shape \(1, 3\); \(16, 3\) for this model",
        ),
        ({"per_check": -1}, "costs: per_check of .*costs.json holds a value that is no time: -1"),
        (
            {"per_token": 1.0},
            "costs: per_token of .*costs.json is 1, and all FFN blocks together 88; these take time, and",
        ),
        ({"per_block": [[0, 0, 0]] * 16}, "and all FFN blocks together 0; these take time"),
        ({"per_byte": "x"}, "costs: .*costs.json is no JSON table of per_token, per_block, per_byte, per_check"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, change, message):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({**half_slow().as_dict(), **change}), encoding="utf-8")
    with Llama(demo_model(), skip=None, n_ctx=256, verbose=False) as llm, pytest.raises(ValueError, match=message):
        read_costs(path, llm)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"costs": null}'])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "costs.json"
    path.write_text(content, encoding="utf-8")
    with Llama(demo_model(), skip=None, n_ctx=256, verbose=False) as llm:
        with pytest.raises(ValueError, match=r"costs\.json is no JSON table of per_token"):
            read_costs(path, llm)


def test_options_that_do_not_go_together_are_refused(text, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.json"):
        calibrate(demo_model(), [text], costs=tmp_path / "no.json", output=tmp_path / "p.gguf", **OPTIONS)
    for options, message in (({"n_depth": -1}, "n-depth: -1"), ({"n_depth": 9}, "n-depth: says at how long a context")):
        with pytest.raises(ValueError, match=message):
            calibrate(demo_model(), [text], output=tmp_path / "p.gguf", **options, **OPTIONS)
