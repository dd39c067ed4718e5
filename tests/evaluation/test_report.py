"""`ffnskip report`: every file has its table; what is broken, or can't be asked for, is refused in a line."""

from __future__ import annotations

import csv
import json
import re
import sys

import pytest

from ffnskip_cpp import cli, report_evaluation
from ffnskip_cpp.errors import ArgumentError
from support.made_up_runs import MODEL, Results, right_or_wrong, write_everything

DENSE = [1] * 12 + [0] * 8


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results")


# ---- files ----


def test_every_line_of_a_table_has_the_same_cells_and_every_file_is_the_table(tmp_path):
    folder = write_everything(tmp_path, n=8).folder
    report = report_evaluation(folder, formats=("md", "csv"))
    text = (folder / "report" / "report.md").read_text()
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        assert len({line.count(" | ") for line in block.splitlines()[2:]}) == 1
    assert "nan" not in text and "None" not in text
    for name, rows in report.tables[MODEL].items():
        with open(folder / "report" / MODEL / f"{name}.csv", newline="") as file:
            read = list(csv.DictReader(file))
        assert [list(row) for row in read] == [list(row) for row in rows]
        assert [list(row.values()) for row in read] == [
            ["" if value is None else str(value) for value in row.values()] for row in rows
        ]


@pytest.mark.parametrize("formats", ["md", "csv", "png", "svg"])
def test_only_the_formats_that_are_asked_for_are_written(results, formats):
    results.add("factoid", right_or_wrong(DENSE))
    report = report_evaluation(results.folder, formats=formats)
    assert {path.suffix for path in report.files} == {f".{formats}"}
    found = {path for path in (results.folder / "report").rglob("*") if path.is_file()}
    assert found == set(report.files)


def test_matplotlib_is_needed_for_pictures_alone(results, monkeypatch, capsys):
    results.add("factoid", right_or_wrong(DENSE))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["report", str(results.folder)]) == 1
    assert "pip install 'ffnskip_cpp[plots]'" in capsys.readouterr().err
    assert not (results.folder / "report").exists()
    assert cli.main(["report", str(results.folder), "--format", "md,csv"]) == 0


# ---- the command ----


def test_the_command_prints_where_the_report_is_or_all_tables(results, capsys):
    results.add("factoid", right_or_wrong(DENSE))
    assert cli.main(["report", str(results.folder), "--format", "md", "-o", str(results.folder / "there")]) == 0
    out = capsys.readouterr().out
    assert out == f"{MODEL}: 5 tables; not measured: 9 parts of the paper's\nwritten to {results.folder / 'there'}\n"
    assert cli.main(["report", str(results.folder), "--format", "md", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["tables"][MODEL]["factoid-facts"][0]["match"] == 60


def test_runs_that_are_not_finished_are_named(results, capsys):
    results.add("factoid", right_or_wrong(DENSE))
    (results.folder / "factoid-facts-random-0.2.begun").write_text("{}")
    report = report_evaluation(results.folder, formats="md")
    assert report.unfinished == ("factoid-facts-random-0.2",)
    said = "Not finished, and in no table: factoid-facts-random-0.2; the same ffnskip eval goes on"
    assert said in (results.folder / "report" / "report.md").read_text().splitlines()
    assert cli.main(["report", str(results.folder), "--format", "md"]) == 0
    assert said in capsys.readouterr().out.splitlines()


def test_commands_for_what_is_missing_have_the_settings_of_what_is_there(results):
    results.add("factoid", right_or_wrong(DENSE), limit=20, n_ctx=512, skip_prompts=1)
    report = report_evaluation(results.folder, formats="md")
    command = next(note for note in report.notes[MODEL] if "factoid" in note)
    assert "--limit 20 --n-ctx 512 --skip-prompts 1" in command


def test_a_command_for_what_is_missing_has_all_options_that_decide_and_the_folder_of_its_runs(tmp_path):
    """Else `ffnskip eval` refuses it, or puts a second dense run of that name into another folder."""
    lora = {"lora": "mine.gguf", "lora_scale": 0.5, "lora_sha256": "0" * 64}
    settings = {"parallel": 2, "n_gpu_layers": 0, "lora": lora}
    Results(tmp_path / "first").add("factoid", right_or_wrong(DENSE), parallel=8, n_gpu_layers=-1, lora=None)
    second = Results(tmp_path / "second")
    second.add("mmlu", right_or_wrong([1] * 4, "acc", subject=["anatomy"] * 4), **settings)
    second.add_speed(threads=3, **settings)
    folders = [tmp_path / "first", tmp_path / "second"]
    notes = report_evaluation(folders, tmp_path / "out", formats="md").notes[MODEL]
    commands = {
        task: next(note for note in notes if f"--task {task} " in note) for task in ("factoid", "mmlu", "speed")
    }
    options = "--parallel 2 --n-gpu-layers 0"
    assert f"{options} --lora mine.gguf:0.5 -o {folders[1]}`" in commands["mmlu"]
    assert f"{options} --threads 3 --lora mine.gguf:0.5 -o {folders[1]}`" in commands["speed"]
    assert f"-o {folders[0]}`" in commands["factoid"]
    assert not any(name in commands["factoid"] for name in ("--parallel", "--n-gpu-layers", "--lora"))


def broken(name, content):
    return lambda folder: (folder / name).write_text(content)


RUN = "factoid-facts-dense"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.glob("*.json*")], "{}: has no finished run"),
        (broken(f"{RUN}.json", "{"), "{}/factoid-facts-dense.json: no run"),
        (broken(f"{RUN}.json", "[]"), "{}/factoid-facts-dense.json: no run"),
        (broken(f"{RUN}.items.jsonl", '{"id": "a"}\n'), "{}/factoid-facts-dense.items.jsonl:1: no record"),
        (lambda folder: (folder / f"{RUN}.items.jsonl").unlink(), "{}/factoid-facts-dense.items.jsonl: missing"),
        (broken("judge/single.json", "{}"), "{}/judge/single.json: is no judgement"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(results, damage, message, capsys):
    results.add("factoid", right_or_wrong(DENSE))
    (results.folder / "judge").mkdir()
    damage(results.folder)
    assert cli.main(["report", str(results.folder), "--format", "md"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"ffnskip report: {message.format(results.folder)}")
    assert not (results.folder / "report").exists()


def test_what_can_not_be_asked_for_is_refused(results, capsys, tmp_path):
    name = results.add("factoid", right_or_wrong(DENSE))
    for arguments, status, why in (
        ([str(tmp_path / "nowhere")], 1, "nowhere: no such folder"),
        ([str(results.folder), "--format", "md,pdf"], 2, "format: pdf; there are md, csv, png, svg"),
        ([str(results.folder), str(results.folder)], 2, "2 folders; give one, or an output for all of them"),
        ([str(results.folder), str(results.folder), "-o", str(tmp_path / "out")], 1, f"{name} of {MODEL} is in"),
    ):
        assert cli.main(["report", *arguments]) == status
        assert why in capsys.readouterr().err
    for formats in ((), ""):
        with pytest.raises(ArgumentError, match="format"):
            report_evaluation(results.folder, formats=formats)
    with pytest.raises(ArgumentError, match="0 folders"):
        report_evaluation([])


def test_two_files_of_one_name_are_no_model(tmp_path, capsys):
    folders = [tmp_path / "fa", tmp_path / "fb"]
    for folder, method, digit in zip(folders, ("dense", "random"), "ab"):
        results = Results(folder)
        results.add("factoid", right_or_wrong(DENSE), method, model_sha256=digit * 64)
    results.add("mmlu", right_or_wrong([1] * 4, "acc", subject=["anatomy"] * 4))  # does not say
    assert cli.main(["report", *map(str, folders), "-o", str(tmp_path / "out"), "--format", "md"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"ffnskip report: {MODEL}: factoid-facts-dense") and err.count("\n") == 1
    assert f"in {folders[0]} and factoid-facts-random" in err and f"in {folders[1]} are of different files" in err
    assert "aaaaaaaa and bbbbbbbb; each needs a folder and a report of its own, or another name" in err
    assert all(cli.main(["report", str(folder), "--format", "md"]) == 0 for folder in folders)


def test_a_task_that_is_not_known_is_refused(results, capsys):
    run = results.folder / f"{results.add('factoid', right_or_wrong(DENSE))}.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "task": "riddles"}))
    assert cli.main(["report", str(results.folder)]) == 1
    assert "task 'riddles' is none of factoid, chat" in capsys.readouterr().err
