"""What `ffnskip bench` reports agrees with the model, the settings and the times measured; no test looks at speed."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from functools import partial
from pathlib import Path
from typing import ClassVar

import llama_cpp
import numpy as np
import pytest

from ffnskip_cpp import DecodeError, Llama, SkipConfig, Unsupported, cli
from ffnskip_cpp.benchmark import rows as bench_rows
from ffnskip_cpp.benchmark import runners
from ffnskip_cpp.benchmark.benchmark import bench
from ffnskip_cpp.benchmark.options import Options, settings_of
from ffnskip_cpp.benchmark.options import Test as BenchTest
from ffnskip_cpp.benchmark.random_model import TYPES, random_model, tensor_bytes, usable_in_place
from ffnskip_cpp.benchmark.rows import Times, limit_speed_up
from ffnskip_cpp.benchmark.runners import open_model, open_runners
from ffnskip_cpp.benchmark.shapes import SHAPES, Shape
from ffnskip_cpp.benchmark.timing import time_test
from ffnskip_cpp.blocks import ffn_blocks
from ffnskip_cpp.gguf_file.weights import WeightBytes, read_weight_bytes, weight_bytes
from ffnskip_cpp.measure.flops import ffn_flops
from ffnskip_cpp.profile import profile_path
from support.tiny_models import (
    write_bert,
    write_biased,
    write_exp_probs,
    write_llama,
    write_lora,
    write_moe,
    write_post_norm,
)

TINY = Shape("llama", 16, 64, 128, 4, 2, n_vocab=300, head_dim=16, n_ctx_train=512)
WIDE = Shape("qwen3", 4, 256, 512, 4, 2, n_vocab=300, head_dim=64, n_ctx_train=512, tied=True)
ADAPTIVE = range(2, 14)  # of 16 layers, an eighth is cold at either end

KEYS = {
    "policy",
    "skip_ratio",
    "tokens_per_second",
    "tokens_per_second_spread",
    "speed_up",
    "ideal_speed_up",
    "share_of_ideal",
    "limit_speed_up",
    "share_of_limit",
    "checks",
    "flops_saved",
    "model",
    "type",
    "threads",
    "n_prompt",
    "n_gen",
    "n_depth",
    "repetitions",
    "versions",
}


@pytest.fixture
def tiny(monkeypatch):
    """The name of a shape small enough for a test."""
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    return "tiny"


@pytest.fixture
def bench_cli(tiny, capsys):
    """Runs `ffnskip bench` on one thread; returns exit status, stdout and stderr."""

    def run(*arguments):
        status = cli.main(["bench", "-t", "1", "-n", "4", "-r", "2", *map(str, arguments)])
        return (status, *capsys.readouterr())

    return run


def logits_of(path, *, use_mmap=False, n_vocab=300):
    """Of the token 7, from a plain llama.cpp context."""
    params = llama_cpp.llama_model_default_params()
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if use_mmap else llama_cpp.LLAMA_LOAD_MODE_NONE
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_threads = 64, 1
    ctx = llama_cpp.llama_init_from_model(model, params)
    token = (llama_cpp.llama_token * 1)(7)
    assert llama_cpp.llama_decode(ctx, llama_cpp.llama_batch_get_one(token, 1)) == 0
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(ctx), shape=(n_vocab,)).copy()
    llama_cpp.llama_free(ctx)
    llama_cpp.llama_model_free(model)
    return logits


# ---- random models ----


@pytest.mark.parametrize("type_name", TYPES)
def test_random_model_of_each_type_has_finite_logits(type_name):
    with random_model(WIDE, type_name) as path:
        logits = logits_of(path, use_mmap=usable_in_place(type_name))
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1


def test_random_model_is_the_same_each_time_and_on_disk(tmp_path):
    with random_model(TINY, "q4_0") as path:
        first = logits_of(path)
        shutil.copyfile(path, tmp_path / "copy.gguf")
    with random_model(TINY, "q4_0") as path:
        np.testing.assert_array_equal(logits_of(path), first)
    np.testing.assert_array_equal(logits_of(tmp_path / "copy.gguf"), first)


def test_random_model_has_the_tensors_of_its_shape(tmp_path):
    with random_model(TINY, "f32") as path:
        assert read_weight_bytes(path) == weight_bytes(tensor_bytes(TINY, "f32"))


def test_equal_matrices_of_different_layers_differ():
    from gguf import GGUFReader

    with random_model(TINY, "f32") as path:
        data = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}
    assert not np.array_equal(data["blk.0.ffn_up.weight"], data["blk.1.ffn_up.weight"])
    assert np.linalg.matrix_rank(data["blk.0.ffn_up.weight"]) == 64  # repeating weights would lower it
    np.testing.assert_array_equal(data["blk.0.ffn_norm.weight"], 1)


def test_model_that_does_not_fit_into_memory_is_refused():
    huge = Shape("llama", 1000, 2**16, 2**18, 4, 4, n_vocab=32, head_dim=16, n_ctx_train=512)
    with pytest.raises(ValueError, match=r"takes \d+\.\d GB of memory"), random_model(huge, "f32"):
        pass


# ---- bytes and ideal speed-up ----


def test_ideal_speed_up_of_llama2_7b_by_hand():
    # Parameters: FFN 3 * 4096 * 11008, attention 4 * 4096**2, output 4096 * 32000; norms are a millionth of the rest.
    ffn, attention, output = 3 * 4096 * 11008, 4 * 4096**2, 4096 * 32000
    total = 32 * (ffn + attention) + output
    weights = weight_bytes(tensor_bytes("llama2-7b", "q4_0"))
    assert weights.total == pytest.approx(total * 18 / 32, rel=1e-3)  # a block of 32 weights takes 18 bytes
    for n_skipped in (10, 16):
        ideal = weights.ideal_speed_up({layer: 1.0 for layer in range(4, 4 + n_skipped)})
        assert ideal == pytest.approx(total / (total - n_skipped * ffn), rel=1e-3)


def test_embedding_is_read_only_where_it_is_the_output_too():
    sizes = {"token_embd.weight": 100, "blk.0.ffn_norm.weight": 1, "blk.0.ffn_up.weight": 7, "blk.0.attn_q.weight": 2}
    assert weight_bytes(sizes) == WeightBytes(110, {0: 7})
    assert weight_bytes({**sizes, "output.weight": 50}) == WeightBytes(60, {0: 7})


def test_a_token_reads_only_the_experts_it_uses(tmp_path):
    path = write_moe(tmp_path / "moe.gguf", n_layer=2, n_expert=4, n_expert_used=2)  # width 64, FFN 128 / 2 per expert
    expert, router = 3 * 64 * 64 * 4, 4 * 64 * 4
    assert read_weight_bytes(path).ffn_per_layer == {0: 2 * expert + router, 1: 2 * expert + router}


# ---- operations ----


@pytest.mark.parametrize(
    ("write", "multiplications"),  # per layer: width 64, FFN 128, or 64 an expert
    [
        (write_llama, [3 * 64 * 128] * 2),
        (write_biased, [2 * 64 * 128] * 2),  # no gate; biases and norms do not count
        (write_post_norm, [3 * 64 * 128] * 2),
        (write_moe, [4 * 64 + 2 * 3 * 64 * 64] * 2),  # the router, and 2 of 4 experts
        (write_exp_probs, [3 * 64 * 128, 4 * 64 + 2 * 3 * 64 * 64 + 3 * 64 * 64]),  # and the shared one
    ],
)
def test_flops_of_a_block_by_hand(write, multiplications, tmp_path):
    path = write(tmp_path / "model.gguf", n_layer=2)
    with Llama(str(path), skip=None, n_ctx=32, verbose=False) as llm:
        assert [ffn_flops(block) for block in ffn_blocks(llm.blocks)] == [2 * n for n in multiplications]


def test_table_4_of_the_paper():
    """FLOPs reduction of LLaMA-2 7B: its shares of all 32 blocks, cut to a digit. At 5 % it has 0.3B, not 0.4B."""
    llama2 = SHAPES["llama2-7b"]
    block = 2 * 3 * llama2.n_embd * llama2.n_ff
    for share, paper in ((0.1, 0.8), (0.2, 1.7), (0.3, 2.5), (0.5, 4.3)):
        assert int(share * llama2.n_layer * block / 1e8) / 10 == paper


# ---- what is reported ----


@pytest.mark.parametrize(
    "policies",
    [["ffn_skip,random", "--region", "any,adaptive"], ["ffn_skip,random,random_adaptive_region"]],
    ids=["region", "old name"],
)
def test_json_rows_agree_with_the_model_and_with_themselves(bench_cli, policies):
    status, out, err = bench_cli(
        "--shape", "tiny", "--type", "f32", "--policy", *policies, "--skip-ratio", "0.3,0.5", "-o", "json"
    )
    rows = json.loads(out)
    assert (status, err) == (0, "")
    assert [row["policy"] for row in rows[:4]] == ["dense", "idle", "checks", "all blocks"]
    assert [(row["policy"], row["skip_ratio"]) for row in rows[4:]] == [
        (policy, n / 16)
        for policy in ("ffn_skip", "random", "random in adaptive region")
        for n in (5, 8)  # round(0.3 * 16), round(0.5 * 16)
    ]
    assert [row["checks"] for row in rows] == [0, 0, len(ADAPTIVE), 0, 1, 1, 0, 0, 0, 0]
    assert rows[3]["skip_ratio"] == 15 / 16  # the last block always runs
    weights = weight_bytes(tensor_bytes(TINY, "f32"))
    for row in rows:
        assert row.keys() >= KEYS
        unread = row["skip_ratio"] * 16 * (3 * 64 * 128 * 4)
        assert row["ideal_speed_up"] == pytest.approx(weights.total / (weights.total - unread))
        assert row["flops_saved"] == pytest.approx(row["skip_ratio"] * 16 * 2 * (3 * 64 * 128))
        assert row["share_of_ideal"] == pytest.approx(row["speed_up"] / row["ideal_speed_up"])
        assert row["share_of_limit"] == pytest.approx(row["speed_up"] / row["limit_speed_up"])
        assert (row["model"], row["type"], row["threads"], row["n_gen"], row["repetitions"]) == ("tiny", "f32", 1, 4, 2)
        assert row["tokens_per_second"] > 0 and row["tokens_per_second_spread"] >= 0
        assert row["versions"].keys() == {"ffnskip", "llama_cpp"}
    assert [rows[0][key] for key in ("speed_up", "limit_speed_up", "share_of_limit")] == [1, 1, 1]


def test_fixed_blocks_are_those_in_the_middle_and_need_no_callback(bench_cli, tiny):
    status, out, err = bench_cli("--shape", "tiny", "--policy", "fixed,random", "--skip-ratio", "0,0.5", "-o", "json")
    rows = json.loads(out)
    assert (status, err) == (0, "")
    assert [(row["policy"], row["skip_ratio_target"], row["skip_ratio"], row["checks"]) for row in rows[3:]] == [
        ("all blocks", None, 15 / 16, 0),
        ("fixed layers", 0, 0, 0),
        ("fixed layers", 0.5, 0.5, 0),
        ("random", 0, 0, 0),
        ("random", 0.5, 0.5, 0),
    ]

    def fixed(**cold):
        options, test = Options(shape=tiny, policy="fixed", skip_ratio=0.25, **cold), BenchTest(n_gen=1)
        settings = settings_of(options, test)
        with open_model(options) as (model, _), open_runners(model, settings, test, 1, options) as found:
            by_name = {setting.name: runner.controller for setting, runner in zip(settings[1:], found[1:])}
            hooked = {name for name, controller in by_name.items() if controller.hooked}
            return by_name["fixed layers"].config.layers, hooked

    assert fixed() == ((5, 6, 7, 8), {"all blocks", "fixed layers"})
    assert fixed(cold_s=7) == ((9, 10, 11, 12), {"all blocks", "fixed layers"})
    assert fixed(cold_s=1, cold_e=8)[0] == (2, 3, 4, 5)


def test_a_block_skipped_by_some_tokens_counts_by_their_share(bench_cli):
    """Random policies skip other blocks for each token, and as many."""
    _, out, _ = bench_cli("--shape", "tiny", "--type", "f32", "--policy", "random", "--skip-ratio", 0.25, "-o", "json")
    assert json.loads(out)[-1]["flops_saved"] == pytest.approx(4 * 2 * 3 * 64 * 128)


@pytest.fixture
def wide(monkeypatch):
    """The name of a shape of which no group of outputs has to be filled up: a product reads what the file has."""
    monkeypatch.setitem(SHAPES, "wide", WIDE)
    return "wide"


@pytest.mark.parametrize(
    ("type_name", "bytes_each", "code"), [("f32", 4, 4), ("q4_0", 18 / 32, 1 / 2), ("q8_0", 34 / 32, 1)]
)
def test_rows_of_channels_agree_with_the_model(bench_cli, wide, type_name, bytes_each, code):
    """Codes are left out, the scales of blocks are read in any case."""
    status, out, err = bench_cli("--shape", wide, "--type", type_name, "--policy", "channels,random", "-o", "json",
                                 "-d", "0,5", "-n", "6", "--no-warmup")  # fmt: skip
    assert (status, err) == (0, "")
    ffn = 4 * 3 * 256 * 512  # elements
    weights = weight_bytes(tensor_bytes(WIDE, type_name))
    rows = json.loads(out)
    for first in range(0, len(rows), 9):
        policies = [(row["policy"], row["skip_ratio_target"]) for row in rows[first : first + 9]]
        assert policies[:4] == [("dense", None), ("idle", None), ("checks", None), ("all blocks", None)]
        assert policies[4:] == [
            *(("random", ratio) for ratio in (0.3, 0.5)),
            *[("channels, all kept", 0), ("channels", pytest.approx(1 / 3)), ("channels", 0.5)],
        ]
    for row in rows:
        if not row["policy"].startswith("channels"):
            assert row["weights_bytes"] == 0 and row["limit_speed_up"] > 0
            continue
        assert row["limit_speed_up"] is row["share_of_limit"] is None  # no block is left out
        ratio = row["skip_ratio"]
        assert ratio == pytest.approx(row["skip_ratio_target"], abs=0.06)  # 16 other tokens tell the thresholds
        assert row["ideal_speed_up"] == pytest.approx(weights.total / (weights.total - ratio * ffn * bytes_each))
        assert row["flops_saved"] == pytest.approx(ratio * 2 * ffn * bytes_each / code, rel=1e-3, abs=1)
        assert ffn * bytes_each < row["weights_bytes"] < 1.2 * ffn * bytes_each
        assert (row["checks"], row["tensors"]) == (0, "ffn")
    assert len(rows) == 4 * 9  # -n 4 and -n 6, -d 0 and -d 5


def test_all_tensors_are_those_of_attention_too(bench_cli, wide):
    _, out, _ = bench_cli("--shape", wide, "--type", "f32", "--policy", "channels", "--tensors", "all", "-o", "json",
                          "--skip-ratio", 0.4)  # fmt: skip
    *_, kept, channels = json.loads(out)
    elements = 4 * (3 * 256 * 512 + (2 * 4 + 2 * 2) * 64 * 256)  # gate, up, down; Q and O, K and V
    assert (kept["skip_ratio"], kept["flops_saved"]) == (0, 0)
    assert channels["skip_ratio"] == pytest.approx(0.4, abs=0.06)
    assert channels["flops_saved"] == pytest.approx(channels["skip_ratio"] * 2 * elements, rel=1e-3)
    assert channels["weights_bytes"] > 4 * elements


def test_outputs_that_fill_groups_up_are_read_and_counted(bench_cli):
    """ffn_down of this shape has 64 outputs, of which weights by channel store 128."""
    _, out, _ = bench_cli("--shape", "tiny", "--type", "f32", "--policy", "channels", "-o", "json")
    weights = weight_bytes(tensor_bytes(TINY, "f32"))
    kept = json.loads(out)[2]
    assert kept["ideal_speed_up"] == pytest.approx(weights.total / (weights.total + 16 * 4 * 64 * 128))


def test_columns_are_shown_where_a_row_has_something_in_them(bench_cli):
    """The memory of copies, and what the time of blocks allows."""
    for policy, shown in (
        ("channels", ["copies"]),
        ("channels,random", ["limit", "of limit", "copies"]),
        ("random", ["limit", "of limit"]),
    ):
        _, out, _ = bench_cli("--shape", "tiny", "--type", "f32", "--policy", policy)
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.split("\n\n")[0].splitlines()]
        after = rows[0].index("of ideal") + 1
        assert rows[0][after:] == shown
        assert rows[2][after:] == [{"limit": "1.000", "of limit": "100.0 %", "copies": ""}[name] for name in shown]
        if "copies" in shown:
            assert rows[-1][-1].endswith(" MiB") and set(rows[-1][after:-1]) <= {""}


def test_speed_up_is_the_median_of_ratios_within_the_round():
    dense = np.array([1.0, 2.0, 4.0, 8.0, 16.0])  # a machine that slows down
    seconds = dense / np.array([1.0, 1.1, 1.2, 1.3, 1.4])
    row = bench_rows._speeds(1, dense, seconds)
    assert (row["speed_up_q1"], row["speed_up"], row["speed_up_q3"]) == pytest.approx((1.1, 1.2, 1.3))
    assert row["tokens_per_second"] == pytest.approx(1.2 / 4)
    assert row["tokens_per_second_spread"] == pytest.approx(1.1 / 2 - 1.3 / 8)


def test_the_limit_is_what_the_time_of_the_blocks_left_out_allows():
    """A token takes 10 ms, of which 8 blocks take 4; the callback 1 ms more, with all of them and without. On a machine
    that slows down."""
    slower = np.array([1.0, 1.5, 2.0])
    times = Times(10 * slower, 11 * slower, 7 * slower, 8)
    for n_skipped, milliseconds in ((0, 10), (2, 9), (4, 8), (8, 6), (2.5, 8.75)):
        assert limit_speed_up(times, n_skipped) == pytest.approx(10 / milliseconds)
    assert limit_speed_up(Times(times.dense, times.with_blocks), 2) is None


@pytest.mark.parametrize("setting", range(3))
def test_tokens_that_are_disturbed_do_not_move_the_limit(setting):
    seconds = np.array([[10.0], [10.0], [6.0]]).repeat(5, axis=1)  # dense, idle, without its 8 blocks
    seconds[setting, 2:4] = 60.0
    assert limit_speed_up(Times(*seconds, 8), 4) == pytest.approx(10 / 8)


class Recorder:
    """Stands in for a runner; `log` has what all of them were asked to do."""

    log: ClassVar[list]
    finds_thresholds = False

    def __init__(self, name):
        self.name = name

    def state(self):
        return f"state of {self.name}"

    def reset(self, state):
        self.log.append((self.name, "reset", state))

    def reset_stats(self):
        """Not a thing that tests look at."""

    def prompt(self, tokens, position):
        self.log.append((self.name, "prompt", *tokens, position))

    def generated(self, tokens, position):
        self.log.append((self.name, "generated", *tokens, position))


@pytest.fixture
def recorders():
    Recorder.log = []
    return [Recorder("a"), Recorder("b")]


def test_every_setting_decodes_the_same_tokens_and_no_one_always_goes_first(recorders):
    seconds = time_test(recorders, BenchTest(n_gen=2), 100, Options(repetitions=2, warm_up=False))
    (_, _, first, _), (_, _, second, _) = [e for e in Recorder.log if e[:2] == ("a", "generated")][:2]
    reset = [("a", "reset", None), ("b", "reset", None)]
    assert Recorder.log == [
        *[*reset, ("a", "generated", first, 0), ("b", "generated", first, 0)],
        *[("b", "generated", second, 1), ("a", "generated", second, 1)],
        *[*reset, ("b", "generated", first, 0), ("a", "generated", first, 0)],
        *[("a", "generated", second, 1), ("b", "generated", second, 1)],
    ]
    assert seconds.shape == (2, 4) and (seconds > 0).all()


def test_depth_is_filled_once_and_every_repetition_of_every_setting_starts_from_it(recorders):
    seconds = time_test(recorders, BenchTest(n_prompt=3, n_depth=5), 100, Options(repetitions=2, warm_up=False))
    (_, _, *tokens, position), *after = Recorder.log[1:]
    assert (len(tokens), position) == (5, 0)
    assert [entry for entry in after if entry[1] == "reset"] == [(n, "reset", "state of a") for n in "abab"]
    prompts = [entry for entry in after if entry[1] == "prompt"]
    assert [entry[0] for entry in prompts] == ["a", "b", "b", "a"]
    assert {(len(entry) - 3, entry[-1]) for entry in prompts} == {(3, 5)}
    assert seconds.shape == (2, 2)


def test_settings_that_find_thresholds_decode_a_lead_once_and_all_start_behind_it(recorders):
    recorders.append(Recorder("c"))
    recorders[1].finds_thresholds = True
    seconds = time_test(recorders, BenchTest(n_gen=1, n_depth=2), 100, Options(repetitions=2, warm_up=False), n_lead=3)
    depth, *after = Recorder.log[1:]
    lead = after[:8]
    assert [entry[:2] for entry in lead] == [(n, do) for n in "ab" for do in ("reset", *["generated"] * 3)]
    assert [entry[2] for entry in lead if entry[1] == "reset"] == ["state of a"] * 2
    assert [entry[-1] for entry in lead if entry[1] == "generated"] == [2, 3, 4] * 2
    timed = [entry for entry in after[8:] if entry[1] == "generated"]
    assert [(entry[0], entry[-1]) for entry in timed] == [(n, 5) for n in "abcbca"]
    assert {entry[2] for entry in after[8:] if entry[1] == "reset"} == {"state of a"}
    assert (len(depth) - 3, seconds.shape) == (2, (3, 2))


def test_warm_up_is_a_run_that_is_not_timed(recorders):
    def n_decodes(warm_up):
        Recorder.log.clear()
        seconds = time_test(recorders, BenchTest(n_gen=4), 100, Options(repetitions=1, warm_up=warm_up))
        assert seconds.shape == (2, 4)
        return sum(entry[1] == "generated" for entry in Recorder.log)

    assert (n_decodes(False), n_decodes(True)) == (2 * 4, 2 * 4 + 2 * 2)


def test_every_runner_says_with_what_status_llama_cpp_failed(tmp_path):
    test, options = BenchTest(n_prompt=8), Options(model_path=write_llama(tmp_path / "model.gguf", n_layer=4))
    settings = settings_of(options, test)
    with runners.open_model(options) as (model, _), runners.open_runners(model, settings, test, 1, options) as opened:
        for runner in opened:
            n_ctx = llama_cpp.llama_n_ctx(runner.ctx)
            for begin in range(0, n_ctx, 8):
                runner.prompt(list(range(8)), begin)
            with pytest.raises(DecodeError, match="llama_decode returned 1") as caught:
                runner.prompt([1], n_ctx)
            assert caught.value.status == 1


@pytest.mark.parametrize("write", [write_llama, partial(write_post_norm, sliding_window=4)])
def test_a_setting_that_starts_from_the_filled_context_computes_what_one_evaluation_does(write, tmp_path):
    """The logits of a skipping setting at depth 6 that skips nothing are those of plain llama.cpp after 6 tokens."""
    tokens = list(range(40, 47))
    path = write(tmp_path / "model.gguf", n_layer=4)
    test = BenchTest(n_gen=1, n_depth=6)
    settings = settings_of(Options(), test)[:2]
    options = Options(model_path=path)
    with runners.open_model(options) as (model, _), runners.open_runners(model, settings, test, 1, options) as opened:
        plain, skipping = opened
        n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        plain.prompt(tokens[:6], 0)
        state = plain.state()
        plain.generated(tokens[6:], 6)
        skipping.prompt([9, 9, 9], 0)  # is forgotten
        skipping.reset(state)
        skipping.generated(tokens[6:], 6)
        expected, got = (
            np.ctypeslib.as_array(llama_cpp.llama_get_logits(runner.ctx), shape=(n_vocab,)) for runner in opened
        )
        assert np.std(expected) > 0.1
        np.testing.assert_array_equal(got, expected)


def test_a_row_per_combination_under_the_names_of_llama_bench(bench_cli):
    _, out, _ = bench_cli(
        *["--shape", "tiny", "--type", "f32", "--skip-ratio", 0.25, "-o", "json", "--no-warmup"],
        *["-p", "0,8", "-p", "4", "-d", "0,32", "-n", "3"],  # -n 4 is the fixture's
    )
    tests = [(r["test"], r["n_prompt"], r["n_gen"], r["n_depth"]) for r in json.loads(out) if r["policy"] == "dense"]
    assert tests == [
        *[("pp8", 8, 0, 0), ("pp4", 4, 0, 0), ("tg4", 0, 4, 0), ("tg3", 0, 3, 0)],
        *[("pp8 @ d32", 8, 0, 32), ("pp4 @ d32", 4, 0, 32), ("tg4 @ d32", 0, 4, 32), ("tg3 @ d32", 0, 3, 32)],
    ]


@pytest.mark.parametrize("flash_attention", ["0", "1", "on", "off", "auto"])
def test_prompt_alone_is_measured(tiny, capsys, flash_attention):
    arguments = ["--shape", tiny, "--type", "f32", "-t", "1,2", "-n", "0", "-p", "8", "-r", "2", "-o", "json"]
    assert cli.main(["bench", *arguments, "-fa", flash_attention]) == 0
    assert [(row["test"], row["policy"], row["threads"]) for row in json.loads(capsys.readouterr().out)] == [
        (*["pp8", "dense"], 1), (*["pp8", "idle"], 1), (*["pp8", "dense"], 2), (*["pp8", "idle"], 2)
    ]  # fmt: skip


def test_a_ratio_of_0_skips_and_checks_nothing(bench_cli):
    _, out, _ = bench_cli("--shape", "tiny", "--type", "f32", "--skip-ratio", "0,0.01", "-o", "json")
    for row in json.loads(out)[4:]:
        keys = ("policy", "skip_ratio", "checks", "flops_saved", "ideal_speed_up")
        assert [row[key] for key in keys] == ["ffn_skip", 0, 0, 0, 1]
        assert row["share_of_ideal"] == row["share_of_limit"] == row["speed_up"]


def test_cold_regions_are_those_asked_for(bench_cli):
    _, out, _ = bench_cli(
        *["--shape", "tiny", "--type", "f32", "--cold-s", 1, "--cold-e", 15, "--skip-ratio", "0.8", "-o", "json"]
    )
    checks, _, skip = json.loads(out)[2:]
    assert checks["checks"] == 14
    assert skip["skip_ratio"] == 13 / 16  # 12 of 16 with the default regions, at most
    assert (skip["cold_s"], skip["cold_e"]) == (1, 15)


def test_prompt_speed_is_reported_for_plain_llama_cpp_and_for_ours(bench_cli):
    _, out, _ = bench_cli("--shape", "tiny", "--type", "q8_0", "-p", 8, "-d", 0, "--skip-ratio", 0.25, "-o", "jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    tests = [(row["test"], row["policy"]) for row in rows]
    assert tests[:2] == [("pp8", "dense"), ("pp8", "idle")]
    assert tests[2:] == [("tg4", policy) for policy in ("dense", "idle", "checks", "all blocks", "ffn_skip")]
    assert {key for row in rows for key in row} == set(rows[0])


def test_model_file_is_measured_under_its_name_and_type(bench_cli, tmp_path):
    path = write_llama(tmp_path / "file.gguf", n_layer=16)
    _, out, _ = bench_cli("-m", path, "--skip-ratio", 0.25, "-o", "json")
    rows = json.loads(out)
    assert {(row["model"], row["type"]) for row in rows} == {("file.gguf", "f32")}
    assert rows[-1]["skip_ratio"] == 0.25


def test_markdown_has_a_row_per_setting_and_says_how_it_was_measured(bench_cli):
    _, out, _ = bench_cli("--shape", "tiny", "--type", "f32", "--skip-ratio", 0.25)
    table, notes = out.split("\n\n", 1)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(line) for line in table.splitlines()}) == 1
    assert [row[4] for row in cells[2:]] == ["dense", "idle", "checks", "all blocks", "ffn_skip"]
    assert [row[5] for row in cells[2:]] == ["0.0 %", "0.0 %", "0.0 %", "93.8 %", "25.0 %"]
    assert "sim_threshold" in notes and "ffnskip" in notes


def test_python_gives_what_the_command_prints(tiny):
    """The repr is the table; several values may be given as one."""
    result = bench(shape=tiny, n_threads=1, n_gen=2, repetitions=1, skip_ratio=0.25)
    assert [row.policy for row in result.rows] == ["dense", "idle", "checks", "all blocks", "ffn_skip"]
    assert [row["skip_ratio"] for row in result.as_dict()["rows"]] == [0, 0, 0, 15 / 16, 0.25]
    assert repr(result).startswith("| model") and repr(result).count("\n| tiny") == 5
    with pytest.raises(ValueError, match="give one of the two, a GGUF file or the name of a shape"):
        bench()


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["-o", "a.json"], "[\n  {"),
        (["-o", "a.txt", "--format", "jsonl"], '{"test": '),
        (["-o", "./json"], "| model"),  # without the dot it is the format
    ],
)
def test_the_result_goes_into_a_file(bench_cli, tmp_path, monkeypatch, words, begins):
    monkeypatch.chdir(tmp_path)
    status, out, _ = bench_cli("--shape", "tiny", "--type", "f32", "-r", "1", *words)
    assert (status, out) == (0, "")
    assert Path(words[1]).read_text().startswith(begins)


@pytest.mark.parametrize("what", ["model", "link", "profile", "found profile", "adapter", "another model"])
def test_the_result_takes_the_place_of_no_model(bench_cli, profiled, tmp_path, what):
    """By whatever name; and a table that is there already is replaced."""
    link = tmp_path / "link.csv"
    link.symlink_to(profiled)
    adapter = write_lora(tmp_path / "lora.gguf", n_layer=12)
    other = tmp_path / "other.gguf"
    words, output = {
        "model": ([], profiled),
        "link": ([], link),
        "profile": (["--profile", other], other),
        "found profile": (["--profile", "auto"], profile_path(profiled)),
        "adapter": (["--lora", f"{adapter}:0.5"], adapter),
        "another model": ([], other),
    }[what]
    before = output.read_bytes()
    status, out, err = bench_cli(profiled, *words, "-o", output)
    assert (status, out) == (1, "") and err.count("\n") == 1 and "; give another name" in err
    assert output.read_bytes() == before and link.is_symlink()


def test_csv_can_be_read_back(bench_cli):
    _, out, _ = bench_cli("--shape", "tiny", "--type", "f32", "--skip-ratio", 0.25, "-o", "csv")
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["policy"] for row in rows] == ["dense", "idle", "checks", "all blocks", "ffn_skip"]
    assert float(rows[-1]["skip_ratio"]) == 0.25
    assert rows[0].keys() >= KEYS


# ---- profiles and adapters ----


@pytest.fixture
def profiled(tmp_path):
    """A model, its own profile (a fixed set) and another one (Algorithm 1 that always trips)."""
    path = write_llama(tmp_path / "model.gguf", n_layer=12)
    with Llama(str(path), skip=SkipConfig("fixed", layers=[2, 5, 7]), verbose=False) as llm:
        llm.save_profile(profile_path(path))
        llm.skip = SkipConfig(sim_threshold=-1, cold_s=1, cold_e=9, max_skip=4, warm_up_index=20)
        llm.save_profile(tmp_path / "other.gguf")
    return path


def test_profiles_are_measured_side_by_side(bench_cli, profiled):
    other = profiled.with_name("other.gguf")
    rows = json.loads(bench_cli("-m", profiled, "--profile", "auto", "--profile", other, "-o", "json")[1])
    found = {row["policy"]: (row["skip_ratio"], row["checks"], row["skip_ratio_target"]) for row in rows}
    assert list(found) == ["dense", "idle", "checks", "all blocks", "profile model.ffnskip.gguf", "profile other.gguf"]
    assert found["profile model.ffnskip.gguf"] == (3 / 12, 0, None)
    assert found["profile other.gguf"] == (pytest.approx(4 / 12), 1, None)


def test_a_ratio_given_besides_is_measured_too(bench_cli, profiled):
    rows = json.loads(bench_cli("-m", profiled, "--profile", "auto", "--skip-ratio", "0.5", "-o", "json")[1])
    assert [row["policy"] for row in rows[4:]] == ["ffn_skip", "profile model.ffnskip.gguf"]


def test_a_profile_that_is_missing_or_of_another_model_is_refused(bench_cli, profiled, tmp_path):
    another = write_llama(tmp_path / "another.gguf", n_layer=14)
    for arguments, message in (
        (["-m", another, "--profile", "auto"], f"there is no profile beside or in {another}"),
        (["-m", another, "--profile", profiled.with_name("other.gguf")], "it is for model"),
        (["-m", profiled, "--profile", "none.gguf"], "none.gguf"),
        (["-m", profiled, "--lora", "none.gguf"], "lora: none.gguf: no such file"),
        (["-m", profiled, "--lora", profiled], "is no LoRA adapter of this model"),
    ):
        status, out, err = bench_cli(*arguments)
        assert (status, out) == (1, "") and err.startswith("ffnskip bench: ") and message in err


def test_an_adapter_is_in_every_context(profiled, tmp_path):
    """Its logits are those of llama_cpp with the same adapter, up to rounding, and not those without."""
    adapter = write_lora(tmp_path / "lora.gguf", n_layer=12)
    options = Options(model_path=profiled, lora=f"{adapter}:0.5", n_gen=1, skip_ratio=0.0)
    with open_model(options) as (model, _), open_runners(model, settings_of(options, BenchTest(n_gen=4)),
                                                         BenchTest(n_gen=4), 1, options) as runners:  # fmt: skip
        logits = []
        for runner in runners:
            for position, token in enumerate([5, 9, 70]):
                runner.generated([token], position)
            n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
            logits.append(np.ctypeslib.as_array(llama_cpp.llama_get_logits(runner.ctx), shape=(n_vocab,)).copy())
    expected = []
    for lora in ({"lora_path": str(adapter), "lora_scale": 0.5}, {}):
        llm = llama_cpp.Llama(str(profiled), logits_all=True, verbose=False, **lora)
        with contextlib.closing(llm):
            llm.eval([5, 9, 70])
            expected.append(llm.scores[2].copy())
    assert len(logits) == 5 and abs(expected[0] - expected[1]).max() > 0.5
    for found in (*logits[:3], logits[4]):  # but where all blocks are left out
        np.testing.assert_allclose(found, expected[0], atol=0.05)


# ---- refusals ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "tiny", "--type", "q4_k"], "type q4_k packs 256 weights"),
        (["--shape", "tiny", "--skip-ratio", "0.9"], "can skip at most 11 of 16"),
        (["--shape", "tiny", "-p", "8", "--skip-ratio", "0.9"], "can skip at most 11 of 16"),
        (["--shape", "tiny", "--policy", "fixed", "--skip-ratio", "1"], "can skip at most 15 of 16"),
        (
            ["--shape", "tiny", "--policy", "fixed", "--cold-s", "9"],
            "asks for 8; policy 'fixed' can skip at most 6 of 16",
        ),
        (["--shape", "tiny", "--cold-s", "14"], "cold_s"),
        (["--shape", "tiny", "--cold-e", "16"], "cold_e"),
        (["-m", "missing.gguf"], "missing.gguf: no such file"),
        (["-m", __file__], "not a GGUF file"),
    ],
)
def test_what_does_not_suit_the_model_is_refused_in_one_line(bench_cli, arguments, message):
    status, out, err = bench_cli(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("ffnskip bench: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "llama9"], "shape 'llama9' is unknown; known are llama2-7b, "),
        (["--shape", "tiny", "--type", "q3"], "type 'q3' is unknown; known are f32, "),
        (["--shape", "tiny", "--skip-ratio", "1.5"], "skip-ratio: 1.5 is outside [0, 1]"),
        (["--shape", "tiny", "--skip-ratio", "nan"], "skip-ratio: nan is outside [0, 1]"),
        (["--shape", "tiny", "--policy", "short_gpt"], "policy: 'short_gpt' is measured as a profile"),
        (["--shape", "tiny", "--policy", "bogus"], "policy: 'bogus' is not known; those measured by skip ratio: ffn_s"),
        (["--shape", "tiny", "--region", "any"], "region: any is for policy random"),
        (["--shape", "tiny", "--policy", "random", "--region", "all"], "region: 'all' is not known"),
        (["--shape", "tiny", "--tensors", "all"], "tensors: all is for policy channels"),
        (["--shape", "tiny", "--profile", "auto"], "profile: random weights (shape) have none"),
        (["--shape", "tiny", "-n", "-1"], "n-gen: -1 is too few; at least 0"),
        (["--shape", "tiny", "-d", "0,-1"], "n-depth: -1 is too few; at least 0"),
        (["--shape", "tiny", "-d", str(2**31)], "n-depth: 2147483648 is too many; at most 16777216"),
        (["--shape", "tiny", "-t", "513"], "threads: 513 is too many; at most 512"),
        (["--shape", "tiny", "-p", "-1"], "n-prompt: -1 is too few"),
        (["--shape", "tiny", "-r", "0"], "repetitions: 0 is too few"),
        (["--shape", "tiny", "-t", "0"], "threads: 0 is too few"),
        (["--shape", "tiny", "--policy", "channels", "--skip-ratio", "7"], "skip-ratio: 7 is outside [0, 1]"),
    ],
)
def test_a_wrong_option_is_bad_usage(bench_cli, arguments, message):
    status, out, err = bench_cli(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("ffnskip bench: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("name", ["skip_ratio", "policy", "region"])
def test_an_empty_list_is_refused(tiny, name):
    with pytest.raises(ValueError, match=f"{name.replace('_', '-')}: the list is empty; name at least one"):
        bench(shape=tiny, n_gen=1, **{name: []})


def test_nothing_to_measure_is_refused(tiny, capsys):
    assert cli.main(["bench", "--shape", tiny, "-n", "0"]) == 2
    assert capsys.readouterr().err.startswith("ffnskip bench: n-prompt and n-gen: 0 and 0 leave nothing to measure")


@pytest.mark.parametrize("option", ["-p", "-n", "-d", "-t", "--skip-ratio"])
@pytest.mark.parametrize("value", ["", "1,", "x", "1,,2"])
def test_a_list_that_is_none_is_bad_usage(option, value, tiny, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "--shape", tiny, option, value])
    assert end.value.code == 2
    assert (
        f"invalid list of {'float' if option == '--skip-ratio' else 'int'} value: {value!r}" in capsys.readouterr().err
    )


def test_contexts_that_do_not_fit_into_memory_are_refused(bench_cli, monkeypatch):
    free = iter([50e9, 40e9, 40e9])
    monkeypatch.setattr(runners, "available_memory", lambda: next(free))
    status, out, err = bench_cli("--shape", "tiny", "--type", "f32", "--skip-ratio", "0.1,0.2,0.3")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "6 more contexts of 10.0 GB do not fit into memory" in err


def test_a_context_that_llama_cpp_refuses_is_named(bench_cli, monkeypatch):
    monkeypatch.setattr(llama_cpp, "llama_init_from_model", lambda model, params: None)
    status, out, err = bench_cli("--shape", "tiny")
    assert (status, out) == (1, "")
    assert err == "ffnskip bench: llama.cpp can't make a context of 1 tokens; -v shows why\n"


def test_damaged_model_is_refused_in_one_line(bench_cli, tmp_path):
    path = write_llama(tmp_path / "cut.gguf", n_layer=4)
    data = path.read_bytes()
    for size in (0, 10, 1000, len(data) // 2):
        path.write_bytes(data[:size])
        status, out, err = bench_cli("-m", path)
        assert (status, out, err.count("\n")) == (1, "", 1)


def test_model_without_a_block_to_skip_is_refused(tmp_path):
    encoder = write_bert(tmp_path / "bert.gguf")
    with pytest.raises(Unsupported, match="nomic-bert"):
        bench(encoder, n_gen=2)
