"""Answers graded by a model behind an endpoint: what it says is counted, nothing is lost, nothing is paid for twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from statistics import mean

import pytest

pytest.importorskip("openai")

from ffnskip_cpp import judge
from ffnskip_cpp.errors import ArgumentError
from ffnskip_cpp.evaluation.judge.verdicts import read_judgements
from support import judged_results as made_up
from support.judge_server import answers, honest, judging, names, worth
from support.judged_results import write_run

SOON = {"retry-after-ms": "10"}  # so that tests don't wait as long as the openai package would


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def summaries(tmp_path):
    """A folder with one run of eight items."""
    write_run(tmp_path, "summarize", "dense", made_up.summaries(range(1, 9)))
    return tmp_path


def nothing_paid_twice(server):
    return max(server.paid.values(), default=0) <= 1


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


def test_what_is_written_is_what_was_returned(summaries):
    with judging(honest) as server:
        judgement = judge(summaries, url=f"{server.url}?key=secret", model="org/m:1", criteria=["fluency"])
    assert read_judgements(summaries) == (judgement,)
    assert judgement.name == "org_m_1-single-fluency" and judgement.url == server.url
    assert (judgement.replies, judgement.tokens_in, judgement.tokens_out) == (8, 800, 80)
    verdicts = (summaries / "judge" / f"{judgement.name}.verdicts.jsonl").read_text().splitlines()
    first = json.loads(verdicts[0])
    assert len(verdicts) == 8 and first["grades"] == {"fluency": [1]} and first["reply"].startswith("As good as")


# ---- what goes wrong ----


def test_nonsense_is_told_retried_and_counted(summaries):
    with judging(lambda asked: honest(asked) if worth(answers(asked.prompt)[0]) > 3 else "I love it!") as server:
        (run,) = judge(summaries, url=server.url, model="m", max_retries=2).runs
        assert len(server.asked) == 5 + 3 * 3
        again = judge(summaries, url=server.url, model="m", max_retries=2)
        assert len(server.asked) == 5 + 3 * 3  # nor is it asked again later
        judge(summaries, url=server.url, model="m", max_retries=3)
        assert len(server.asked) == 5 + 3 * 4  # but for the one retry more
    assert (run.invalid, run.failed, run.figures["overall"].n) == (3, 0, 5)
    assert again.runs == (run,) and "3 items do not count" in repr(again)
    assert min(run.scores["overall"].values()) == 4
    retried = next(asked for asked in server.asked if asked.tries == 2)
    _, said, told, _, _ = retried.body["messages"]
    assert said == {"role": "assistant", "content": "I love it!"}
    assert "its last line, 'I love it!', is no JSON object" in told["content"]


@pytest.mark.parametrize("nonsense", [{"text": '{"a": 1}'}, {"text": None}, {"text": "\ud83d, 10/10"}])
def test_a_reply_that_is_right_at_last_counts(summaries, nonsense):
    with judging(lambda asked: honest(asked) if asked.tries else nonsense) as server:
        judgement = judge(summaries, url=server.url, model="m")
    assert judgement.runs[0].figures["overall"].n == 8
    assert len(server.asked) == judgement.replies == 16


def test_a_reply_that_is_cut_off_is_invalid_whatever_it_ends_with(summaries):
    def cut_off(asked):
        return {"text": honest(asked), "finish_reason": "stop" if asked.tries else "length"}

    with judging(cut_off) as server:
        (run,) = judge(summaries, url=server.url, model="m").runs
    assert run.figures["overall"].n == 8 and len(server.asked) == 16
    assert "it was cut off after 10 tokens" in server.asked[-1].body["messages"][-1]["content"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_servers_in_trouble_are_asked_again(summaries, status):
    def troubled(asked):
        return {"status": status, "headers": SOON} if asked.number % 3 == 0 else honest(asked)

    with judging(troubled) as server:
        (run,) = judge(summaries, url=server.url, model="m", max_retries=5).runs
        assert run.figures["overall"].n == 8 and nothing_paid_twice(server)


def test_a_server_says_how_long_to_wait(summaries):
    def limited(asked):
        return {"status": 429, "headers": {"retry-after": "1"}} if asked.number == 0 else honest(asked)

    with judging(limited) as server:
        began = time.monotonic()
        judge(summaries, url=server.url, model="m", limit=1)
        assert time.monotonic() - began >= 1 and len(server.asked) == 2


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ({"status": 500}, "Error code: 500"),
        ({"text": "", "delay": 1}, "timed out"),
        ({"text": "x", "cut": True}, "Connection error"),
        ({"body": b"<html>busy</html>", "type": "text/html"}, "no chat completion"),
        ({"body": b"{}"}, "no chat completion"),
        ({"body": b'{"choices": []}'}, "no chat completion"),
        ({"body": b"{"}, ""),
        ({"status": 400, "error": {"message": "too many tokens"}}, "too many tokens"),
    ],
)
def test_what_fails_is_counted_and_asked_by_the_next_run_alone(summaries, trouble, why):
    fails = True

    def reply(asked):
        return trouble if fails and worth(answers(asked.prompt)[0]) in (2, 5) else honest(asked)

    with judging(reply) as server:
        judgement = judge(summaries, url=server.url, model="m", max_retries=0, timeout=0.7)
        (run,) = judgement.runs
        assert (run.figures["overall"].n, run.failed, run.invalid) == (6, 2, 0)
        assert len(judgement.errors) == 1 and why in judgement.errors[0] and why in repr(judgement)
        fails = False
        before = len(server.asked)
        (run,) = judge(summaries, url=server.url, model="m", max_retries=0).runs
        assert (run.figures["overall"].n, run.failed) == (8, 0)
        assert len(server.asked) == before + 2


def test_a_server_that_dies_in_the_middle_and_comes_back_loses_nothing(tmp_path):
    write_run(tmp_path, "summarize", "dense", made_up.summaries([5] * 40))
    with judging(lambda asked: honest(asked) if asked.number < 12 else {"text": "", "cut": True}) as server:
        judgement = judge(tmp_path, url=server.url, model="m", max_retries=0)
        paid, port = server.paid, server.port
        assert sum(paid.values()) == 12
        assert len(server.asked) < 40  # it stops to ask after 10 failures in a row
    (run,) = judgement.runs
    assert (run.figures["overall"].n, run.failed) == (12, 28)
    assert any("not asked: 10 requests in a row had failed" in error for error in judgement.errors)
    meanwhile = judge(tmp_path, url=f"http://127.0.0.1:{port}/v1", model="m", max_retries=0)
    assert (meanwhile.runs[0].figures, meanwhile.runs[0].failed) == (run.figures, 28)
    with judging(honest, port) as server:
        (run,) = judge(tmp_path, url=server.url, model="m").runs
        assert len(server.asked) == 28
        assert not set(server.paid) & set(paid) and nothing_paid_twice(server)
    assert (run.figures["overall"].n, run.failed) == (40, 0)


def test_nothing_is_written_where_no_request_got_a_reply(summaries):
    with judging(honest) as server:
        url = server.url
    with pytest.raises(RuntimeError, match=rf"{url}: no request got a reply: Connection error.*refused"):
        judge(summaries, url=url, model="m", max_retries=0)
    assert read_judgements(summaries) == ()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_ends_it_at_once(summaries, status, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    refused = {"status": status, "error": {"message": "no such key: sk-very-secret"}}
    with judging(lambda asked: refused) as server:
        with pytest.raises(RuntimeError, match=rf"v1 refuses to judge: Error code: {status}.*no such key: \*\*\*"):
            judge(summaries, url=server.url, model="m", api_key_env="MY_KEY", parallel=2)
        assert len(server.asked) <= 2


def test_the_key_is_sent_and_neither_shown_nor_stored(summaries, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")

    def talkative(asked):
        text = f"You sent {asked.authorization}.\n{honest(asked)}"
        return {"status": 400, "error": {"message": text}} if asked.number == 0 else text

    with judging(talkative) as server:
        judgement = judge(summaries, url=server.url, model="m")
    assert {asked.authorization for asked in server.asked} == {"Bearer sk-very-secret"}
    kept = [repr(judgement), *(path.read_text() for path in summaries.rglob("*") if path.is_file())]
    assert not any("very-secret" in text for text in kept) and any("You sent Bearer ***" in text for text in kept)


def test_a_model_that_takes_no_temperature_is_asked_without(summaries):
    def particular(asked):
        for name in ("max_tokens", "temperature"):
            if name in asked.body:
                return {"status": 400, "error": {"param": name, "code": "unsupported_parameter"}}
        return honest(asked)

    with judging(particular) as server:
        (run,) = judge(summaries, url=server.url, model="m", parallel=1).runs
        assert run.figures["overall"].n == 8 and len(server.asked) == 2 + 8
    assert server.asked[-1].body["max_completion_tokens"] == server.asked[0].body["max_tokens"]


# ---- resuming ----

PROGRAM = """
import sys
from ffnskip_cpp import judge
judge(sys.argv[1], url=sys.argv[2], model="m", parallel=int(sys.argv[3]), timeout=30, progress=False)
"""


def started(folder, server, parallel):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), server.url, str(parallel)], stderr=subprocess.PIPE, text=True
    )


def test_a_killed_run_goes_on_where_it_was(summaries):
    reached, go_on = threading.Event(), threading.Event()

    def slow(asked):
        if asked.number == 5:
            reached.set()
            go_on.wait(30)
            return {"text": "", "cut": True}  # to nobody
        return honest(asked)

    with judging(slow) as server:
        child = started(summaries, server, 1)
        assert reached.wait(60)
        child.kill()
        child.communicate()
        go_on.set()
        assert len((summaries / "judge" / "replies.jsonl").read_bytes().splitlines()) == 5
        (run,) = judge(summaries, url=server.url, model="m").runs
        assert run.figures["overall"].n == 8 and nothing_paid_twice(server)
        assert len(server.asked) == 8 + 1


def test_an_interrupted_run_keeps_what_it_has_asked_for(summaries):
    reached, go_on = threading.Event(), threading.Event()

    def slow(asked):
        if asked.number >= 2:
            reached.set()
            go_on.wait(30)
        return honest(asked)

    with judging(slow) as server:
        child = started(summaries, server, 2)
        assert reached.wait(60)
        child.send_signal(signal.SIGINT)
        time.sleep(0.5)  # it is there before the replies are
        go_on.set()
        assert "KeyboardInterrupt" in child.communicate(timeout=60)[1]
        n = len(server.asked)
        assert n in (3, 4) and sum(server.paid.values()) == n
        (run,) = judge(summaries, url=server.url, model="m").runs
        assert run.figures["overall"].n == len(server.asked) == 8 and nothing_paid_twice(server)


@pytest.mark.parametrize("torn", [1, 40, -1])
def test_a_torn_last_line_is_repaired(summaries, torn):
    """A line without its end alone is whole; what is behind a torn one is not lost to it."""
    replies = summaries / "judge" / "replies.jsonl"
    with judging(honest) as server:
        expected = judge(summaries, url=server.url, model="m", parallel=1)
        lines = replies.read_bytes().splitlines(keepends=True)
        replies.write_bytes(b"".join(lines[:-1]) + lines[-1][:torn])
        assert judge(summaries, url=server.url, model="m") == expected
        assert len(server.asked) == 8 + (torn != -1)
        assert sorted(replies.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_a_line_that_is_no_reply_is_named(summaries):
    (summaries / "judge").mkdir()
    (summaries / "judge" / "replies.jsonl").write_text('\n{"key": "a"}\n')
    with judging(honest) as server, pytest.raises(ValueError, match=r"replies.jsonl:1: no reply of a judge"):
        judge(summaries, url=server.url, model="m")


def test_two_at_a_time_in_one_folder_are_refused(summaries):
    with judging(honest) as server:

        def second(_):
            with pytest.raises(ValueError, match="another ffnskip judge is at work here"):
                judge(summaries, url=server.url, model="m")

        judge(summaries, url=server.url, model="m", confirm=second)
        assert len(server.asked) == 8


def test_another_judge_or_prompt_is_asked_anew(summaries):
    with judging(honest) as server:
        judge(summaries, url=server.url, model="m")
        judge(summaries, url=server.url, model="other")
        assert len(server.asked) == 16
        judge(summaries, url=server.url, model="m", criteria=["fluency"])
        assert len(server.asked) == 24
    assert {each.name for each in read_judgements(summaries)} == {"m-single", "other-single", "m-single-fluency"}


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


def test_a_reply_that_can_not_be_kept_ends_it(summaries, monkeypatch):
    def fsync(_):
        raise OSError(28, "No space left on device")

    with judging(honest) as server:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            judge(summaries, url=server.url, model="m", parallel=1)
        assert len(server.asked) == 1
