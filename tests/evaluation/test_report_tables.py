"""The tables of `ffnskip report`: cells agree with counts made by hand, and the paper's numbers with its tables."""

from __future__ import annotations

import json
import math
import re
import shlex

import pytest

from ffnskip_cpp import cli, report_evaluation
from ffnskip_cpp.cli.arguments import take_model
from ffnskip_cpp.evaluation.judge.verdicts import Rates
from ffnskip_cpp.evaluation.runs import Figure
from ffnskip_cpp.evaluation.statistics import bootstrap
from ffnskip_cpp.evaluation.tasks import TASKS
from ffnskip_cpp.evaluation.tasks.base import Record
from support.made_up_runs import CATEGORIES, MODEL, Results, made_up, right_or_wrong, write_everything

DENSE_NAME, SKIP_NAME, RANDOM_NAME = "dense (Full Model)", "ffn_skip (FFN-SkipLLM)", "random (Baseline 1)"
CELL = re.compile(r"(-?[\d.,]+) \[(-?[\d.,]+), (-?[\d.,]+)\](\*?)( †)?")
DENSE = [1] * 12 + [0] * 8
WORSE = [0] * 8 + [1] * 4 + [0] * 8  # 8 items that dense alone has right
ALIKE = [0] + [1] * 12 + [0] * 7  # of one item more, and one less


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    folder = tmp_path_factory.mktemp("everything")
    write_everything(folder)
    return folder, report_evaluation(folder, formats=("md", "csv"))


def tables(results):
    return report_evaluation(results.folder, formats="csv").tables[results.model]


def row_of(rows, name, column="method"):
    return next(row for row in rows if row[column] == name)


def mcnemar(one, other):
    """From the binomial coefficients."""
    n, fewer = one + other, min(one, other)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


# ---- cells ----


def test_a_cell_is_the_share_with_its_interval_and_the_corrected_p(results):
    for method, right in (("dense", DENSE), ("ffn_skip", WORSE), ("random", ALIKE)):
        results.add("factoid", right_or_wrong(right), method, None if method == "dense" else 0.25)
    rows = tables(results)["table3-factoid-facts"]
    dense, skip, random = (row_of(rows, name) for name in (DENSE_NAME, SKIP_NAME, RANDOM_NAME))
    assert (dense["as it is"], skip["25 %"], random["25 %"]) == (60, 20, 60)
    low, high = bootstrap(TASKS["factoid"].metrics[0], DENSE, [1] * 20)
    assert (dense["as it is_low"], dense["as it is_high"], dense["as it is_n"]) == (100 * low, 100 * high, 20)
    assert (skip["25 %_p"], random["25 %_p"]) == (2 * mcnemar(8, 0), mcnemar(1, 1))  # Holm: of two tests
    assert dense["as it is_p"] is None


def test_only_what_differs_after_the_correction_has_a_star(results):
    results.add("factoid", right_or_wrong(DENSE))
    slightly = [0] * 6 + DENSE[6:]  # p = 1/32 by itself
    for method, right in (("ffn_skip", WORSE), ("random", slightly), ("channels", slightly), ("short_gpt", DENSE)):
        results.add("factoid", right_or_wrong(right), method, 0.25)
    assert mcnemar(6, 0) == 1 / 32
    cells = page_cells(results, "### Table 3")
    assert {name: cell and cell.group(4) for name, cell in cells.items()} == {
        **{DENSE_NAME: "", SKIP_NAME: "*", RANDOM_NAME: "", "random_adaptive_region (Baseline 2)": None},
        **{"short_gpt (ShortGPT)": "", "channels": ""},
    }


def page_cells(results, heading):
    """Of a section's table, by name of the row its first figure."""
    section = page(results).split(heading)[1].split("\n### ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {line[0].strip(): CELL.search(" | ".join(line)) for line in lines[2:]}


def test_a_run_in_which_nothing_could_skip_is_marked_and_not_tested(results):
    results.add("choice", right_or_wrong(DENSE, "acc"))
    results.add("choice", right_or_wrong(WORSE, "acc", may_skip=0), "ffn_skip", 0.25)
    results.add("choice", right_or_wrong(WORSE, "acc"), "channels", 0.25)
    results.add("choice", right_or_wrong(WORSE, "acc", may_skip=0), "file:small", size_ratio=0.75)
    cells = page_cells(results, "### All figures: choice")
    marks = {name: cell.groups()[3:] for name, cell in cells.items()}
    assert marks == {
        **{"dense": ("", None), "ffn_skip 25 %": ("", " †"), "channels 25 %": ("*", None), "small": ("*", None)},
    }
    rows = tables(results)["choice-facts"]
    assert [row["size"] for row in rows] == [None, None, None, 0.75]
    assert [row["could_skip"] for row in rows] == [None, 0, 100, None]


def test_the_difference_to_dense_is_on_common_items(results):
    results.add("factoid", right_or_wrong(DENSE))
    results.add("factoid", right_or_wrong(WORSE[:10]), "ffn_skip", 0.25)  # as far as it came
    row = row_of(tables(results)["factoid-facts"], "ffn_skip 25 %")
    assert (row["items"], row["match"], row["difference"], row["difference_n"]) == (10, 20, -80, 10)
    assert row["p"] == mcnemar(8, 0)


def test_without_a_dense_run_nothing_is_tested(results):
    results.add("factoid", right_or_wrong(WORSE), "ffn_skip", 0.25)
    row = row_of(tables(results)["factoid-facts"], "ffn_skip 25 %")
    assert (row["match"], row["difference"], row["p"]) == (20, None, None)


# ---- the paper's tables ----


def test_table_2_takes_what_is_nearest_to_a_fifth(results):
    results.add("factoid", right_or_wrong(DENSE))
    for ratio, right in ((0.1, 1), (0.15, 2), (0.25, 3), (0.3, 4)):
        results.add("factoid", right_or_wrong([1] * right + [0] * 6), "short_gpt", ratio, skip_ratio=ratio - 0.02)
    results.add("factoid", right_or_wrong(ALIKE), "random", 0.3)
    results.add("factoid", right_or_wrong(WORSE), "calibrated:near", skip_ratio=0.22)
    results.add("factoid", right_or_wrong(WORSE), "calibrated:far", skip_ratio=0.4)
    results.add("factoid", right_or_wrong(WORSE), "file:small", size_ratio=0.8)
    rows = tables(results)["table2"]
    assert [row["method"] for row in rows] == [
        *(DENSE_NAME, "skip_decode (SkipDecode)", "short_gpt (ShortGPT)", SKIP_NAME, "near", "small"),
    ]
    short_gpt = row_of(rows, "short_gpt (ShortGPT)")
    assert (short_gpt["factoid-facts match"], short_gpt["skipped"]) == (100 * 2 / 8, "13.0")
    assert row_of(rows, "near")["skipped"] == "22.0" and row_of(rows, "small")["skipped"] is None
    assert row_of(rows, SKIP_NAME)["factoid-facts match"] is None
    assert [short_gpt[f"{task} paper"] for task in ("factoid", "chat", "summarize")] == [70.49, 6.17, 6.33]
    assert row_of(rows, "near")["factoid paper"] is None


def test_tables_2_3_and_5_have_the_papers_numbers(everything):
    found = everything[1].tables[MODEL]
    assert {
        row["method"]: [row[f"{task} paper"] for task in ("factoid", "chat", "summarize")] for row in found["table2"]
    } == {
        DENSE_NAME: [79.02, 7.61, 8.15],
        "skip_decode (SkipDecode)": [73.33, 6.53, 7.47],
        "short_gpt (ShortGPT)": [70.49, 6.17, 6.33],
        SKIP_NAME: [78.89, 7.55, 8.11],
        **dict.fromkeys(
            (RANDOM_NAME, "random_adaptive_region (Baseline 2)", "channels", "tuned", "made-up-q3"), [None] * 3
        ),
    }
    ratios = ("as it is", "5 %", "15 %", "25 %", "35 %")
    printed = {row["method"]: [row[f"{ratio} paper"] for ratio in ratios] for row in found["table3-factoid-facts"]}
    assert printed[DENSE_NAME] == [79.02, None, None, None, None]
    assert printed[RANDOM_NAME] == [None, 77.32, 72.96, 49.22, 31.07]
    assert printed["random_adaptive_region (Baseline 2)"] == [None, 78.92, 77.71, 74.13, 69.93]
    assert printed[SKIP_NAME] == [None, 80.05, 78.42, 78.09, 75.61]
    rows = [row for row in found["table5-mmlu-facts"] if row["method"] == SKIP_NAME]
    ratios = ("5 %", "10 %", "20 %", "30 %")
    assert {row["group"]: [row[f"{ratio} paper"] for ratio in ratios] for row in rows} == {
        "STEM": [38.03, 37.65, 36.93, 33.50],
        "Humanities": [44.97, 43.78, 42.32, 40.98],
        "Social Science": [53.22, 53.30, 52.59, 52.08],
        "Others": [53.56, 53.12, 50.43, 51.86],
    }
    dense = [row for row in found["table5-mmlu-facts"] if row["method"] == DENSE_NAME]
    assert [row["as it is paper"] for row in dense] == [38.37, 44.28, 53.97, 53.23]


def test_table_5_has_the_groups_by_ratio(results):
    groups = ["STEM", "Humanities", "Social Science", "Others"] * 5
    more = {"name": "acc", "group": groups, "subject": ["anatomy"] * 20}
    results.add("mmlu", right_or_wrong([1] * 20, **more))
    results.add("mmlu", right_or_wrong([1, 0, 1, 1] * 5, **more), "ffn_skip", 0.1)
    results.add("mmlu", right_or_wrong([1, 0, 0, 1] * 5, **more), "ffn_skip", 0.4)
    rows = [row for row in tables(results)["table5-mmlu-facts"] if row["method"] == SKIP_NAME]
    assert [(row["group"], row["10 %"], row["40 %"], row["20 %"]) for row in rows] == [
        *(("STEM", 100, 100, None), ("Humanities", 0, 0, None), ("Social Science", 100, 0, None)),
        ("Others", 100, 100, None),
    ]
    five = mcnemar(5, 0)  # three times among eight tests
    assert [row["10 %_p"] for row in rows] == [1, 8 * five, 1, 1]
    assert [row["40 %_p"] for row in rows] == [1, 8 * five, 8 * five, 1]


def test_what_was_not_measured_is_named_with_a_command_that_parses(results):
    settings = {"limit": 20, "seed": 7, "max_tokens": 16}
    results.add("factoid", right_or_wrong(DENSE), **settings)
    results.add("factoid", right_or_wrong(WORSE), "ffn_skip", 0.15, **settings)
    results.add("mmlu", right_or_wrong([1] * 4, "acc", subject=["anatomy"] * 4), scoring="generate")
    report = report_evaluation(results.folder, formats="md")
    commands = [re.search("`(ffnskip .*)`", note).group(1) for note in report.notes[MODEL]]
    parsed = []
    for command in commands:
        words = shlex.split(command.replace("--warm-up N", "--warm-up 10"))[1:]
        parsed.append(cli._parser("eval").parse_args(words))
        take_model(parsed[-1])
        assert (parsed[-1].model, parsed[-1].output) == (f"{MODEL}.gguf", str(results.folder))
    asked = [(a.task[0], a.method, a.skip_ratio, a.limit, a.seed, a.max_tokens, a.scoring) for a in parsed]
    usual, of_factoid = (None, 0, None, "loglikelihood"), (20, 7, 16, "loglikelihood")
    assert asked == [
        ("speed", ["ffn_skip"], (0.15,), *usual),
        ("factoid", ["skip_decode", "short_gpt"], (0.2,), *of_factoid),
        ("chat", ["dense", "skip_decode", "short_gpt", "ffn_skip"], (0.2,), *usual),
        ("summarize", ["dense", "skip_decode", "short_gpt", "ffn_skip"], (0.2,), *usual),
        ("factoid", ["random", "random_adaptive_region"], (0.05, 0.15, 0.25, 0.35), *of_factoid),
        ("factoid", ["ffn_skip"], (0.05, 0.25, 0.35), *of_factoid),
        ("mmlu", ["ffn_skip"], (0.05, 0.1, 0.2, 0.3), None, 0, None, "generate"),
        ("summarize", ["dense", "random", "random_adaptive_region", "ffn_skip"], (0.05, 0.15, 0.25, 0.35), *usual),
        ("chat", ["dense", "random", "random_adaptive_region", "ffn_skip"], (0.05, 0.15, 0.25, 0.35), *usual),
        ("summarize", ["ffn_skip"], (0.25,), *usual),
    ]
    assert parsed[-1].warm_up == 10 and parsed[1].text is not None
    page = (results.folder / "report" / "report.md").read_text()
    assert all(command in page for command in commands)


# ---- the paper's figures, and curves ----


def test_figures_3_and_4_are_by_group_and_of_judges(everything):
    found = everything[1].tables[MODEL]
    rows = found["figure3-summarize-facts"]
    assert [key for key in rows[0] if key.endswith("_n")] == [
        f"{length} {name}_n"
        for length in ("small", "medium", "large")
        for name in (*(f"single-judge-1: {x}" for x in ("overall", "coherence", "fluency")), "rougeL")
    ]
    assert [row["method"] for row in rows[:2]] == ["dense", "ffn_skip 10 %"]
    assert all(row["small rougeL_n"] == 8 for row in rows)
    rows = found["figure4-chat-facts"]
    assert [key for key in rows[0] if key.endswith("_n")] == [
        f"{category} {name}_n" for name in ("single-judge-1: overall", "repeated_4grams") for category in CATEGORIES
    ]


def test_figure_5_has_the_runs_that_differ_in_their_warm_up(everything):
    rows = everything[1].tables[MODEL]["figure5-summarize-facts"]
    assert [(row["method"], row["warm_up"]) for row in rows] == [("ffn_skip 20 %", n) for n in (0, 10, 30)]
    assert rows[0]["rougeL"] < rows[1]["rougeL"] < rows[2]["rougeL"]
    assert not any("warm-up" in row["method"] for row in everything[1].tables[MODEL]["table2"])


def test_the_first_table_joins_all_tasks_and_prompts_that_skip_have_their_own_row(everything):
    rows = everything[1].tables[MODEL]["quality"]
    skip = row_of(rows, "ffn_skip 20 %")
    for task in TASKS:
        metric = TASKS[task].metrics[0]
        own = row_of(everything[1].tables[MODEL].get(f"{task}-facts", [skip]), "ffn_skip 20 %")
        assert skip[f"{task}-facts {metric.name}"] == own.get(metric.name, skip[f"{task}-facts {metric.name}"])
    with_prompts = row_of(rows, "ffn_skip 20 %, skip-prompts 1")
    assert with_prompts["mmlu-facts acc"] is not None and with_prompts["factoid-facts match"] is None


def test_speeds_have_the_papers_beside_them(everything):
    rows = everything[1].tables[MODEL]["speed"]
    skip = row_of(rows, "ffn_skip 20 %")
    assert (skip["speed_up"], skip["speed_up_low"], skip["speed_up_high"]) == pytest.approx((1.16, 1.14, 1.18))
    assert skip["paper"] == pytest.approx(10.22 / 9.08)
    assert row_of(rows, "random 20 %")["paper"] is None
    assert row_of(rows, "made-up-q3")["size"] == 0.8


# ---- collapse, subjects, judges ----


def test_agreement_is_with_the_text_of_the_dense_run(results):
    texts = [[1, 2, 3, 4], [1, 2, 3, 4], [5]]
    others = [[1, 2, 9, 4], [1, 2, 3, 4], [5, 6]]
    results.add("factoid", right_or_wrong([1, 1, 1], tokens=texts))
    results.add("factoid", right_or_wrong([1, 1, 1], tokens=others), "ffn_skip", 0.25)
    with_length = [
        Record(f"item-{i}", "", {"match": 1.0, "length": 4.0}, 1, 1, {"tokens": t}) for i, t in enumerate(others)
    ]
    results.add("factoid", with_length, "channels", 0.25)
    rows = tables(results)["collapse-factoid-facts"]
    skip = row_of(rows, "ffn_skip 25 %")
    assert skip["agreement"] == pytest.approx(100 * (2 / 4 + 1 + 1 / 2) / 3)
    assert (skip["same_text"], skip["first_difference"]) == pytest.approx((100 / 3, (2 + 4 + 1) / 3))
    assert row_of(rows, "dense")["agreement"] is None
    assert row_of(rows, "channels 25 %")["length"] == 4


def test_subjects_are_counted_each(results):
    subjects = ["anatomy", "virology", "anatomy"]
    results.add("mmlu", right_or_wrong([1, 0, 0], "acc", group=["STEM", "Others", "STEM"], subject=subjects))
    rows = tables(results)["subjects-mmlu-facts"]
    assert [(row["subject"], row["dense"], row["dense_n"]) for row in rows] == [("anatomy", 50, 2), ("virology", 0, 1)]


def test_judges_have_their_figures_and_rates(results):
    dense = results.add("chat", made_up("chat", 8, 0.5, 1))
    skip = results.add("chat", made_up("chat", 8, 0.5, 2), "ffn_skip", 0.2)
    scores = {run: {f"item-{i}": float(i % 2 + shift) for i in range(7)} for run, shift in ((dense, 5), (skip, 3))}
    half = Figure(0.5, 0.25, 0.75, 7)
    rates = {"overall": Rates(half, Figure(0.3, 0.1, 0.5, 7), Figure(0.2, 0.1, 0.3, 7), half)}
    results.judge(
        {run: ("chat", {"overall": x}) for run, x in scores.items()}, mode="pairwise", against="dense", rates=rates
    )
    found = tables(results)
    row = row_of(found["judge-pairwise-judge-1-chat-facts"], "ffn_skip 20 %")
    assert (row["pairwise-judge-1: overall"], row["pairwise-judge-1: overall_n"]) == (pytest.approx(3 + 3 / 7), 7)
    assert row["pairwise-judge-1: overall_p"] == 2 / 2**7  # all seven are two lower
    assert (row["win"], row["win_low"], row["tie"], row["lose"], row["orders disagree"]) == (50, 25, 30, 20, 50)
    assert (row["invalid"], row["failed"]) == (1, 2)
    assert row_of(found["table2"], SKIP_NAME)["chat-facts pairwise-judge-1: overall"] == pytest.approx(3 + 3 / 7)


@pytest.mark.parametrize("against", [None, "dense"])
@pytest.mark.parametrize("anew", [[], ["dense"], ["ffn_skip"], ["dense", "ffn_skip"]])
def test_grades_of_answers_that_were_made_anew_are_left_out_and_named(results, anew, against):
    names = {
        method: results.add("chat", made_up("chat", 8, 0.5, i), method)
        for i, method in enumerate(("dense", "ffn_skip"))
    }
    grades = {f"item-{i}": 5.0 for i in range(8)}
    results.judge(
        {name: ("chat", {"overall": grades}) for name in names.values() if name != names.get(against)},
        against=against,
        reference=names.get(against),
    )
    for method in anew:
        results.add("chat", made_up("chat", 8, 0.5, 7), method)
    report = report_evaluation(results.folder, formats=("md", "csv", "svg"))
    old = [name for name in names if name != against and (name in anew or against in anew)]
    graded = [name for name in names if name != against and name not in old]
    rows = report.tables[MODEL].get("judge-single-judge-1-chat-facts", [])
    assert [(row["method"], row["single-judge-1: overall"]) for row in rows] == [(name, 5) for name in graded]
    page = (results.folder / "report" / "report.md").read_text()
    said = re.findall("Judged before it, or .* made anew: (.*); `ffnskip judge` grades it again", page)
    assert said == ([", ".join(old)] if old else [])
    assert not any("anew" in note for note in report.notes[MODEL])  # which are of what was not measured


def test_grades_stay_where_what_they_were_compared_with_is_removed(results):
    dense = results.add("chat", made_up("chat", 8, 0.5, 1))
    skip = results.add("chat", made_up("chat", 8, 0.5, 2), "ffn_skip", 0.2)
    results.judge({skip: ("chat", {"overall": {f"item-{i}": 5.0 for i in range(8)}})}, against="dense", reference=dense)
    for path in results.folder.glob(f"{dense}.*"):
        path.unlink()
    (row,) = tables(results)["judge-single-judge-1-chat-facts"]
    assert row["single-judge-1: overall"] == 5


# ---- what was asked ----


def test_runs_that_were_asked_otherwise_are_in_tables_of_their_own(results):
    results.add("mmlu", made_up("mmlu", 8, 0.5, 1), scoring="generate")
    results.add("mmlu", made_up("mmlu", 8, 0.5, 2), scoring="loglikelihood")
    results.add("mmlu", made_up("mmlu", 8, 0.5, 2), "ffn_skip", 0.2, scoring="loglikelihood")
    found = tables(results)
    assert len(found["mmlu-facts-scoring-generate"]) == 1 and len(found["mmlu-facts-scoring-loglikelihood"]) == 2
    assert "### All figures: mmlu, facts, scoring generate" in page(results)


def page(results):
    report_evaluation(results.folder, formats="md")
    return (results.folder / "report" / "report.md").read_text()


def test_perplexities_are_compared_with_the_dense_run_of_the_same_warm_up(results):
    for warm_up, chance in ((30, 0.5), (0, 0.9)):
        results.add("perplexity", made_up("perplexity", 8, chance, 1), warm_up_index=warm_up)
        results.add("perplexity", made_up("perplexity", 8, chance, 1), "ffn_skip", 0.2, warm_up_index=warm_up)
    rows = tables(results)["perplexity-facts"]
    assert [(row["method"], row["difference"]) for row in rows] == [
        *(("dense, warm-up 0", None), ("dense", None)),
        *(("ffn_skip 20 %, warm-up 0", 0), ("ffn_skip 20 %", 0)),
    ]


def test_a_profile_of_another_warm_up_is_one_row_and_another_that_was_asked_for_one_more(results):
    """A perplexity's rows begin at the usual warm-up, whatever the profile's own."""
    for task, own in (("choice", 0), ("perplexity", 30)):
        name = results.add(task, made_up(task, 8, 0.5, 1), "calibrated:blocks")
        path = results.folder / f"{name}.json"
        run = json.loads(path.read_text())
        path.write_text(json.dumps({**run, "settings": {**run["settings"], "warm_up_index": own}}))
        results.add(task, made_up(task, 8, 0.5, 1), "calibrated:blocks", warm_up_index=10)
    found = tables(results)
    (row,) = found["quality"]
    assert row["method"] == "blocks"
    for task in ("choice", "perplexity"):
        assert row[f"{task}-facts {TASKS[task].metrics[0].name}"] is not None
        assert {row["method"] for row in found[f"{task}-facts"]} == {"blocks", "blocks, warm-up 10"}


def test_the_page_says_that_p_is_corrected(results):
    results.add("factoid", right_or_wrong(DENSE))
    assert "p of the paired test, with Holm's correction for all tests of the column." in page(results)


def test_models_of_several_folders_stand_one_after_the_other(tmp_path):
    for name in ("second", "first"):
        Results(tmp_path / name, name).add("factoid", right_or_wrong(DENSE))
    out = tmp_path / "out"
    report = report_evaluation([tmp_path / "second", tmp_path / "first"], out, formats=("md", "csv"))
    assert list(report.tables) == ["first", "second"]
    assert re.findall("^## (.*)$", (out / "report.md").read_text(), re.M) == ["first", "second"]
    assert {path.parent.name for path in report.files} == {"out", "first", "second"}
