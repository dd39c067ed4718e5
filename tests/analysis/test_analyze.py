"""`ffnskip analyze`: numbers agree with sums over plain llama.cpp's logits; files are whole and need no network."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import sys
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ffnskip_cpp import SkipConfig, UnsupportedModelError, __version__, analyze, cli
from ffnskip_cpp.analysis import analysis as analysis_module
from ffnskip_cpp.analysis.pictures import similarity
from ffnskip_cpp.analysis.wanted import FIGURES
from ffnskip_cpp.measure import quality
from ffnskip_cpp.measure.cold_regions import cold_regions
from ffnskip_cpp.measure.generation import measure_never_tripped
from ffnskip_cpp.measure.points import measure_quality
from ffnskip_cpp.measure.similarity import measure_similarity
from ffnskip_cpp.style import svg_text
from support.channel_bytes import NO_CHANNELS
from support.logits import log_softmax
from support.running import GREEDY, PROMPT_ROW, SKIPPABLE_ROW, feed, ours, plain
from support.tiny_models import write_llama

TEXT = "".join(f"The path {i} goes along a wall & <beyond> it, {i * i} steps. " for i in range(12))
N_LAYER, COLD_S, COLD_E = 16, 2, 14
N_CTX, THRESHOLD, WARM_UP = 80, 0.96, 10
N_PROMPT, N_GENERATED = 16, 100
SETTINGS = {
    **{"--n-ctx": N_CTX, "--max-tokens": 200, "--sim-threshold": THRESHOLD, "--warm-up": WARM_UP},
    **{"--skip-ratio": "0.125,0.25,0.5", "--policy": "ffn_skip,random,channels", "--warm-ups": "0,10,30,70"},
    **{"--generated": f"40,{N_GENERATED},4000", "--prompts": 2, "--prompt-tokens": N_PROMPT, "--speed-tokens": 4},
}
CONTEXT = 256  # that the model was trained on
BATCH_ROUNDING = 1e-4  # of a similarity, between a batch and token by token: float32 sums in another order
SUM_ROUNDING = 1e-5  # of a mean in float32


@pytest.fixture(scope="module")
def model(model_file):
    return model_file("llama", n_ctx=CONTEXT)


@pytest.fixture(scope="module")
def analyzed(model, tmp_path_factory):
    """A folder with everything that one run of the command wrote."""
    folder = tmp_path_factory.mktemp("analysis")
    text = folder / "text.txt"
    text.write_text(TEXT)
    arguments = [str(x) for pair in SETTINGS.items() for x in pair]
    status = cli.main(["analyze", str(model), "--text", str(text), "-o", str(folder / "out"), "-t", "1", *arguments])
    assert status == 0
    return folder / "out"


@pytest.fixture(scope="module")
def chunks(model):
    """Cut here once more: 80, 80 and, of 200 tokens, 40."""
    with plain(model) as llm:
        tokens = llm.tokenize(TEXT.encode())
    return [tokens[:80], tokens[80:160], tokens[160:200]]


def read(folder, name):
    with open(folder / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def floats(rows, column):
    return np.array([float(row[column] or "nan") for row in rows])


def expected_quality(dense, other, chunks, first_row):
    """KL, agreement, perplexity and that of dense, by NumPy, over rows from first_row on that have a target."""
    kl, same, nll_dense, nll = [], [], [], []
    for tokens, p, q in zip(chunks, map(log_softmax, dense), map(log_softmax, other)):
        for i in range(first_row, len(tokens) - 1):
            kl.append((np.exp(p[i]) * (p[i] - q[i])).sum())
            same.append(p[i].argmax() == q[i].argmax())
            nll_dense.append(-p[i, tokens[i + 1]])
            nll.append(-q[i, tokens[i + 1]])
    return {
        "n_rows": len(kl),
        "kl": np.mean(kl),
        "top1_agreement": np.mean(same),
        "perplexity": math.exp(np.mean(nll)),
        "perplexity_dense": math.exp(np.mean(nll_dense)),
        "perplexity_ratio": math.exp(np.mean(nll) - np.mean(nll_dense)),
    }


def dense_logits(model, chunks):
    with plain(model) as llm:
        return [feed(llm, tokens, 0) for tokens in chunks]


def skipping_logits(model, chunks, config):
    """The warm-up as a prompt. In one batch: tests of the core show that token by token gives the same, and here a
    rounding can turn a trip, which random weights answer with another text altogether."""
    logits = []
    with ours(model, config, callback=True) as llm:
        for tokens in chunks:
            kinds = [PROMPT_ROW if i < config.warm_up_index else SKIPPABLE_ROW for i in range(len(tokens))]
            logits.append(feed(llm, tokens, 0, kinds))
    return logits


# ---- numbers ----


def test_similarity_is_that_of_a_trace_of_the_same_tokens(analyzed, model, chunks):
    config = SkipConfig(sim_threshold=2, cold_s=0, cold_e=N_LAYER - 1, warm_up_index=0)
    values = []
    with ours(model, config) as llm:
        for tokens in chunks:
            with llm.trace() as trace:
                feed(llm, tokens, 0, [PROMPT_ROW] + [SKIPPABLE_ROW] * (len(tokens) - 1))
            values.append(trace.similarity)
    values = np.concatenate(values)[:, :-1]
    rows = read(analyzed, "similarity")
    assert [int(row["layer"]) for row in rows] == list(range(N_LAYER))
    assert rows[-1] == {"layer": "15", "mean": "", "quantile_10": "", "quantile_90": ""}
    for column, expected in (
        ("mean", values.mean(axis=0)),
        ("quantile_10", np.quantile(values, 0.1, axis=0)),
        ("quantile_90", np.quantile(values, 0.9, axis=0)),
    ):
        np.testing.assert_allclose(floats(rows, column)[:-1], expected, rtol=SUM_ROUNDING)


@pytest.mark.parametrize("ratio", [0.125, 0.5])
def test_quality_is_that_of_the_skipping_model_next_to_plain_llama_cpp(analyzed, model, chunks, ratio):
    config = SkipConfig(sim_threshold=THRESHOLD, skip_ratio=ratio, warm_up_index=WARM_UP)
    with ours(model, config) as llm:
        for tokens in chunks:
            feed(llm, tokens, 0, [PROMPT_ROW] * WARM_UP + [SKIPPABLE_ROW] * (len(tokens) - WARM_UP))
        achieved = llm.stats.skip_ratio  # prompt rows do not count
    rows = [row for row in read(analyzed, "skip_ratio_quality") if row["policy"] == "ffn_skip"]
    row = next(row for row in rows if float(row["skip_ratio_target"]) == ratio)
    expected = expected_quality(dense_logits(model, chunks), skipping_logits(model, chunks, config), chunks, WARM_UP)
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value, rel=1e-9), name
    assert float(row["skip_ratio"]) == pytest.approx(achieved)
    assert 0 < float(row["skip_ratio_with_warm_up"]) < float(row["skip_ratio"]) <= ratio


def test_quality_of_a_fixed_set_is_that_of_a_model_without_those_blocks(model_file, model, chunks):
    """Whose logits are the skipping model's bit for bit, so that nothing of ours makes the expected values."""
    without = model_file("llama", n_ctx=CONTEXT, zero_ffn_layers=(4, 9))
    config = SkipConfig(policy="fixed", layers=[4, 9], warm_up_index=0)
    with ours(model, None) as llm:
        point = measure_quality(llm, chunks, [config])[0]
        assert llm.skip is None
    expected = expected_quality(dense_logits(model, chunks), dense_logits(without, chunks), chunks, 0)
    for name, value in expected.items():
        assert getattr(point.quality, name) == pytest.approx(value, rel=1e-9), name
    assert point.skip_ratio == pytest.approx(2 / N_LAYER)


def test_warm_up_compares_the_same_rows_whatever_the_warm_up(analyzed, model, chunks):
    rows = read(analyzed, "warm_up")
    assert [int(row["warm_up_index"]) for row in rows] == [0, 10, 30]
    assert {int(row["first_row"]) for row in rows} == {30}
    config = SkipConfig(sim_threshold=THRESHOLD, skip_ratio=0.25, warm_up_index=10)
    dense, other = dense_logits(model, chunks), skipping_logits(model, chunks, config)
    for suffix, first_row in (("", 30), ("_all_rows", 0)):
        for name, value in expected_quality(dense, other, chunks, first_row).items():
            assert float(rows[1][name + suffix]) == pytest.approx(value, rel=1e-9), name
    assert len({row["perplexity_dense"] for row in rows}) == 1


def test_tokens_that_never_trip_are_those_that_the_statistics_count(analyzed, model, chunks):
    config = SkipConfig(sim_threshold=THRESHOLD, skip_ratio=0.25, warm_up_index=WARM_UP)
    rows = read(analyzed, "never_tripped")
    assert [int(row["generated_tokens"]) for row in rows] == [40, N_GENERATED, CONTEXT - N_PROMPT]
    with ours(model, config) as llm:
        for row in rows:
            n = int(row["generated_tokens"])
            llm.reset_stats()
            for tokens in chunks[:2]:
                list(llm.generate(tokens[:N_PROMPT], max_tokens=n + 1, **GREEDY))  # the last is not fed back
            assert llm.stats.tokens == 2 * n
            assert int(row["never_tripped"]) == llm.stats.tokens_never_tripped
            assert float(row["share_never_tripped"]) == pytest.approx(llm.stats.tokens_never_tripped / (2 * n - 20))
    assert 0 < int(rows[-1]["never_tripped"]) < int(rows[-1]["tokens_that_may_skip"])
    curve = read(analyzed, "never_tripped_by_token")
    assert len(curve) == CONTEXT - N_PROMPT
    assert curve[N_GENERATED - 1]["share_never_tripped"] == rows[1]["share_never_tripped"]
    assert curve[WARM_UP - 1]["share_never_tripped"] == "" != curve[WARM_UP]["share_never_tripped"]


def test_heat_map_shows_algorithm_1(analyzed):
    rows = read(analyzed, "heat_map")
    shape = (-1, N_LAYER)
    similarity = floats(rows, "similarity").reshape(shape)
    skipped = floats(rows, "skipped").reshape(shape) == 1
    full = floats(rows, "similarity_without_skipping").reshape(shape)
    assert len(similarity) == WARM_UP + 66
    assert np.isnan(similarity[:WARM_UP]).all() and not skipped[:WARM_UP].any()
    for seen, skips in zip(similarity[WARM_UP:], skipped[WARM_UP:]):
        reached = np.flatnonzero(seen >= np.float32(THRESHOLD))
        trip = int(reached[0]) if len(reached) else COLD_E - 1
        assert np.flatnonzero(~np.isnan(seen)).tolist() == list(range(COLD_S, trip + 1))
        assert np.flatnonzero(skips).tolist() == list(range(trip + 1, min(trip + 5, COLD_E)))
    assert np.isnan(full[:, -1]).all() and np.isfinite(full[:, :-1]).all()
    # The first token after the warm-up has skipped nothing before its first check.
    assert full[WARM_UP, COLD_S] == pytest.approx(similarity[WARM_UP, COLD_S], abs=BATCH_ROUNDING)


@pytest.mark.parametrize("ratio", [0.125, 0.25])
def test_quality_of_channels_is_that_of_the_generation_of_each_chunk(analyzed, model, chunks, ratio):
    """Next to plain llama.cpp; the first 16 tokens of a chunk tell its thresholds. What is left out is counted from a
    trace."""
    config = SkipConfig(policy="channels", skip_ratio=ratio, warm_up_index=WARM_UP)
    logits, kept = [], []
    with ours(model, config) as llm:
        for tokens in chunks:
            with llm.trace() as trace:
                logits.append(llm.forward(tokens))
            kept.append(trace.kept[16:, :, 2:])
    (row,) = (
        row
        for row in read(analyzed, "skip_ratio_quality")
        if row["policy"] == "channels" and float(row["skip_ratio_target"]) == ratio
    )
    for key, value in expected_quality(dense_logits(model, chunks), logits, chunks, 16).items():
        # A rounding takes a channel over its threshold, and with random weights others follow.
        assert float(row[key]) == pytest.approx(value, rel=0.05), key
    # Of an FFN of this width a channel of gate and up has twice the weights of one of down, which are filled up to
    # groups of 128 outputs: as many.
    up, down = (1 - np.concatenate(kept)).mean(axis=(0, 1))
    inputs = {"up": 64, "down": 128}  # of each 128 outputs are stored, twice for gate and up
    weight = {"up": 2 * inputs["up"], "down": inputs["down"]}
    share = (weight["up"] * up + weight["down"] * down) / sum(weight.values())
    assert float(row["skip_ratio"]) == pytest.approx(share, rel=1e-2)
    assert share == pytest.approx(ratio, abs=0.08)


def test_channels_kept_are_those_of_a_trace_of_the_generation(analyzed, model, chunks):
    config = SkipConfig(policy="channels", warm_up_index=WARM_UP)
    with ours(model, config, n_ctx=CONTEXT) as llm, llm.trace() as trace:
        list(llm.generate(chunks[0][:N_PROMPT], max_tokens=16 + 66 + 1, **GREEDY))
    rows = read(analyzed, "channels")
    assert list(rows[0]) == ["token", "text", "layer", "warm_up", "kept_up", "kept_down"]
    kept = np.stack([floats(rows, "kept_up"), floats(rows, "kept_down")], axis=-1).reshape(-1, N_LAYER, 2)
    assert (len(kept), sum(int(row["warm_up"]) for row in rows)) == (16 + 66, 16 * N_LAYER)
    assert (kept[:16] == 1).all() and (kept[16:] < 1).any()
    # Token by token here and there, but random weights answer a rounding with another text.
    same = min(len(kept), len(trace.kept))
    np.testing.assert_allclose(kept[:same], trace.kept[:same, :, 2:], atol=1e-6)


def test_a_model_whose_channels_stay_is_analysed_without_them(model_file, tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    path = model_file(**NO_CHANNELS)
    usual = {"n_ctx": 64, "max_tokens": 64, "n_speed": 0, "n_threads": 1, "n_generated": (8,), "warm_ups": (0,)}
    analysis = analyze(path, tmp_path / "t.txt", tmp_path / "out", **usual, skip_ratio=0.25)
    assert "channels" not in analysis.figures and "channels" not in analysis.numbers
    assert "this model has no weights whose input channels can be left out" in analysis.facts["channels"]
    assert {row["policy"] for row in analysis.numbers["skip_ratio_quality"]} == {
        *("ffn_skip", "random", "random in adaptive region")
    }
    for asked in ({"figures": "channels"}, {"policy": "channels", "figures": "skip_ratio", "skip_ratio": 0.25}):
        with pytest.raises(UnsupportedModelError, match="whose input channels can be left out"):
            analyze(path, tmp_path / "t.txt", tmp_path / "out", **{**usual, **asked})


def test_speed_is_that_of_the_benchmark(analyzed):
    rows = read(analyzed, "skip_ratio_speed")
    assert [row["policy"] for row in rows] == [
        *["dense", "idle", "checks", "all blocks", "ffn_skip", "ffn_skip", "ffn_skip"],
        *["channels, all kept", "channels", "channels", "channels"],
    ]
    assert floats(rows, "skip_ratio")[:8].tolist() == [0, 0, 0, 15 / 16, 0.125, 0.25, 0.5, 0]
    assert floats(rows, "skip_ratio")[8:] == pytest.approx([0.125, 0.25, 0.5], abs=0.1)
    assert (floats(rows, "tokens_per_second") > 0).all()


def test_speed_is_that_of_the_cold_regions_analysed(model, tmp_path):
    """A ratio that only regions smaller than the default leave room for."""
    (tmp_path / "t.txt").write_text(TEXT)
    arguments = ["--figures", "skip_ratio", "--max-tokens", 64, "--policy", "ffn_skip", "--speed-tokens", 2]
    arguments += ["--cold-s", 1, "--cold-e", 15, "--skip-ratio", 0.8, "--text", tmp_path / "t.txt", "-o", tmp_path]
    assert cli.main(["analyze", str(model), "-t", "1", *map(str, arguments)]) == 0
    rows = read(tmp_path, "skip_ratio_speed")
    assert floats(rows, "skip_ratio").tolist() == [0, 0, 0, 15 / 16, 13 / 16]
    assert floats(rows, "checks").tolist() == [0, 0, 14, 0, 1]


def test_a_profile_is_a_point_beside_the_policies_and_the_setting_of_the_heat_map(model, chunks, tmp_path):
    layers = [3, 6, 10]
    with ours(model, SkipConfig("fixed", layers=layers, warm_up_index=WARM_UP)) as llm:
        llm.save_profile(tmp_path / "own.gguf")
    (tmp_path / "t.txt").write_text(TEXT)
    arguments = ["--figures", "skip_ratio,heat_map", "--max-tokens", 200, "--n-ctx", N_CTX, "--policy", "ffn_skip"]
    arguments += ["--skip-ratio", 0.25, "--speed-tokens", 2, "--profile", tmp_path / "own.gguf"]
    arguments += ["--warm-up", WARM_UP, "--text", tmp_path / "t.txt", "-o", tmp_path / "out"]
    assert cli.main(["analyze", str(model), "-t", "1", *map(str, arguments)]) == 0
    first, second = read(tmp_path / "out", "skip_ratio_quality")
    assert (first["policy"], second["policy"]) == ("ffn_skip", "profile own.gguf")
    assert float(second["skip_ratio"]) == 3 / N_LAYER and float(second["checks_per_token"]) == 0
    config = SkipConfig("fixed", layers=layers, warm_up_index=WARM_UP)
    expected = expected_quality(dense_logits(model, chunks), skipping_logits(model, chunks, config), chunks, WARM_UP)
    assert float(second["kl"]) == pytest.approx(expected["kl"], rel=1e-4)
    skipped = floats(read(tmp_path / "out", "heat_map"), "skipped").reshape(-1, N_LAYER)
    assert np.flatnonzero(skipped[WARM_UP:].all(axis=0)).tolist() == layers and skipped[:WARM_UP].sum() == 0
    assert read(tmp_path / "out", "skip_ratio_speed")[-1]["policy"] == "profile own.gguf"
    assert "the setting of own.gguf (fixed layers)" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        ([0.9, 0.6, 0.8, 0.9, 0.95, 0.96, 0.97, 0.98, 0.9, 0.8, None], (2, 8)),  # the paper's picture
        ([0.2, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95, None], (1, 7)),  # rises from the first layer to the end
        ([0.2, 0.9, 0.95, 0.96, 0.955, 0.951, 0.96, 0.9, None], (1, 7)),  # a dip within 0.01 is no end
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, None], (3, 4)),  # falls all the way
        ([0.9, None], (0, 1)),
        ([0.5, 0.9, None], (1, 2)),
        ([None, 0.7, None, 0.9, None, 0.95, None, 0.6], (2, 6)),  # layers without an FFN block
        ([0.9, 0.9, 0.9, 0.9, 0.9], (1, 4)),  # the last one does not count, whatever it is
    ],
)
def test_cold_regions_are_the_ends_where_the_curve_does_not_rise(mean, expected):
    assert cold_regions(np.array(mean, float)) == expected


def test_cold_regions_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no layer was checked"):
        cold_regions(np.array([np.nan, np.nan]))


def test_logits_of_one_chunk_and_one_setting_are_held_at_a_time(model, chunks, monkeypatch):
    monkeypatch.setattr(quality, "BLOCK_ELEMENTS", 1)  # row by row, so that nothing else takes memory
    configs = [SkipConfig(skip_ratio=ratio, warm_up_index=0) for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)]
    long = [*chunks[0], *chunks[1], *chunks[0]][:200]  # so that its logits are most of what is held
    with ours(model, SkipConfig("dense")) as llm:
        of_one = len(long) * llm.n_vocab() * 4
        tracemalloc.start()
        try:
            measure_quality(llm, [long] * 6, configs)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 2.5 * of_one


def test_measuring_gives_the_model_back_as_it_was(model, chunks):
    with ours(model, 0.5) as llm:
        before = llm.skip
        measure_similarity(llm, chunks)
        with pytest.raises(ValueError, match="do not fit n_ctx"):
            measure_never_tripped(llm, chunks, 10_000, SkipConfig())
        with pytest.raises(ValueError, match="cold_e"):
            measure_quality(llm, chunks, [SkipConfig(cold_e=N_LAYER)])
        assert llm.skip == before


# ---- files ----


def test_every_picture_is_there_as_png_and_svg_and_the_report(analyzed):
    expected = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    numbers = ["similarity", "never_tripped", "never_tripped_by_token", "warm_up", "heat_map", "channels"]
    numbers += ["skip_ratio_quality", "skip_ratio_speed"]
    expected |= {f"{name}.csv" for name in numbers}
    assert {path.name for path in analyzed.iterdir()} == {*expected, "report.html"}


@pytest.mark.parametrize("name", FIGURES)
def test_pictures_can_be_read_and_show_something(analyzed, name):
    from matplotlib.image import imread

    picture = imread(analyzed / f"{name}.png")
    assert picture.shape[0] > 400 and picture.shape[1] > 1000 and picture.std() > 0.05
    svg = ElementTree.parse(analyzed / f"{name}.svg").getroot()
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list(svg.iter())) > 50
    assert references(svg) <= {"#", "data:image/png;base64"}
    assert not re.search(r"<!DOCTYPE|<\?xml|url\((?!#)", (analyzed / f"{name}.svg").read_text())


def references(svg):
    """Kinds of what an element of the picture points to: "#", or what comes before the comma or the name."""
    names = [value for e in svg.iter() for key, value in e.attrib.items() if key.endswith("href")]
    return {"#" if name.startswith("#") else name.split(",")[0] for name in names}


class Page(HTMLParser):
    """What a browser would have to fetch, the elements left open, and the text."""

    EMPTY = ("meta",)

    def __init__(self, html):
        super().__init__()
        self.fetched, self.open, self.tags, self.text = [], [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.note(attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.note(attrs)

    def note(self, attrs):
        names = [value for key, value in attrs if key in ("src", "href", "xlink:href", "action", "data")]
        self.fetched += [name for name in names if not name.startswith(("#", "data:image/png;base64,"))]
        self.fetched += [value for _, value in attrs if value and re.search(r"url\((?!#)", value)]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_is_one_page_that_fetches_nothing(analyzed):
    html = (analyzed / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == [] and page.fetched == []
    assert page.tags.count("svg") == len(FIGURES)
    assert page.tags.count("figure") == len(FIGURES)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "@import" not in html


def test_report_says_what_was_measured_and_what_was_left_out(analyzed, model):
    text = Page((analyzed / "report.html").read_text(encoding="utf-8")).text
    with ours(model, None) as llm:
        fingerprint = llm.fingerprint
    for expected in (
        f"{model.name}, llama, ",
        fingerprint,
        f"ffnskip {__version__}",
        "matplotlib ",
        "200 in 3 chunks of at most 80",
        f"sim_threshold {THRESHOLD}, layers [2, 14), warm_up_index {WARM_UP}",
        "random policies 0",
        "text.txt (sha256 ",
        "The last layer, 15, is never checked",
        "Left out: 4000 generated tokens, which do not fit the context of 256. In their place: 240",
        "Left out: warm-ups of 70, more than half of every chunk",
    ):
        assert expected in text, expected
    for row in read(analyzed, "skip_ratio_quality"):
        assert f"{float(row['kl']):.4f}" in text


def test_text_of_the_model_is_escaped(analyzed):
    html = (analyzed / "report.html").read_text(encoding="utf-8")
    assert "The path 0 goes" in html  # the prompt, of 16 tokens
    assert "<beyond>" not in html


def test_every_policy_is_compared_unless_some_are_named(model, tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    usual = {"n_ctx": 64, "max_tokens": 64, "figures": "skip_ratio", "skip_ratio": 0.25, "n_speed": 0, "n_threads": 1}
    for given, labels in (
        ({}, ["ffn_skip", "random", "random in adaptive region", "channels"]),
        ({"policy": "channels"}, ["channels"]),
        ({"policy": "random"}, ["random"]),
        ({"policy": "random", "region": "adaptive"}, ["random in adaptive region"]),
        ({"policy": ["ffn_skip", "random_adaptive_region"]}, ["ffn_skip", "random in adaptive region"]),
    ):
        analysis = analyze(model, tmp_path / "t.txt", tmp_path / "out", **usual, **given)
        assert [row["policy"] for row in analysis.numbers["skip_ratio_quality"]] == labels


@pytest.mark.parametrize(
    ("asked", "stored"), [({"figures": "similarity", "skip_ratio": 0.25}, 0), ({"figures": "channels"}, 1)]
)
def test_weights_are_stored_by_channel_for_pictures_that_need_them(model, tmp_path, monkeypatch, asked, stored):
    (tmp_path / "t.txt").write_text(TEXT)
    facts = []
    facts_of = analysis_module.facts_of
    monkeypatch.setattr(analysis_module, "facts_of", lambda s: facts.append(s.llm.weights_bytes) or facts_of(s))
    analyze(model, tmp_path / "t.txt", tmp_path / "out", n_ctx=64, max_tokens=64, n_threads=1, **asked)
    assert [n > 0 for n in facts] == [bool(stored)]


def test_only_the_figures_asked_for_are_made(model, tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    analysis = analyze(
        model, tmp_path / "t.txt", tmp_path / "new" / "out", n_ctx=64, max_tokens=64, figures="skip_ratio",
        skip_ratio=0.25, policy="ffn_skip", n_speed=0, n_generated=[8], n_threads=1,
    )  # fmt: skip
    assert analysis.report == tmp_path / "new" / "out" / "report.html"
    assert repr(analysis).splitlines()[-1] == f"written to {analysis.report}"
    row = analysis.as_dict()["numbers"]["skip_ratio_quality"][0]
    assert (
        f"KL {row['kl']:.4g}" in repr(analysis)
        and str(row["kl"]) == read(analysis.report.parent, "skip_ratio_quality")[0]["kl"]
    )
    names = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert names == {"report.html", "skip_ratio.png", "skip_ratio.svg", "skip_ratio_quality.csv"}


def test_an_interrupted_run_leaves_whole_files_and_no_report(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "t.txt").write_text(TEXT)
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("of an earlier run")
    (out / "never_tripped.png").write_text("of an earlier run")
    write_bytes = Path.write_bytes

    def interrupted(path, data):
        if "never_tripped" in path.name:
            write_bytes(path, data[:100])
            raise KeyboardInterrupt
        write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    arguments = ["--text", str(tmp_path / "t.txt"), "-o", str(out), "-t", "1", "--max-tokens", "64", "--generated", "8"]
    assert cli.main(["analyze", str(model), *arguments]) == 130
    assert capsys.readouterr() == ("", "ffnskip analyze: interrupted\n")
    names = {path.name for path in out.iterdir()}
    assert names >= {"similarity.png", "similarity.svg", "similarity.csv"}
    assert not {name for name in names if name.endswith(".part")} and "report.html" not in names
    assert (out / "never_tripped.png").read_text() == "of an earlier run"


def test_the_command_prints_the_main_figures_or_all_of_them(model, tmp_path, capsys):
    (tmp_path / "t.txt").write_text(TEXT)
    arguments = [
        "--max-tokens",
        "64",
        "--figures",
        "similarity",
        "--text",
        str(tmp_path / "t.txt"),
        "-o",
        str(tmp_path),
    ]
    assert cli.main(["analyze", "-t", "1", *arguments, str(model)]) == 0
    assert "similarity: mean " in capsys.readouterr().out
    assert cli.main(["analyze", "-m", str(model), "-t", "1", "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["numbers"]["similarity"]) == N_LAYER and found["numbers"]["similarity"][-1]["mean"] is None
    assert found["report"] == str(tmp_path / "report.html")


def test_the_same_numbers_give_the_same_picture(analyzed, model, chunks):
    with ours(model, None) as llm:
        figures = [similarity.draw(measure_similarity(llm, chunks), (COLD_S, COLD_E), THRESHOLD) for _ in "ab"]
    assert len({svg_text(figure) for figure in figures}) == 1


# ---- refusals ----


@pytest.fixture
def analyze_cli(model, tmp_path, capsys):
    """Runs `ffnskip analyze` on a good text, unless the arguments say otherwise; returns status, stdout, stderr."""
    (tmp_path / "good.txt").write_text(TEXT)

    def run(*arguments, model=model, text=tmp_path / "good.txt", output=tmp_path / "out"):
        usual = ["analyze", str(model), "--text", str(text), "-o", str(output), "-t", "1"]
        return (cli.main([*usual, *map(str, arguments)]), *capsys.readouterr())

    return run


OF_MODEL_OR_TEXT = {"--warm-up", "--warm-ups", "0.25,0.9", "--cold-s", "--cold-e", "--profile", "--lora"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n-ctx", "16"], "n-ctx: 16 is too few; at least 32"),
        (["--max-tokens", "31"], "max-tokens: 31 is too few; at least 32"),
        (["--skip-ratio", "0.25,1.5"], "skip-ratio: 1.5 is outside (0, 1]"),
        (["--skip-ratio", "nan"], "skip-ratio: nan is outside (0, 1]"),
        (["--skip-ratio", "0.25,0.9"], "can skip at most 11 of 16"),
        (
            ["--policy", "fixed"],
            "policy: 'fixed' is measured as a profile; those measured by skip ratio: ffn_skip, random",
        ),
        (["--policy", "ffn_skip", "--region", "any"], "region: any is for policy random"),
        (["--region", "cold"], "region: 'cold' is not known; known are any, adaptive"),
        (["--figures", "figure2"], "figures: 'figure2' is not known; known are similarity, "),
        (["--warm-up", "-1"], "warm_up_index"),
        (["--warm-ups", "70,80", "--n-ctx", "64"], "warm-ups: none is at most half of the longest chunk"),
        (
            ["--warm-up", "63", "--n-ctx", "64", "--figures", "skip_ratio"],
            "warm-up: 63 tokens leave none of any chunk to skip",
        ),
        (["--cold-s", "14"], "cold_s"),
        (["--cold-e", "16"], "cold_e"),
        (["--prompts", "0"], "prompts: 0 is too few; at least 1"),
        (["--generated", "0"], "generated: 0 is too few; at least 1"),
        (["-t", "0"], "threads: 0 can't compute anything; 1 to 512"),
        (["-t", "100000"], "threads: 100000 can't compute anything; 1 to 512"),
        (["--skip-seed", "-1"], "seed: -1 is outside [0, 2**64)"),
        (["--profile", "auto"], "profile: auto, but there is no profile beside or in "),
        (["--profile", "none.gguf"], "none.gguf"),
        (["--lora", "none.gguf"], "lora: none.gguf: no such file"),
    ],
)
def test_bad_settings_are_refused_in_one_line(analyze_cli, arguments, message):
    status, out, err = analyze_cli(*arguments)
    assert (status, out) == (1 if set(arguments) & OF_MODEL_OR_TEXT else 2, "")
    assert err.startswith("ffnskip analyze: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "text.txt: there is no text in it"),
        (b"abc\0def", "text.txt: a binary file, not text"),
        (b"only a few words", "the text is too short: the longest has 16 tokens, and at least 32 are needed"),
    ],
)
def test_bad_text_is_refused_by_name(analyze_cli, tmp_path, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    status, out, err = analyze_cli(text=tmp_path / "text.txt")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_bad_model_is_refused_in_one_line(analyze_cli, tmp_path, model):
    (tmp_path / "cut.gguf").write_bytes(model.read_bytes()[:5000])
    for path, message in (
        (tmp_path / "none.gguf", "none.gguf: no such file"),
        (__file__, "not a GGUF file"),
        (tmp_path / "cut.gguf", "cut.gguf"),
    ):
        status, out, err = analyze_cli(model=path)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert message in err


def test_model_without_a_block_to_skip_is_refused(model_file, tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    with pytest.raises(UnsupportedModelError, match="mamba"):
        analyze(model_file("mamba"), [tmp_path / "t.txt"], tmp_path / "out")


def test_a_text_in_the_folder_is_not_written_over(model, tmp_path):
    (tmp_path / "out").mkdir()
    text = tmp_path / "out" / "report.html"
    text.write_text(TEXT)
    with pytest.raises(ValueError, match=r"report\.html: is the input itself"):
        analyze(model, [text], tmp_path / "out")
    assert text.read_text() == TEXT


@pytest.mark.parametrize("name", ["figures", "skip_ratio", "policy", "region", "warm_ups", "n_generated"])
def test_an_empty_list_is_refused_by_name(model, tmp_path, name):
    (tmp_path / "good.txt").write_text(TEXT)
    with pytest.raises(ValueError, match=f"{name.replace('_', '-').replace('n-', '')}: the list is empty"):
        analyze(model, tmp_path / "good.txt", tmp_path / "out", **{name: []})
    assert not (tmp_path / "out").exists()


def test_a_refusal_leaves_no_empty_folder(analyze_cli, tmp_path):
    (tmp_path / "lora.txt").write_text(TEXT)
    (tmp_path / "there").mkdir()
    for output in ("made", "made/deep/er", "there"):
        assert analyze_cli("--lora", tmp_path / "lora.txt", output=tmp_path / output)[0] == 1
    assert not (tmp_path / "made").exists() and (tmp_path / "there").is_dir()


def test_a_file_in_place_of_the_folder_is_refused(analyze_cli, tmp_path):
    (tmp_path / "out").write_text("")
    status, _, err = analyze_cli()
    assert (status, err.count("\n")) == (1, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written_to_is_refused_before_measuring(analyze_cli, tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    status, _, err = analyze_cli()
    assert (status, err.count("\n")) == (1, 1) and "can't be written to" in err


def test_missing_matplotlib_says_what_to_install(analyze_cli, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = analyze_cli()
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "pip install 'ffnskip_cpp[plots]'" in err
    assert not (tmp_path / "out").exists()


def test_a_model_of_few_layers_leaves_out_ratios_it_cannot_reach(tmp_path, analyze_cli):
    small = write_llama(tmp_path / "small.gguf", n_layer=4, n_ctx=CONTEXT)
    status, _, _ = analyze_cli(
        "--figures", "skip_ratio", "--speed-tokens", 0, "--max-tokens", 64, "--policy", "ffn_skip", model=small
    )
    assert status == 0
    assert [row["skip_ratio_target"] for row in read(tmp_path / "out", "skip_ratio_quality")] == ["0.25"]
    text = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    assert "Skip ratios left out: 0.1, 0.2, 0.3, 0.5: the model can't reach them, or another one is the same." in text
