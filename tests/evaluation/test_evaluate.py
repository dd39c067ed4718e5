"""evaluate(): what comes out is what plain llama.cpp says of the same items; runs go on where they were."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import demo_world
from ffnskip_cpp import Llama, ProfileMismatchError, SkipConfig, TargetUnreachableError, cli, evaluate
from ffnskip_cpp.errors import ArgumentError
from ffnskip_cpp.evaluation import items
from ffnskip_cpp.evaluation.methods import Method
from ffnskip_cpp.evaluation.runs import dense_of, read_records, read_runs
from ffnskip_cpp.evaluation.store import open_store
from ffnskip_cpp.evaluation.subject import ModelSubject, Options
from ffnskip_cpp.evaluation.tasks import TASKS
from support.evaluation_files import accuracies, choices, likelihoods, words, write_lines
from support.logits import log_softmax
from support.running import ours, plain, quantized

N_LAYER = 8
LAYERS = (2, 5)
OPTIONS = {"n_ctx": 512, "n_threads": 2, "n_gpu_layers": 0, "progress": False}
QUESTIONS = choices(24)


@pytest.fixture(scope="module")
def model(model_file):
    return model_file("llama", n_layer=N_LAYER)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("data") / "made.jsonl", QUESTIONS)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(words(np.random.default_rng(1), 400), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def profile(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "two.ffnskip.gguf"
    save_profile(model, path, LAYERS)
    return path


def save_profile(model, path, layers):
    """Of every token that may skip, these layers."""
    with Llama(str(model), skip=None, verbose=False) as llm:
        with llm.skipping(SkipConfig(layers=layers, max_skip=0, warm_up_index=0)):
            llm.save_profile(path)


def kept(run):
    """Without the time that it took."""
    return {**run.as_dict(), "seconds": None}


# ---- figures ----


def test_accuracies_are_those_of_plain_llama_cpp(model, questions, tmp_path):
    found = evaluate(model, "choice", questions, tmp_path, methods="dense", **OPTIONS)
    (run,) = found.runs
    likely = likelihoods(model, QUESTIONS)
    acc, acc_norm = accuracies(QUESTIONS, likely)
    assert (run.metrics["acc"].value, run.metrics["acc_norm"].value) == (acc, acc_norm)
    assert 0 < acc < 1 and run.metrics["acc"].n == 24
    assert (run.method, run.config, run.could_skip, run.skip_ratio, run.size_ratio) == ("dense", None, 0, 0, 1)
    records = read_records(tmp_path, run)
    assert np.allclose(
        np.concatenate([record.shown["likely"] for record in records]), np.concatenate(likely), rtol=1e-4
    )
    assert read_runs(tmp_path) == [run] and found.differences == {}


def test_a_method_is_the_file_without_what_it_leaves_out(model, model_file, questions, profile, tmp_path):
    """Every row may skip, prompts too."""
    found = evaluate(
        model, "choice", questions, tmp_path, methods=[profile], warm_up_index=0, skip_prompts=0, **OPTIONS
    )
    dense, run = found.runs
    without = model_file("llama", n_layer=N_LAYER, zero_ffn_layers=LAYERS)
    acc, acc_norm = accuracies(QUESTIONS, likelihoods(without, QUESTIONS))
    assert (run.metrics["acc"].value, run.metrics["acc_norm"].value) == (acc, acc_norm)
    assert acc_norm != dense.metrics["acc_norm"].value
    assert run.method == "calibrated:two" and run.could_skip == 1 and run.skip_ratio == 2 / N_LAYER
    assert run.settings["skip_prompts"] == 0 and dense.settings["skip_prompts"] is None
    assert dense_of(run, found.runs) is dense
    difference = found.differences[run.name]
    assert difference.difference == pytest.approx(run.metrics["acc_norm"].value - dense.metrics["acc_norm"].value)


def test_nothing_skips_within_the_warm_up_and_the_page_says_so(model, questions, tmp_path):
    found = evaluate(model, "choice", questions, tmp_path, methods="random", skip_ratio=0.25, **OPTIONS)
    dense, run = found.runs
    assert run.could_skip == 0 and run.metrics == dense.metrics
    assert "nothing of what is scored could skip: use --skip-prompts N, or where" in repr(found)
    again = evaluate(
        model, "choice", questions, tmp_path, methods="random", skip_ratio=0.25, warm_up_index=0, **OPTIONS
    )
    other = again.runs[1]
    assert 0 < other.could_skip < 1 and "could skip: use" not in repr(again)
    records = read_records(tmp_path, other)
    with plain(model) as llm:
        n_tokens = [sum(len(llm.tokenize(f" {choice}".encode())) for choice in each["choices"]) for each in QUESTIONS]
    assert [record.n_scored for record in records] == n_tokens
    first = [len(entry["choices"]) for entry in QUESTIONS]  # tokens, one of each choice, that the prompt predicts
    assert [record.n_may_skip for record in records] == [n - k for n, k in zip(n_tokens, first)]
    assert sorted(run.name for run in read_runs(tmp_path)) == [
        "choice-made-dense",
        "choice-made-random-0.25",
        "choice-made-random-0.25-warm_up-0",
    ]


def test_another_file_is_compared_with_the_users(model, text, tmp_path):
    """Perplexity, KL divergence and same top token of rows from the warm-up on, against llama.cpp's logits."""
    other = quantized(model, tmp_path / "small.gguf", "q4_0")
    found = evaluate(
        model, "perplexity", text, tmp_path / "out", methods=[other, "ffn_skip"], warm_up_index=4, limit=2, **OPTIONS
    )
    dense, small, skipping = found.runs
    pieces = items.read_data_sets(["perplexity"], text, 2, 0)[0].items
    kl, nll, same, rows = 0.0, 0.0, 0, 0
    for piece in pieces:
        tokens, logits = [], []
        for path in (model, other):
            with plain(path, n_ctx=512, logits_all=True) as llm:
                tokens = llm.tokenize(piece.text.encode())[:512]
                llm.eval(tokens)
                logits.append(log_softmax(llm.scores[4 : len(tokens) - 1]))
        p, q = logits
        kl += float((np.exp(p) * (p - q)).sum())
        nll -= float(q[np.arange(len(q)), tokens[5:]].sum())
        same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
        rows += len(q)
    values = {name: figure.value for name, figure in small.metrics.items()}
    assert values["kl"] == pytest.approx(kl / rows, rel=1e-3) and values["kl"] > 1e-3
    assert values["perplexity"] == pytest.approx(np.exp(nll / rows), rel=1e-3)
    assert values["same_top"] == pytest.approx(same / rows, abs=2 / rows)
    assert small.method == "file:small" and 0.1 < small.size_ratio < 1 and small.could_skip == 0
    assert dense.metrics["kl"].value == 0 and dense.metrics["same_top"].value == 1
    assert skipping.could_skip == 1 and skipping.metrics["kl"].value > 0
    assert small.settings["file_sha256"] and dense.settings["file_sha256"] is None


def test_answers_are_what_plain_llama_cpp_writes(model, tmp_path):
    """Several at once, some of them longer than others. The model has no chat template."""
    facts = [
        {"context": f"Question: {each['query']}\nAnswer:", "answer": "a", "aliases": ["b"]} for each in QUESTIONS[:6]
    ]
    data = write_lines(tmp_path / "facts.jsonl", facts)
    found = evaluate(
        model, "factoid", data, tmp_path / "out", methods="random", skip_prompts=0, warm_up_index=0, **OPTIONS
    )
    dense, random = (read_records(tmp_path / "out", run) for run in found.runs)
    with plain(model) as llm:
        for record in dense:
            prompt = f"Please give answer to this question: {record.shown['question']} The answer is"
            greedy = llm.generate(llm.tokenize(prompt.encode()), temp=0.0, repeat_penalty=1.0)
            assert record.shown["tokens"] == list(itertools.islice(greedy, 32))
    assert [record.shown["text"] for record in random] != [record.shown["text"] for record in dense]
    assert found.runs[1].could_skip == 1 and found.runs[1].skip_ratio == 0.25


def test_dialogues_are_written_in_fastchats_format_too(model, tmp_path):
    turns = [{"question_id": i, "category": "writing", "turns": ["Hello.", "Again."]} for i in (81, 82)]
    data = write_lines(tmp_path / "bench.jsonl", turns)
    options = {"methods": "random", "warm_up_index": 1, "max_tokens": 5, **OPTIONS}
    found = evaluate(model, "chat", data, tmp_path / "out", **options)
    files = sorted(path.name for path in (tmp_path / "out" / "model_answer").iterdir())
    assert files == [f"{model.stem}__bench-{name}.jsonl" for name in ("dense", "random-0.25-warm_up-1")]
    lines = (tmp_path / "out" / "model_answer" / files[0]).read_text(encoding="utf-8").splitlines()
    records = read_records(tmp_path / "out", found.runs[0])
    assert [json.loads(line)["choices"][0]["turns"] for line in lines] == [record.shown["turns"] for record in records]
    assert found.runs[0].metrics["repeated_4grams"].n == 2 and set(found.runs[0].groups) == {"writing"}


# ---- methods ----


def test_every_method_runs_and_says_what_it_left_out(model, text, tmp_path):
    names = ["ffn_skip", "random", "random_adaptive_region", "short_gpt", "skip_decode", "channels"]
    found = evaluate(
        model, "perplexity", text, tmp_path, methods=names, skip_ratio=(0.25, 0.375), text=text, limit=1, **OPTIONS
    )
    runs = {(run.method, run.skip_ratio_target): run for run in found.runs}
    assert list(runs) == [("dense", None), *((name, ratio) for name in names for ratio in (0.25, 0.375))]
    for ratio in (0.25, 0.375):
        assert runs["random", ratio].skip_ratio == pytest.approx(ratio * 0.75, abs=0.2)  # not within the warm-up
        assert runs["channels", ratio].config["channel_thresholds"]
        layers = runs["short_gpt", ratio].config["layers"]
        assert len(layers) == ratio * N_LAYER and runs["short_gpt", ratio].skip_ratio == pytest.approx(ratio)
    assert all(run.could_skip == 1 for run in found.runs if run.method != "dense")
    assert runs["random", 0.25].metrics["kl"].value != runs["random_adaptive_region", 0.25].metrics["kl"].value


def test_short_gpt_leaves_out_the_layers_that_change_least(model_file, text, tmp_path):
    """Layers 3 and 5 add next to nothing: FFN blocks of no size, and attention that every layer has alike."""
    scale = [1.0] * N_LAYER
    scale[3] = scale[5] = 0.01
    path = model_file("llama", n_layer=N_LAYER, ffn_scale=tuple(scale))
    found = evaluate(
        path, "perplexity", text, tmp_path, methods="short_gpt", skip_ratio=0.25, text=text, limit=1, **OPTIONS
    )
    assert found.runs[1].config["layers"] == [3, 5]


def test_thresholds_of_channels_leave_out_what_was_asked_of_the_text(model, text, tmp_path):
    options = {"skip_ratio": (0.2, 0.4), "text": text, "warm_up_index": 0, **OPTIONS}
    found = evaluate(model, "perplexity", text, tmp_path, methods="channels", **options)
    assert [run.skip_ratio for run in found.runs[1:]] == pytest.approx([0.2, 0.4], abs=0.02)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"methods": "ffnskip"}, ArgumentError, "method: 'ffnskip' is none of dense, ffn_skip, random"),
        ({"methods": "gone.gguf"}, FileNotFoundError, "gone.gguf: no such file"),
        ({"methods": "short_gpt"}, ArgumentError, "method: short_gpt .* give --text"),
        ({"methods": "ffn_skip", "skip_ratio": 1.0}, ArgumentError, r"skip-ratio: 1 is outside \(0, 1\)"),
        ({"methods": "dense", "skip_ratio": 0.2}, ArgumentError, "skip-ratio: none of the methods takes one"),
        ({"methods": "ffn_skip", "skip_ratio": (0.2, 0.2)}, ArgumentError, "has one of them twice"),
        ({"methods": ["random", "ffn_skip"], "skip_ratio": 0.9}, ValueError, "method: ffn_skip 90 %: "),
        ({"methods": "ffn_skip", "skip_ratio": 0.01}, TargetUnreachableError, "ffn_skip 1 %: .* less than half of one"),
        ({"methods": ["channels", "channels"]}, ArgumentError, "two are called channels 33.3 %"),
        ({"methods": []}, ArgumentError, "method: none is named"),
        ({"limit": 0}, ArgumentError, "limit: 0 is too few; at least 1"),
        ({"skip_prompts": -1}, ArgumentError, "skip-prompts: -1"),
        ({"n_parallel": 256}, ArgumentError, "parallel: 256 is too many; at most 255"),
        ({"scoring": "generate"}, ArgumentError, "scoring: generate is for task mmlu"),
        ({"text": "gone.txt"}, FileNotFoundError, "gone.txt: no such file"),
        ({"n_threads": 0}, ArgumentError, "threads: 0"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_run(model, questions, tmp_path, options, error, words):
    out = tmp_path / "out"
    with pytest.raises(error, match=words):
        evaluate(model, "choice", questions, out, **{**OPTIONS, **options})
    assert not out.exists() or list(out.iterdir()) == []


def test_files_of_other_models_are_refused(model, model_file, questions, profile, tmp_path):
    other = model_file("llama", n_layer=12)
    with pytest.raises(ProfileMismatchError, match=r"^method: calibrated two: .*two.ffnskip.gguf"):
        evaluate(other, "choice", questions, tmp_path / "out", methods=[profile], **OPTIONS)
    demo = model_file("demo")
    with pytest.raises(ValueError, match=r"another vocabulary than"):
        evaluate(model, "choice", questions, tmp_path / "out", methods=[demo], **OPTIONS)
    with pytest.raises(ArgumentError, match=r"is the model itself, and has no profile inside; that is dense"):
        evaluate(model, "choice", questions, tmp_path / "out", methods=[model], **OPTIONS)
    again = tmp_path / "two.gguf"
    shutil.copy(profile, again)
    with pytest.raises(ArgumentError, match=r"method: two are called calibrated two; give the files other names"):
        evaluate(model, "choice", questions, tmp_path / "out", methods=[profile, again], **OPTIONS)


# ---- data ----


@pytest.mark.parametrize(
    ("tasks", "data", "words"),
    [
        ("choise", "a", "task: 'choise' is not known; known are factoid, .*, speed"),
        ((), "a", "task: none is named"),
        (("choice", "choice"), "a", "one of them twice"),
        ("choice", None, "data: none for task choice"),
        (("choice", "cloze"), ["a", "b", "c"], "data: 3 files for 2 tasks"),
        (("choice", "cloze"), {"choice": "a"}, "data: none for task cloze"),
        ("choice", {"choice": "a", "cloze": "b"}, "data: some for 'cloze', which is no task that is to be run"),
        ("speed", "a", "data: 1 files for 0 tasks"),
    ],
)
def test_data_is_that_of_the_tasks(model, tmp_path, tasks, data, words):
    with pytest.raises(ArgumentError, match=words):
        evaluate(model, tasks, data, tmp_path / "out", **OPTIONS)


def test_each_file_is_a_data_set_of_its_own_name(questions, tmp_path):
    other = write_lines(tmp_path / "other.jsonl", choices(3, seed=1))
    found = items.read_data_sets(["choice", "speed"], [questions, other], None, 0)
    assert [(data.task, data.name, len(data.items)) for data in found] == [
        ("choice", "made", 24),
        ("choice", "other", 3),
    ]
    assert len({data.sha256 for data in found}) == 2
    shutil.copy(other, tmp_path / "made.jsonl")
    with pytest.raises(ArgumentError, match="two data sets of choice are called made"):
        items.read_data_sets(["choice"], [questions, tmp_path / "made.jsonl"], None, 0)


def test_a_choice_of_items_takes_of_each_group_and_grows(tmp_path):
    entries = [
        {"question_id": i, "category": "abc"[i % 3] if i < 30 else "rare", "turns": [f"Say {i}."]} for i in range(31)
    ]
    all_items = TASKS["chat"].read(write_lines(tmp_path / "chat.jsonl", entries))
    chosen = [items.chosen(all_items, n, seed=3) for n in range(1, 32)]
    for smaller, larger in zip(chosen, chosen[1:]):
        assert {item.id for item in smaller} < {item.id for item in larger}
    assert [item.question_id for item in chosen[9]] == sorted(item.question_id for item in chosen[9])
    groups = [item.group for item in chosen[9]]
    assert sorted(groups.count(name) for name in "abc") == [3, 3, 3] and groups.count("rare") == 1
    assert items.chosen(all_items, 10, seed=3) == chosen[9] != items.chosen(all_items, 10, seed=4)
    assert items.chosen(all_items, None, seed=3) == items.chosen(all_items, 99, seed=3) == all_items


# ---- going on ----


def command(model, questions, out, *more):
    words = ["eval", str(model), "--task", "choice", "--data", str(questions), "-o", str(out), "--no-progress"]
    return [*words, "--n-ctx", "512", "--parallel", "1", "-t", "2", "-ngl", "0", *more]


def interrupted(arguments, path, n_lines, how):
    """Runs the command until it has so many items of a run, and ends it; its exit status, and what it said."""
    child = subprocess.Popen([sys.executable, "-m", "ffnskip_cpp", *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not path.exists() or path.read_bytes().count(b"\n") < n_lines:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(how)
    _, said = child.communicate()
    return child.returncode, said


N_MANY = 48
WHILE_SKIPPING = {"methods": "random", "warm_up_index": 0, "skip_prompts": 3, "n_parallel": 1}


@pytest.fixture(scope="module")
def uninterrupted(model, tmp_path_factory):
    """The data, where the results of it lie, and the results."""
    folder = tmp_path_factory.mktemp("whole")
    many = write_lines(folder / "many.jsonl", choices(N_MANY, seed=2))
    return many, folder / "out", evaluate(model, "choice", many, folder / "out", **OPTIONS, **WHILE_SKIPPING)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_and_comes_to_the_same(model, uninterrupted, tmp_path, monkeypatch, how):
    many, folder, whole = uninterrupted
    path = tmp_path / "choice-many-random-0.25-warm_up-0-skip_prompts-3.items.jsonl"
    arguments = command(model, many, tmp_path, "--method", "random", "--warm-up", "0", "--skip-prompts", "3")
    status, said = interrupted(arguments, path, 10, how)
    if how == signal.SIGINT:
        assert (status, said) == (130, "ffnskip eval: interrupted; the same command goes on from here\n")
    assert (tmp_path / "choice-many-random-0.25-warm_up-0-skip_prompts-3.begun").exists()
    n_whole = len(path.read_bytes().splitlines()[: N_MANY - 1]) // 4 * 4
    with open(path, "ab") as file:
        file.write(b'{"id": "torn')

    asked, run = [], type(TASKS["choice"]).run

    def watched(self, subject, some, settings):
        asked.extend(some)
        return run(self, subject, some, settings)

    monkeypatch.setattr(type(TASKS["choice"]), "run", watched)
    again = evaluate(model, "choice", many, tmp_path, **OPTIONS, **WHILE_SKIPPING)
    assert (
        N_MANY - n_whole <= len(asked) <= N_MANY - n_whole + 4
    )  # the dense run was finished, and whole blocks of 4 items
    assert [kept(run) for run in again.runs] == [kept(run) for run in whole.runs]
    for run in whole.runs:
        name = f"{run.name}.items.jsonl"
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(folder))


def test_what_is_finished_is_not_run_again(model, questions, tmp_path, monkeypatch):
    first = evaluate(model, "choice", questions, tmp_path, methods="random", **OPTIONS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(*_):
        raise AssertionError("it is run again")

    monkeypatch.setattr(type(TASKS["choice"]), "run", fails)
    again = evaluate(model, "choice", questions, tmp_path, methods="random", **{**OPTIONS, "n_threads": 1})
    assert again.runs == first.runs and again.differences == first.differences
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(AssertionError, match="it is run again"):
        evaluate(model, "choice", questions, tmp_path, methods="random", skip_prompts=2, **OPTIONS)


def test_results_of_other_settings_are_not_mixed(model, model_file, questions, profile, tmp_path):
    out = tmp_path / "out"
    evaluate(model, "choice", questions, out, methods=[profile, "random"], **OPTIONS)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def refused(words, model=model, questions=questions, **options):
        with pytest.raises(ValueError, match=words):
            evaluate(model, "choice", questions, out, **{**OPTIONS, "methods": "random", **options})
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    refused("choice-made-dense is there already and differs: limit was None and is 5. Give another folder", limit=5)
    refused("seed was 0 and is 1", seed=1)
    refused("n_ctx was 512 and is 600", n_ctx=600)
    other = tmp_path / model.name
    shutil.copy(model_file("llama", n_layer=N_LAYER, seed=1), other)
    refused("model_sha256 was '.*' and is '", model=other)
    changed = write_lines(tmp_path / "made.jsonl", choices(24, seed=9))
    refused("data_hash was '.*' and is '", questions=changed)
    save_profile(model, tmp_path / "two.ffnskip.gguf", [1])
    refused(r"calibrated-two .*: layers was \[2, 5\] and is \[1\]", methods=[tmp_path / "two.ffnskip.gguf"])
    run = out / "choice-made-dense.json"
    facts = json.loads(run.read_text())
    facts["versions"]["llama_cpp"] = "0.0.1"
    run.write_text(json.dumps(facts))
    before[run.name] = run.read_bytes()
    refused("llama_cpp was '0.0.1' and is '")
    run.write_text("{}")
    before[run.name] = run.read_bytes()
    refused(r"choice-made-dense.json: no run of an evaluation, or damaged")


def test_what_an_interrupted_run_left_may_be_damaged(model, questions, tmp_path):
    evaluate(model, "choice", questions, tmp_path, methods="dense", **OPTIONS)
    name = "choice-made-dense"
    facts = json.loads((tmp_path / f"{name}.json").read_text())
    (tmp_path / f"{name}.json").unlink()
    begun, items_file = tmp_path / f"{name}.begun", tmp_path / f"{name}.items.jsonl"
    counts = {"skipped": 0, "total": 0, "bytes_left_out": 0, "bytes_total": 0}
    state = {"facts": facts, "n_items": 24, "n_bytes": items_file.stat().st_size + 1, "seconds": 0.0, "counts": counts}
    shorter = rf"{name}.items.jsonl: shorter than it was; remove {name}.begun"
    torn = rf"{name}.begun: damaged .*; remove it to begin that run anew"
    for content, said in ((json.dumps(state), shorter), (json.dumps(state)[:-9], torn)):
        begun.write_text(content)
        with pytest.raises(ValueError, match=said):
            evaluate(model, "choice", questions, tmp_path, methods="dense", **OPTIONS)
    begun.unlink()
    found = evaluate(model, "choice", questions, tmp_path, methods="dense", **OPTIONS)
    assert len(read_records(tmp_path, found.runs[0])) == 24


def test_a_command_that_ended_before_the_first_items_may_be_corrected(model, questions, tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("no room")

    with monkeypatch.context() as patched, pytest.raises(ValueError, match="no room"):
        patched.setattr(type(TASKS["choice"]), "run", fails)
        evaluate(model, "choice", questions, tmp_path, methods="dense", limit=5, **OPTIONS)
    assert (tmp_path / "choice-made-dense.begun").exists()
    (run,) = evaluate(model, "choice", questions, tmp_path, methods="dense", limit=6, **OPTIONS).runs
    assert len(read_records(tmp_path, run)) == run.settings["limit"] == 6


def test_items_that_are_fewer_than_the_figures_say(model, questions, tmp_path):
    (run,) = evaluate(model, "choice", questions, tmp_path, methods="dense", **OPTIONS).runs
    path = tmp_path / f"{run.name}.items.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=rf"{path}: shorter than it was; {run.name}.json is of more items"):
        read_records(tmp_path, run)


def test_a_full_disk_names_the_file(model, questions, tmp_path):
    limited = f"ulimit -f 1; exec {sys.executable} -m ffnskip_cpp " + " ".join(command(model, questions, tmp_path))
    ended = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1 and "choice-made-dense.items.jsonl" in ended.stderr.splitlines()[-1], ended.stderr


def test_one_evaluation_at_a_time_has_the_folder(model, questions, tmp_path, capsys):
    with open_store(tmp_path / "out"):
        arguments = command(model, questions, tmp_path / "out", "--method", "dense")
        assert cli.main(arguments) == 1
        assert capsys.readouterr().err.endswith(
            "another evaluation is writing into it; wait for it, or give another folder\n"
        )
    assert cli.main(arguments) == 0


# ---- speed ----


def test_speed_needs_a_turn_of_tokens(model, tmp_path):
    with pytest.raises(ArgumentError, match="max-tokens: 2 is too few for speed; at least 3"):
        evaluate(model, "speed", None, tmp_path, max_tokens=2, **OPTIONS)
    dense, _ = evaluate(model, "speed", None, tmp_path, methods="random", max_tokens=3, **OPTIONS).runs
    assert dense.metrics["speed_up"].value == 1


def test_speed_is_measured_in_turn_and_of_what_is_new(model, text, tmp_path):
    options = {"max_tokens": 12, "text": text, **OPTIONS}
    found = evaluate(model, "speed", None, tmp_path, methods="random", skip_ratio=0.5, **options)
    dense, run = found.runs
    assert [each.name for each in found.runs] == ["speed-dense", "speed-random-0.5"]
    assert dense.metrics["speed_up"].value == 1 and run.metrics["tokens_per_second"].value > 0
    figure = run.metrics["speed_up"]
    assert 0 < figure.low <= figure.value <= figure.high and run.skip_ratio == 0.5
    again = evaluate(model, "speed", None, tmp_path, methods=["random", "channels"], skip_ratio=0.5, **options)
    assert again.runs[:2] == found.runs and again.runs[2].skip_ratio == pytest.approx(0.5, abs=0.2)
    assert read_records(tmp_path, run) == [] and found.differences == {}
    assert evaluate(model, "speed", None, tmp_path / "own", methods="dense", max_tokens=6, **OPTIONS).runs[0].data == ""


# ---- the command ----


def test_the_command_prints_a_page_or_json(model, questions, tmp_path, capsys):
    arguments = command(model, questions, tmp_path, "--method", "random", "--skip-ratio", "0.25", "--warm-up", "0")
    assert cli.main(arguments) == 0
    head, _, dense, random = capsys.readouterr().out.splitlines()[:4]
    assert [cell.strip() for cell in head.split("|")[1:4]] == ["task", "data", "method"]
    assert "| dense " in dense and "| random 25 % " in random
    assert cli.main([*arguments, "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert [run["method"] for run in given["runs"]] == ["dense", "random"]
    assert set(given["differences"]["choice-made-random-0.25-warm_up-0"]) == {"difference", "low", "high", "p", "n"}


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (["--method", "nothing"], 2, "method: 'nothing' is none of dense"),
        (["--method", "none.gguf"], 1, "none.gguf: no such file"),
        (["--data", "cloze=x"], 2, "data: 2 files for"),
        (["--data", "choice=x"], 2, "some are TASK=FILE and some are not"),
        (["--task", "choice", "--data", "x"], 1, "x: no such file"),
    ],
)
def test_what_is_wrong_is_one_line(model, questions, tmp_path, capsys, more, status, words):
    arguments = command(model, questions, tmp_path / "out", *more)
    if "--data" in more and more[1].startswith("cloze"):
        arguments += ["--task", "choice,mmlu,factoid"]
    assert cli.main(arguments) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("ffnskip eval: ") and err.count("\n") == 1 and words in err


def test_a_broken_file_is_named_with_its_line(model, tmp_path, capsys):
    path = write_lines(tmp_path / "made.jsonl", [*choices(1), {"query": "q"}])
    assert cli.main(command(model, path, tmp_path / "out")) == 1
    assert capsys.readouterr().err.startswith(f"ffnskip eval: {path}:2: ")
    assert not (tmp_path / "out").exists()


# ---- subject ----


def test_a_chat_is_rendered_by_the_models_own_template(model, model_file):
    """As the demo model was trained on; a model without a template says so."""
    messages = [
        {"role": "user", "content": "Who is Olm?"},
        {"role": "assistant", "content": "A boat builder."},
        {"role": "user", "content": "Where?"},
    ]
    with ours(model_file("demo"), None, n_ctx=2048) as llm:
        subject = ModelSubject(llm, Method("dense", "dense", None, None), llm, Options())
        expected = llm.tokenize(demo_world.chat_prompt(messages).encode(), special=True)
        assert subject.chat_prompt(messages) == expected
        assert subject.n_ctx() == llm.n_ctx_train < llm.n_ctx()
    with ours(model, None) as llm:
        assert ModelSubject(llm, Method("dense", "dense", None, None), llm, Options()).chat_prompt(messages) is None


@pytest.mark.parametrize("warm_up", [0, 1, 9])
def test_the_first_token_of_a_text_is_the_prompt_of_the_others(model, warm_up):
    skip = SkipConfig(layers=[0, 3], max_skip=0, warm_up_index=warm_up)
    with ours(model, skip) as llm, ours(model, None) as dense:
        tokens = llm.tokenize(b"Olm sold forty boats in Ul, and nobody asked him why.")
        subject = ModelSubject(llm, Method("blocks", "blocks", None, skip), dense, Options(warm_up_index=warm_up))
        rows, n_may_skip = subject.compare(tokens)
        first = max(warm_up, 1)
        llm.skip = SkipConfig(layers=[0, 3], max_skip=0, warm_up_index=0)  # a prompt does not skip, nor does a warm-up
        expected = llm.score(tokens[:first], [tokens[first:], tokens[first : first + 1]]).log_likelihood
    assert len(rows) == n_may_skip == len(tokens) - 1 - first
    assert rows.nll.sum() == pytest.approx(expected[1] - expected[0], abs=1e-3)


def test_rows_compared_are_those_behind_the_warm_up_for_every_method(model, text, tmp_path):
    options = {"methods": ["skip_decode", "short_gpt", "channels"], "text": text, "limit": 1, **OPTIONS}
    found = evaluate(model, "perplexity", text, tmp_path, **options)
    rows = {read_records(tmp_path, run)[0].values["rows"] for run in found.runs}
    with ours(model, None, n_ctx=512) as llm:
        n_tokens = min(
            512, len(llm.tokenize(items.read_data_sets(["perplexity"], text, 1, 0)[0].items[0].text.encode()))
        )
    assert rows == {n_tokens - 1 - 30}
