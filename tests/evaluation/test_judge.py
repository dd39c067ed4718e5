"""Answers graded by a model behind an endpoint: what it says is what is counted."""

from __future__ import annotations

import hashlib
import json
from statistics import mean

import pytest

pytest.importorskip("openai")

from ffnskip_cpp import judge
from ffnskip_cpp.errors import ArgumentError
from ffnskip_cpp.evaluation.judge.verdicts import read_judgements
from ffnskip_cpp.evaluation.tasks import TASKS
from ffnskip_cpp.evaluation.tasks.base import Settings
from support import judged_results as made_up
from support.evaluation_subjects import Scripted
from support.judge_server import answers, honest, judging, names
from support.judged_results import write_run


@pytest.fixture
def summaries(tmp_path):
    """A folder with one run of eight items."""
    write_run(tmp_path, "summarize", "dense", made_up.summaries(range(1, 9)))
    return tmp_path


# ---- what is counted ----


def test_single_grades_are_the_judges(tmp_path):
    worths = [(7, 8), (5, 6), (9, 9), (2, 3)]
    write_run(tmp_path, "chat", "dense", made_up.chat(worths))
    write_run(tmp_path, "factoid", "dense", made_up.facts([4, 9]))
    with judging(honest) as server:
        judgement = judge(tmp_path, url=server.url, model="m")
    chat, facts = judgement.runs
    assert chat.scores["overall"] == {str(81 + i): mean(of_turns) for i, of_turns in enumerate(worths)}
    assert chat.scores["correctness"] == {"82": 5.5}  # of coding alone
    assert chat.scores["helpfulness"] == {"81": 7.5, "84": 2.5}
    assert chat.figures["overall"].value == pytest.approx(mean(map(mean, worths)))
    assert 2.5 <= chat.figures["overall"].low < chat.figures["overall"].high <= 9
    assert (chat.figures["overall"].n, chat.invalid, chat.failed) == (4, 0, 0)
    assert facts.scores["accuracy"] == {"fact-0": 4, "fact-1": 9}
    assert chat.rates == chat.reference_scores == {}
    assert len(server.asked) == 2 * 4 + 2


def test_criteria_are_counted_apart(summaries):
    def reply(asked):
        return json.dumps({name: 10 - i for i, name in enumerate(names(asked.prompt))})

    with judging(reply) as server:
        (run,) = judge(summaries, url=server.url, model="m").runs
    assert {name: figure.value for name, figure in run.figures.items()} == {
        "coherence": 10, "consistency": 9, "fluency": 8, "relevance": 7, "overall": 8.5,
    }  # fmt: skip


def test_pairs_count_as_won_where_both_orders_say_so(tmp_path):
    own, dense = [(5, 9), (4, 4), (6, 1), (3, 3)], [(2, 8), (4, 5), (7, 2), (3, 3)]
    write_run(tmp_path, "chat", "dense", made_up.chat(dense))
    write_run(tmp_path, "chat", "random", made_up.chat(own))
    with judging(honest) as server:
        judgement = judge(tmp_path, url=server.url, model="m", mode="pairwise")
    (run,) = judgement.runs
    rates = run.rates["overall"]
    assert run.method == "random" and judgement.against == "dense"
    assert (rates.win.value, rates.tie.value, rates.lose.value, rates.disagree.value) == (2 / 8, 3 / 8, 3 / 8, 0)
    assert run.scores["overall"] == {str(81 + i): mean(of_turns) for i, of_turns in enumerate(own)}
    assert run.reference_scores["overall"] == {str(81 + i): mean(of_turns) for i, of_turns in enumerate(dense)}


def test_a_judge_who_prefers_the_first_answer_decides_nothing_where_they_are_close(tmp_path):
    """A bias of 2: what differs by at most 2 is a tie, and beyond equality the orders disagree."""
    own, dense = [5, 5, 5, 5, 5], [1, 3, 5, 6, 8]
    write_run(tmp_path, "summarize", "dense", made_up.summaries(dense))
    write_run(tmp_path, "summarize", "random", made_up.summaries(own))
    with judging(lambda asked: honest(asked, bias=2)) as server:
        (run,) = judge(tmp_path, url=server.url, model="m", mode="pairwise").runs
    for rates in (run.rates["overall"], run.rates["fluency"]):
        assert (rates.win.value, rates.tie.value, rates.lose.value) == (1 / 5, 3 / 5, 1 / 5)
        assert rates.disagree.value == 3 / 5
    assert run.scores["fluency"]["story-0"] == (7 + 5) / 2  # of both orders


def test_equal_answers_are_asked_about_once_and_show_the_bias(tmp_path):
    for method in ("dense", "random", "ffn_skip"):
        write_run(tmp_path, "summarize", method, made_up.summaries([4, 6]))
    with judging(lambda asked: honest(asked, bias=1)) as server:
        runs = judge(tmp_path, url=server.url, model="m", mode="pairwise").runs
        assert len(server.asked) == 2
        judge(tmp_path, url=server.url, model="m")
        assert len(server.asked) == 2 + 2
    assert [(run.rates["overall"].tie.value, run.rates["overall"].disagree.value) for run in runs] == [(1, 1)] * 2


def test_coding_and_maths_have_prompts_of_their_own_and_show_what_is_right(tmp_path):
    write_run(tmp_path, "chat", "dense", made_up.chat([(1, 2), (3, 4), (5, 6)], reference=True))
    with judging(honest) as server:
        judge(tmp_path, url=server.url, model="m", parallel=1)
    asked = [(names(each.prompt)[0], "CORRECT ANSWER" in each.prompt) for each in server.asked]
    assert asked == [
        ("helpfulness", True), ("helpfulness", False), ("correctness", True), ("correctness", False),
        ("result", True), ("result", False),
    ]  # fmt: skip
    first, second = server.asked[:2]
    assert "right 0" in first.prompt and "Question 0 of {braces}?" in first.prompt and "turn 1" not in first.prompt
    assert answers(second.prompt) == ["(1) Answer to 0, turn 0, worth 1\n\n(2) Answer to 0, turn 1, worth 2"]


def test_a_file_of_answers_in_fastchats_format_is_compared_with(tmp_path):
    write_run(tmp_path, "chat", "dense", made_up.chat([(5,), (6,), (7,)]))
    write_run(tmp_path, "summarize", "dense", made_up.summaries([1]))
    lines = [
        {"question_id": 81, "answer_id": "a", "model_id": "gpt", "choices": [{"index": 0, "turns": ["worth 9"]}]},
        {"question_id": 83, "answer_id": "b", "model_id": "gpt", "choices": [{"index": 0, "turns": ["worth 2", "x"]}]},
    ]
    file = tmp_path / "gpt.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    with judging(honest) as server:
        judgement = judge(tmp_path, url=server.url, model="m", mode="pairwise", against=str(file))
    (run,) = judgement.runs
    assert run.reference_scores["overall"] == {"81": 9, "83": 2} and run.missing == 1
    assert judgement.against == "gpt.jsonl" and [j.name for j in read_judgements(tmp_path)] == ["m-pairwise-gpt.jsonl"]


def test_a_larger_limit_has_the_items_of_a_smaller_one_by_turns_of_the_groups(tmp_path):
    in_order = sorted(made_up.summaries([3] * 12), key=lambda record: record.group)
    write_run(tmp_path, "summarize", "dense", in_order)
    write_run(tmp_path, "summarize", "random", in_order[::-1])
    chosen = []
    with judging(honest) as server:
        for limit in (3, 6, 100):
            run, other = judge(tmp_path, url=server.url, model="m", limit=limit).runs
            chosen.append(set(run.scores["overall"]))
            assert chosen[-1] == set(other.scores["overall"])
        assert len(server.asked) == 12
    assert [len(items) for items in chosen] == [3, 6, 12] and chosen[0] < chosen[1] < chosen[2]
    for n, items in ((1, chosen[0]), (2, chosen[1])):
        assert sorted(int(item.split("-")[1]) % 3 for item in items) == [*[0] * n, *[1] * n, *[2] * n]


OFFICIAL = {
    "chat": {"question_id": 7, "category": "math", "turns": ["How many?", "And twice?"], "reference": ["Three", ""]},
    "summarize": {"id": "a1", "article": "A boat went out. It came back.", "highlights": "Boat came back"},
    "factoid": {"context": "Question: Who went out?\nAnswer:", "answer": "a boat", "aliases": ["the boat"]},
}


@pytest.mark.parametrize("task", OFFICIAL)
def test_what_the_tasks_record_is_what_is_judged(tmp_path, task):
    """From a file in the official format to the prompt."""
    (tmp_path / "data.jsonl").write_text(json.dumps(OFFICIAL[task]))
    items = TASKS[task].read(tmp_path / "data.jsonl")
    subject = Scripted(lambda prompt: "Twice is worth 9" if "worth 3" in prompt else "It is worth 3")
    write_run(tmp_path, task, "dense", list(TASKS[task].run(subject, items, Settings())))
    with judging(honest) as server:
        (run,) = judge(tmp_path, url=server.url, model="m", parallel=1).runs
    first = server.asked[0].prompt
    assert run.scores["overall"] == {items[0].id: 6 if task == "chat" else 3}
    shown = {
        "chat": ["How many?", "Three"],
        "summarize": ["A boat went out. It came back."],
        "factoid": ["Who went out?", "a boat / the boat"],
    }
    assert all(text in first for text in shown[task]) and answers(first) == ["It is worth 3"]
    if task == "chat":
        assert answers(server.asked[1].prompt) == ["(1) It is worth 3\n\n(2) Twice is worth 9"]
    else:
        assert "Boat came back" not in first  # what is held against the story is the summary alone


def test_a_judgement_says_which_answers_it_is_of(tmp_path):
    dense = write_run(tmp_path, "summarize", "dense", made_up.summaries([4]))
    skip = write_run(tmp_path, "summarize", "random", made_up.summaries([6]))
    sha256 = {
        name: hashlib.sha256((tmp_path / f"{name}.items.jsonl").read_bytes()).hexdigest() for name in (dense, skip)
    }
    with judging(honest) as server:
        single = judge(tmp_path, url=server.url, model="m").runs
        (pair,) = judge(tmp_path, url=server.url, model="m", mode="pairwise").runs
    assert [run.items_sha256 for run in single] == [{name: sha256[name]} for name in (dense, skip)]
    assert pair.items_sha256 == sha256


def test_what_is_written_is_what_was_returned(summaries):
    with judging(honest) as server:
        judgement = judge(summaries, url=f"{server.url}?key=secret", model="org/m:1", criteria=["fluency"])
    assert read_judgements(summaries) == (judgement,)
    assert judgement.name == "org_m_1-single-fluency" and judgement.url == server.url
    assert (judgement.replies, judgement.tokens_in, judgement.tokens_out) == (8, 800, 80)
    verdicts = (summaries / "judge" / f"{judgement.name}.verdicts.jsonl").read_text().splitlines()
    first = json.loads(verdicts[0])
    assert len(verdicts) == 8 and first["grades"] == {"fluency": [1]} and first["reply"].startswith("As good as")


# ---- what is refused before anything is sent ----


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mode": "triple"}, "mode: 'triple' is none of single, pairwise"),
        ({"against": "dense"}, "against: answers are compared in mode pairwise alone"),
        ({"limit": 0}, "limit: 0 is below 1"),
        ({"max_retries": -1}, "max-retries: -1 is below 0"),
        ({"parallel": 0}, "parallel: 0 is below 1"),
        ({"timeout": 0}, "timeout: 0 is no time"),
        ({"timeout": float("nan")}, "timeout: nan is no time"),
        ({"price_in": -1}, "price-in: -1 is no price"),
        ({"criteria": ["beauty"]}, "criteria: 'beauty' is none of accuracy, "),
        ({"criteria": []}, "criteria: the list is empty"),
        ({"criteria": ["fluency", "fluency"]}, "twice"),
        ({"api_key_env": "NO_SUCH_KEY"}, "api-key-env: the environment variable NO_SUCH_KEY is not set"),
        ({"url": "127.0.0.1:80"}, "url: .* is no address"),
        ({"url": "file:///etc/passwd"}, "url: .* is no address"),
    ],
)
def test_wrong_arguments(summaries, options, why):
    with pytest.raises(ArgumentError, match=why):
        judge(summaries, **{"url": "http://127.0.0.1:9/v1", "model": "m", **options})


def no_runs(folder):
    write_run(folder, "mmlu", "dense", [])


def no_dense(folder):
    write_run(folder, "summarize", "random", made_up.summaries([1]))


def dense_alone(folder):
    write_run(folder, "summarize", "dense", made_up.summaries([1]))


def two_ratios(folder):
    dense_alone(folder)
    for ratio in (10, 25):
        write_run(folder, "summarize", "random", made_up.summaries([1]), label=f"random {ratio} %", data="made-up")
        (folder / "summarize-made-up-random.json").rename(folder / f"random-{ratio}.json")
    for path in folder.glob("random-*.json"):
        fields = {**json.loads(path.read_text()), "name": path.stem}
        path.write_text(json.dumps(fields))
        (folder / f"{path.stem}.items.jsonl").write_bytes(
            (folder / "summarize-made-up-random.items.jsonl").read_bytes()
        )


def no_texts(folder):
    write_run(folder, "factoid", "dense", made_up.summaries([1]))
    items = folder / "factoid-made-up-dense.items.jsonl"
    items.write_text(items.read_text().replace('"text"', '"txt"'))


@pytest.mark.parametrize(
    ("make", "against", "why"),
    [
        (no_runs, None, "no finished run of chat, summarize, factoid in it; ffnskip eval makes them"),
        (no_texts, None, "item story-0 has no question and answer to judge"),
        (no_dense, "dense", "no run of 'dense' to compare it with"),
        (dense_alone, "dense", "no run in it beside dense"),
        (dense_alone, "random", "no run of 'random' to compare it with"),
        (dense_alone, "x.jsonl", "x.jsonl: no such file of answers"),
        (two_ratios, "random", "several runs are of 'random'; give one of 'random 10 %', 'random 25 %'"),
    ],
)
def test_folders_without_what_is_needed(tmp_path, make, against, why):
    make(tmp_path)
    mode = "single" if against is None else "pairwise"
    with pytest.raises((ValueError, FileNotFoundError), match=why):
        judge(tmp_path, url="http://127.0.0.1:9/v1", model="m", mode=mode, against=against)


def test_a_label_names_one_of_several_ratios(tmp_path):
    two_ratios(tmp_path)
    with judging(honest) as server:
        judgement = judge(tmp_path, url=server.url, model="m", mode="pairwise", against="random 25 %")
    assert [run.label for run in judgement.runs] == ["random 10 %", "dense"]


def variants(folder):
    """Three of one label: with another warm-up and prompts that skip, with the warm-up alone, and usual."""
    dense_alone(folder)
    for more, settings in (
        ("-warm_up-0-skip_prompts-2", {"warm_up_index": 0, "skip_prompts": 2}),
        ("-warm_up-0", {"warm_up_index": 0, "skip_prompts": None}),
        ("", {"warm_up_index": 30, "skip_prompts": None}),
    ):
        name = write_run(folder, "summarize", "random", made_up.summaries([1]), label="random 25 %", **settings)
        fields = {**json.loads((folder / f"{name}.json").read_text()), "name": f"{name}{more}"}
        (folder / f"{name}{more}.json").write_text(json.dumps(fields))
        (folder / f"{name}{more}.items.jsonl").write_bytes((folder / f"{name}.items.jsonl").read_bytes())


LABELS = ["random 25 %, warm-up 0, skip-prompts 2", "random 25 %, warm-up 0", "random 25 %"]


@pytest.mark.parametrize("against", LABELS)
def test_labels_tell_warm_ups_and_prompts_that_skip(tmp_path, against):
    variants(tmp_path)
    with judging(honest) as server:
        judgement = judge(tmp_path, url=server.url, model="m", mode="pairwise", against=against)
    assert [run.label for run in judgement.runs] == ["dense", *(label for label in LABELS if label != against)]
    assert all(f"| {run.label} " in repr(judgement) for run in judgement.runs)


def test_a_label_that_several_have_is_answered_with_labels_that_work(tmp_path):
    variants(tmp_path)
    options = {"url": "http://127.0.0.1:9/v1", "model": "m", "mode": "pairwise"}
    with pytest.raises(ValueError, match=f"several runs are of 'random'; give one of {', '.join(map(repr, LABELS))}$"):
        judge(tmp_path, against="random", **options)
    for path in tmp_path.glob("summarize-made-up-random.*"):  # the one that has the bare label
        path.unlink()
    with pytest.raises(ValueError, match=f"'random 25 %'; give one of {', '.join(map(repr, LABELS[:2]))}$"):
        judge(tmp_path, against="random 25 %", **options)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "gpt.jsonl:1: not JSON"),
        ('{"question_id": 81}', "gpt.jsonl:1: no 'choices'"),
        ('{"question_id": 81, "choices": [{"turns": "a"}]}', "gpt.jsonl:1: 'turns'"),
        ('{"question_id": 7, "choices": [{"turns": ["a"]}]}', "has an answer to none of its items"),
        ('{"question_id": 81, "choices": [{"turns": ["a"]}]}\n' * 2, "gpt.jsonl:2: question_id 81 is there twice"),
    ],
)
def test_broken_files_of_answers(tmp_path, line, why):
    write_run(tmp_path, "chat", "dense", made_up.chat([(1,)]))
    (tmp_path / "gpt.jsonl").write_text(line)
    with pytest.raises(ValueError, match=why):
        judge(tmp_path, url="http://127.0.0.1:9/v1", model="m", mode="pairwise", against=str(tmp_path / "gpt.jsonl"))


def test_a_broken_judgement_is_named(tmp_path):
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "m.json").write_text('{"runs": [{}]}')
    with pytest.raises(ValueError, match=r"m.json: is no judgement"):
        read_judgements(tmp_path)
