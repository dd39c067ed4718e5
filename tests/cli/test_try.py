"""`ffnskip try`: its figures agree with NumPy, its verdict with a rule written down, and nothing is left behind."""

from __future__ import annotations

import json
import math
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import demo_world
from ffnskip_cpp import Llama, SkipConfig, UnsupportedModelError, cli, demo_model, try_model
from ffnskip_cpp._core import RowKind
from ffnskip_cpp.benchmark.in_turn import _speed
from ffnskip_cpp.measure.quality import Comparison, Quality
from ffnskip_cpp.trial import smaller, subjects, work
from ffnskip_cpp.trial.rows import Row
from ffnskip_cpp.trial.search import grow
from ffnskip_cpp.trial.texts import USERS_LENGTH
from ffnskip_cpp.trial.verdict import better_quantisation, judge, verdict
from support.channel_bytes import NO_CHANNELS, ffn_bytes
from support.logits import log_softmax

WARM_UP = 30
OPTIONS = {"n_threads": 1, "n_gpu_layers": 0, "seconds": 300}  # never over: what ends a trial of this model is its text


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    world, rng = demo_world.World(0), random.Random("try")
    path = tmp_path_factory.mktemp("text") / "registers.txt"
    path.write_text("\n".join(world.register_document(rng)[0].text for _ in range(6)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory):
    """The demo model without the profile in it."""
    from ffnskip_cpp.profile import strip_profile

    path = tmp_path_factory.mktemp("model") / "plain.gguf"
    path.write_bytes(Path(demo_model()).read_bytes())
    strip_profile(path)
    return path


@pytest.fixture(scope="module")
def found(plain_model, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "MOST_TOKENS", 200)  # of the search
        return try_model(plain_model, text=[text], skip_ratio=[0.125, 0.25], **OPTIONS)


@pytest.fixture
def try_cli(capsys, monkeypatch):
    """Runs `ffnskip try`, with a shorter search; returns exit status, stdout and stderr."""
    monkeypatch.setattr(subjects, "MOST_TOKENS", 64)
    monkeypatch.setattr(work, "TIMED_TOKENS", 8)

    def run(*arguments):
        status = cli.main(["try", "-t", "1", "-ngl", "0", "--time", "10", *map(str, arguments)])
        return (status, *capsys.readouterr())

    return run


# ---- what is measured ----


@pytest.mark.parametrize("kind", ["search", "channels"])
def test_quality_is_that_of_every_other_chunk_past_its_warm_up(found, plain_model, text, kind):
    length = WARM_UP + USERS_LENGTH
    row = next(row for row in found.rows if row.kind == kind and row.label == "25 %")
    config = (
        SkipConfig("fixed", layers=row.config.layers, warm_up_index=WARM_UP)
        if kind == "search"
        else SkipConfig("channels", skip_ratio=0.25, warm_up_index=WARM_UP)
    )
    skipped = []
    kl, same, nll = [], [], np.zeros(2)
    with Llama(str(plain_model), skip=None, n_ctx=512, verbose=False) as llm:
        tokens = llm.tokenize(text.read_bytes(), add_bos=False)
        per_chunk = length - 1  # and a start token
        chunks = [tokens[i : i + per_chunk] for i in range(0, len(tokens), per_chunk)]
        chunks = [[llm.token_bos(), *chunk] for chunk in chunks if len(chunk) + 1 >= WARM_UP + USERS_LENGTH // 4][::2]
        for chunk in chunks:
            n_free = len(chunk) - WARM_UP
            kinds = [RowKind.prompt] + [RowKind.warm_up] * (WARM_UP - 1) + [RowKind.skippable] * n_free
            p = log_softmax(llm.forward(chunk)[WARM_UP:-1])
            llm.skip = config
            llm.reset_stats()
            q = log_softmax(llm.forward(chunk, kinds)[WARM_UP:-1])
            may_skip = n_free / (len(chunk) - 1)  # of the tokens that are counted
            skipped += [llm.stats.skip_ratio / may_skip] * len(q)
            llm.skip = None
            kl.append((np.exp(p) * (p - q)).sum(axis=1))
            same.append(p.argmax(axis=1) == q.argmax(axis=1))
            targets = (np.arange(len(p)), chunk[WARM_UP + 1 :])
            nll += [-p[targets].sum(), -q[targets].sum()]
    n = sum(map(len, kl))
    assert found.n_tokens == n
    assert row.kl == pytest.approx(np.concatenate(kl).mean(), rel=1e-3)
    assert row.top1_agreement == pytest.approx(np.concatenate(same).mean(), abs=2 / n)
    assert row.perplexity_ratio == pytest.approx(math.exp((nll[1] - nll[0]) / n), rel=1e-4)
    assert row.skip_ratio == pytest.approx(np.mean(skipped), rel=1e-3)
    assert row.skip_ratio == pytest.approx(0.25, abs=0.03)


def test_every_ratio_is_tried_with_a_search_and_the_papers_values_next_to_smaller_quantisations(found, plain_model):
    tried = [(row.kind, row.label) for row in found.rows]
    assert tried[:4] == [("search", "12.5 %"), ("paper", "12.5 %"), ("search", "25 %"), ("paper", "25 %")]
    assert tried[4:6] == [("channels", "12.5 %"), ("channels", "25 %")]
    assert [kind for kind, _ in tried[6:]] == ["quantisation"] * 2
    assert [row.skip_ratio for row in found.rows[:4]] == pytest.approx([0.125, 0.125, 0.25, 0.25])
    assert [row.skip_ratio for row in found.rows[4:6]] == pytest.approx([0.125, 0.25], abs=0.03)
    assert [len(row.config.layers) for row in found.rows if row.kind == "search"] == [2, 4]
    assert all(row.size < 0.97 and row.config is None and not row.quoted for row in found.rows[6:])
    assert found.weights_bytes > ffn_bytes(plain_model)
    assert found.complete


def test_channels_cost_less_than_blocks_and_are_judged_in_their_place(found):
    kl = {(row.kind, row.label): row.kl for row in found.rows}
    assert kl["channels", "25 %"] < 0.5 * kl["search", "25 %"]
    assert found.verdict.startswith("12.5 % by channels: ") and "; 25 % by channels: " in found.verdict
    page = " ".join(repr(found).split())
    assert "| 25 %: channels, found while generating |" in page
    assert f"weights are stored once more: {found.weights_bytes / 2**20:,.0f} MiB of memory" in page


def test_a_third_is_left_out_by_channels_where_no_ratio_is_given(plain_model, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "MOST_TOKENS", 64)
        patch.setattr(work, "TIMED_TOKENS", 8)
        result = try_model(plain_model, text=[text], **OPTIONS)
    (row,) = (row for row in result.rows if row.kind == "channels")
    assert row.label == "33.3 %" and row.skip_ratio == pytest.approx(1 / 3, abs=0.03)
    assert [name for name, _ in result.texts] == ["dense", "25 %", "33.3 % by channels"]


def test_a_model_whose_channels_stay_is_tried_without_them(model_file):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "MOST_TOKENS", 64)
        patch.setattr(work, "TIMED_TOKENS", 8)
        result = try_model(model_file(**NO_CHANNELS), skip_ratio=0.125, **OPTIONS)
    assert not any(row.kind == "channels" for row in result.rows) and result.weights_bytes == 0
    assert any(note.startswith("Channels can't be left out: policy 'channels': ") for note in result.notes)


def test_the_search_finds_blocks_that_are_better_than_random_ones(found):
    """All sets of blocks of Algorithm 1's adaptive region are not tried, but any bad search would lose to these."""
    kl = {(row.kind, row.label): row.kl for row in found.rows}
    assert kl["search", "25 %"] < 2 * kl["paper", "25 %"]


def test_everything_is_measured_in_turn_with_plain_llama_cpp(found):
    for row in found.rows:
        assert 0 < row.speed_up_q1 <= row.speed_up <= row.speed_up_q3
        assert row.first_token > 0
    assert found.tokens_per_second > 0
    assert found.first_token_seconds > 0


def test_two_texts_of_the_same_prompt_stand_side_by_side(found, plain_model):
    assert [name for name, _ in found.texts] == ["dense", "12.5 % by channels", "25 % by channels"]
    assert found.prompt in repr(found)
    page = repr(found)
    line = next(line for line in page.splitlines() if line.startswith("dense "))
    assert line.count(" | ") == 2


def test_the_model_s_own_text_is_taken_where_none_is_given(plain_model):
    result = try_model(plain_model, skip_ratio=0.125, **OPTIONS)
    assert "wrote itself" in result.text
    assert result.n_tokens > 0
    assert "wrote itself" in " ".join(repr(result).split())


def test_a_profile_is_what_is_tried(text):
    result = try_model(demo_model(), text=[text], **OPTIONS)
    assert [row.kind for row in result.rows][:2] == ["profile", "paper"]
    assert result.rows[0].skip_ratio == pytest.approx(0.25)


def test_speed_is_the_median_of_ratios_within_a_round():
    dense = np.array([[1.0, 2.0, 3.0, 40.0], [2.0, 2.0, 2.0, 2.0]])
    setting = np.array([[1.0, 1.0, 1.0, 20.0], [1.0, 1.0, 1.0, 0.5]])  # ratios 1, 2, 3, 2; of the CPU's time 2, 2, 2, 4
    speed = _speed(dense, setting, np.array([1.0, 9.0]), np.array([7.0, 0.5]))
    assert speed.speed_up == pytest.approx((2.0, 1.75, 2.25))
    assert speed.cpu_speed_up == pytest.approx((2.0, 2.0, 2.5))
    assert speed.tokens_per_second == 1.0
    assert (speed.first_token_seconds, speed.first_token) == (0.5, 2.0)


def test_standard_error_is_that_of_the_mean_over_pieces():
    """Of pieces of equal length it is the textbook's: standard deviation of the means over the root of their number."""
    means = [0.1, 0.4, 0.2, 0.5]
    quality, of_one = Quality(), Quality()
    for mean in means:
        quality.add(Comparison(np.full(10, mean), np.ones(10, bool), np.ones(10), np.ones(10)))
    assert quality.kl_error == pytest.approx(np.std(means, ddof=1) / math.sqrt(4))
    of_one.add(Comparison(np.ones(10), np.ones(10, bool), np.ones(10), np.ones(10)))
    assert math.isnan(of_one.kl_error)


# ---- the search ----


def never():
    return False


def test_the_set_grows_by_the_block_that_adds_least():
    """Costs that are no sum: 1 is cheap alone, dear beside 0."""
    price = {0: 1.0, 1: 1.5, 2: 3.0, 3: 4.0}

    def cost(layers):
        return sum(price[il] for il in layers) + (5.0 if {0, 1} <= set(layers) else 0.0)

    assert grow([3, 2, 1, 0], cost, 3, never) == ([0, 2, 3], True)


def test_blocks_are_measured_again_only_while_they_may_still_be_the_best():
    calls = []

    def cost(layers):
        calls.append(tuple(layers))
        return float(sum(layers))

    assert grow(range(10), cost, 3, never) == ([0, 1, 2], True)
    assert len(calls) == 10 + 1 + 1


def test_a_search_without_time_goes_by_what_it_knows():
    assert grow([4, 2, 7], lambda layers: 0.0, 2, lambda: True) == ([4, 2], False)
    calls = []

    def cost(layers):
        calls.append(layers)
        return {4: 3.0, 2: 1.0}[layers[-1]]

    found = grow([4, 2, 7], cost, 3, lambda: len(calls) == 2)
    assert found == ([2, 4, 7], False)  # 7 was not measured


# ---- the verdict ----


def skipping(speed_up, kl, perplexity_ratio, label="25 %"):
    return Row(label, "search", SkipConfig(), 0.25, kl=kl, perplexity_ratio=perplexity_ratio, speed_up=speed_up)


def quantised(speed_up, kl, perplexity_ratio=1.05):
    return Row("q3_k_m", "quantisation", kl=kl, perplexity_ratio=perplexity_ratio, speed_up=speed_up)


@pytest.mark.parametrize(
    "row, others, expected",
    [
        (skipping(1.18, 0.004, 1.01), [], "25 %: 1.18 times as fast, perplexity x1.01: worth it"),
        (skipping(1.18, 0.004, 1.01), [quantised(1.22, 0.06)], ": worth it"),
        (skipping(1.09, 0.001, 1.0), [], ": not worth it (hardly faster)"),
        (skipping(1.16, 0.6, 1.85), [], ": not worth it (too much is lost)"),
        (
            skipping(1.16, 0.6, 1.85),
            [quantised(1.2, 0.06, 1.07)],
            ": not worth it (q3_k_m is 1.20 times as fast at perplexity x1.07)",
        ),
        # At the speed of 1.16 the quantisation costs 0.06 * .16/.2 = .048.
        (skipping(1.16, 0.05, 1.04), [quantised(1.2, 0.06)], ": not worth it (q3_k_m is"),
        (skipping(1.16, 0.047, 1.04), [quantised(1.2, 0.06)], ": worth it"),
        # Slower ones are no answer, whatever they cost; those that are slower than dense neither.
        (skipping(1.3, 0.05, 1.04), [quantised(1.2, 0.001)], ": worth it"),
        (skipping(1.3, 0.05, 1.04), [quantised(0.9, 0.001)], ": worth it"),
        (replace(skipping(math.nan, 0.05, 1.04)), [], ": perplexity x1.04, speed not measured"),
    ],
)
def test_the_rule_of_the_verdict(row, others, expected):
    assert judge(row, others).endswith(expected) or expected in judge(row, others)


def test_the_best_setting_of_each_ratio_is_judged_and_the_line_names_all():
    rows = [
        skipping(1.2, 0.5, 1.5),
        replace(skipping(1.18, 0.004, 1.01), kind="paper"),
        replace(skipping(1.05, 0.002, 1.0, label="10 %"), skip_ratio=0.1),
        quantised(1.01, 0.001),
    ]
    assert verdict(rows) == (
        "10 %: 1.05 times as fast, perplexity x1.00: not worth it (hardly faster); "
        "25 %: 1.18 times as fast, perplexity x1.01: worth it"
    )


def test_the_cheapest_of_the_quantisations_that_are_fast_enough_is_named():
    fast, cheap = quantised(1.5, 0.3), quantised(1.3, 0.02)
    assert better_quantisation(skipping(1.2, 0.4, 1.5), [fast, cheap]) is cheap
    assert better_quantisation(skipping(1.4, 0.4, 1.5), [fast, cheap]) is fast


# ---- smaller quantisations ----


def test_a_file_that_is_too_large_to_be_quantised_again_is_compared_with_llama_cpp_s_table(
    plain_model, text, monkeypatch
):
    monkeypatch.setattr(smaller, "MOST_BYTES", 0)
    result = try_model(plain_model, text=[text], skip_ratio=0.125, **OPTIONS)
    q6, q5 = (row for row in result.rows if row.kind == "quantisation")
    assert (q6.label, q5.label) == ("q6_k", "q5_k_m")
    assert q6.quoted and q5.quoted
    # Of the table: q8_0 7.96 GiB, KL .001355, PPL 6.234284; q6_k 6.14, .005452, 6.253382.
    assert q6.speed_up == pytest.approx(7.96 / 6.14)
    assert q6.kl == pytest.approx(0.005452 - 0.001355)
    assert q6.perplexity_ratio == pytest.approx(6.253382 / 6.234284)
    page = " ".join(repr(result).split())
    assert "(quoted)" in page
    assert "Llama 3 8B, from llama.cpp's tools/perplexity/README.md" in page


@pytest.mark.parametrize(
    "type_name, bits, first",
    [("q4_1", 5.9, "q4_k_m"), ("f16", 16, "q8_0"), ("bf16", 16, "q8_0"), ("iq4_xs", 4.4, "q3_k_m")],
)
def test_the_next_smaller_type(type_name, bits, first):
    assert smaller.candidates(type_name, bits)[0] == first


def test_there_is_none_below_the_smallest(plain_model):
    assert smaller.candidates("q2_k", 3.2) == []
    assert smaller.quoted("q2_k", 3.2) == []


def test_types_that_save_nothing_for_a_model_are_passed_over(tmp_path, monkeypatch):
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x" * 1000)
    sizes = {"q4_k_m": 1100, "q4_0": 980, "q3_k_m": 900, "q2_k": 800}

    def quantize(src, dst, name, **options):
        assert options["allow_requantize"]
        dst.write_bytes(b"y" * sizes[name])
        return dst

    monkeypatch.setattr("ffnskip_cpp.gguf_file.quantization.quantize", quantize)
    found = list(smaller.smaller_files(model, 1000, list(sizes), tmp_path, 1, never))
    assert [name for name, _ in found] == ["q3_k_m", "q2_k"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "q2_k.gguf", "q3_k_m.gguf"]


# ---- the command ----

KEYS = {
    *("model", "architecture", "type", "n_bytes", "n_layer", "n_threads", "warm_up_index", "text", "n_tokens"),
    "weights_bytes",
    *(
        "tokens_per_second",
        "n_prompt",
        "first_token_seconds",
        "rows",
        "prompt",
        "texts",
        "notes",
        "complete",
        "verdict",
    ),
}
ROW_KEYS = {
    *("label", "kind", "config", "skip_ratio", "size", "kl", "kl_error", "perplexity_ratio", "top1_agreement"),
    *("speed_up", "speed_up_q1", "speed_up_q3", "first_token", "quoted"),
}


def test_json_for_programs(try_cli, plain_model, text):
    status, out, err = try_cli(plain_model, "--text", text, "--skip-ratio", "0.125", "--json")
    result = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert status == 0
    assert set(result) == KEYS
    assert all(set(row) == ROW_KEYS for row in result["rows"])
    assert result["rows"][0]["config"]["max_skip"] == 0
    assert result["verdict"].startswith("12.5 % by channels: ")
    assert err == ""


def test_the_page_ends_with_the_verdict(try_cli, plain_model, text):
    status, out, _ = try_cli(plain_model, "--text", text, "--skip-ratio", "0.125", "-p", "Herno Jotsen")
    assert status == 0
    assert "> Herno Jotsen" in out
    assert out.splitlines()[-1].startswith("12.5 % by channels: ")


def test_interrupted_it_prints_what_was_measured(try_cli, plain_model, text, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "measure_speed", interrupted)
    status, out, err = try_cli(plain_model, "--text", text, "--skip-ratio", "0.125", "--json")
    result = json.loads(out)
    assert status == 130
    assert err.splitlines()[-1] == "ffnskip try: interrupted"
    assert result["rows"][0]["kl"] > 0
    assert result["rows"][0]["speed_up"] is None
    assert not result["complete"]
    assert "speed not measured" in result["verdict"]


def test_interrupted_before_the_model_is_loaded_there_is_nothing_to_print(try_cli, plain_model, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "open_model", interrupted)
    status, out, _ = try_cli(plain_model)
    assert (status, out) == (130, "")


def test_nothing_is_left_behind(try_cli, plain_model, text, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = (plain_model.read_bytes(), sorted(os.listdir(plain_model.parent)))
    assert try_cli(plain_model, "--text", text, "--skip-ratio", "0.125")[0] == 0
    assert (plain_model.read_bytes(), sorted(os.listdir(plain_model.parent))) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--skip-ratio", "1.5"], "skip-ratio: 1.5 is outside (0, 1)"),
        (["--skip-ratio", "nan"], "skip-ratio: nan is outside (0, 1)"),
        (["--skip-ratio", "0.99"], "skip-ratio: 0.99 can't be reached; at most 0.938"),
        (["--time", "0"], "time: 0 seconds; give 1 or more"),
        (["--time", "inf"], "time: inf seconds"),
        (["-t", "0"], "threads: 0 can't compute anything; 1 to 512"),
        (["-t", "100000"], "threads: 100000 can't compute anything; 1 to 512"),
        (["-p", " "], "prompt: it is empty"),
        (["-p", "Herno Jotsen " * 300], "tokens are too many for a trial; at most 412"),
        (["--text", "missing.txt"], "missing.txt: no such file"),
        (["--text", __file__ + "c"], "no such file"),
    ],
)
def test_bad_input_is_refused_in_one_line(try_cli, plain_model, arguments, message):
    status, out, err = try_cli(plain_model, *arguments)
    last = err.splitlines()[-1]
    of_model_or_text = any(words in message for words in ("no such file", "at most 0.938", "at most 412"))
    assert (status, out) == (1 if of_model_or_text else 2, "")
    assert last.startswith("ffnskip try: ")
    assert message in last


@pytest.mark.parametrize("name", ["skip_ratio", "text"])
def test_an_empty_list_is_refused_by_name(plain_model, name):
    with pytest.raises(ValueError, match=f"{name.replace('_', '-')}: the list is empty"):
        try_model(plain_model, **{**OPTIONS, name: []})


def test_bad_text_is_refused_in_one_line(try_cli, plain_model, tmp_path):
    for content, message in ((b"too short", "too short"), (b"\0\1\2", "binary"), (b"", "no text")):
        path = tmp_path / "text.txt"
        path.write_bytes(content)
        status, out, err = try_cli(plain_model, "--text", path)
        assert (status, out) == (1, "")
        assert message in err.splitlines()[-1]


def test_a_file_that_is_no_model_is_refused(try_cli, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"nothing of the kind")
    status, out, err = try_cli(path)
    assert (status, out) == (1, "")
    assert str(path) in err.splitlines()[-1]
    assert try_cli(tmp_path / "missing.gguf")[0] == 1


@pytest.mark.parametrize("kind", ["bert", "mamba"])
def test_a_model_that_cannot_skip_is_refused_in_one_line(try_cli, model_file, kind):
    status, out, err = try_cli(model_file(kind))
    assert (status, out) == (1, "")
    assert err.startswith("ffnskip try: ") and err.count("\n") == 1
    with pytest.raises(UnsupportedModelError):
        try_model(model_file(kind), **OPTIONS)
