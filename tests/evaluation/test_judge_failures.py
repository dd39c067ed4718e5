"""A judge that talks nonsense, is slow or dies, and we are killed: all is counted, nothing lost or paid for twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("openai")

from ffnskip_cpp import judge
from ffnskip_cpp.evaluation.judge.verdicts import read_judgements
from support import judged_results as made_up
from support.judge_server import MODEL, answers, honest, judging, worth
from support.judged_results import write_run

SOON = {"retry-after-ms": "10"}  # so that tests don't wait as long as the openai package would


@pytest.fixture
def summaries(tmp_path):
    """A folder with one run of eight items."""
    write_run(tmp_path, "summarize", "dense", made_up.summaries(range(1, 9)))
    return tmp_path


def nothing_paid_twice(server):
    return max(server.paid.values(), default=0) <= 1


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


@pytest.mark.parametrize(
    "nonsense",
    [
        {"model": 7},
        {"model": None},
        {"model": "\ud83d"},
        {"finish_reason": 9},
        {"finish_reason": ["length"]},
        {"usage": 7},
        {"usage": ["x"]},
        *({"usage": {"prompt_tokens": n, "completion_tokens": n}} for n in ("12", None, -1, 1.5, True, [3], {"n": 3})),
    ],
)
def test_a_reply_with_nonsense_about_itself_counts_and_is_not_paid_for_again(summaries, nonsense):
    with judging(lambda asked: {"text": honest(asked), **nonsense}) as server:
        judgement = judge(summaries, url=server.url, model="m")
        assert judge(summaries, url=server.url, model="m") == judgement
        assert len(server.asked) == 8
    assert judgement.runs[0].figures["overall"].n == 8
    is_of_usage = "usage" in nonsense
    assert (judgement.tokens_in, judgement.tokens_out) == ((0, 0) if is_of_usage else (800, 80))
    assert judgement.answered_by == (
        (MODEL,) if "model" not in nonsense else ("?",) if nonsense["model"] == "\ud83d" else ()
    )


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
        ({"text": "", "delay": 3}, "timed out"),
        ({"text": "x", "cut": True}, "Connection error"),
        ({"body": b"<html>busy</html>", "type": "text/html"}, "no chat completion"),
        ({"body": b"{}"}, "no chat completion"),
        ({"body": b'{"choices": []}'}, "no chat completion"),
        ({"body": b'{"choices": {"a": 1}}'}, "no chat completion"),
        ({"text": ["worth 7"]}, "no chat completion"),
        ({"text": {"text": "worth 7"}}, "no chat completion"),
        ({"text": 7}, "no chat completion"),
        ({"body": b"{"}, ""),
        ({"status": 400, "error": {"message": "too many tokens"}}, "too many tokens"),
    ],
)
def test_what_fails_is_counted_and_asked_by_the_next_run_alone(summaries, trouble, why):
    fails = True

    def reply(asked):
        return trouble if fails and worth(answers(asked.prompt)[0]) in (2, 5) else honest(asked)

    with judging(reply) as server:
        timeout = 2 if "delay" in trouble else 60
        judgement = judge(summaries, url=server.url, model="m", max_retries=0, timeout=timeout)
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


@pytest.mark.parametrize("status", [400, 413, 422])
def test_refusals_of_single_requests_keep_none_from_what_is_behind_them(tmp_path, status):
    write_run(tmp_path, "summarize", "dense", made_up.summaries([1] * 15 + [5] * 5))

    def short_texts_alone(asked):
        too_long = worth(answers(asked.prompt)[0]) == 1
        return {"status": status, "error": {"message": "too long"}} if too_long else honest(asked)

    with judging(short_texts_alone) as server:
        judgement = judge(tmp_path, url=server.url, model="m", max_retries=0, parallel=1)
        assert len(server.asked) == 20
    assert (judgement.runs[0].figures["overall"].n, judgement.runs[0].failed) == (5, 15)
    assert len(judgement.errors) == 1 and "too long" in judgement.errors[0]


@pytest.mark.parametrize("status", [402, 408, 409, 429, 500])
def test_ten_failures_of_other_kinds_in_a_row_end_it(tmp_path, status):
    write_run(tmp_path, "summarize", "dense", made_up.summaries([5] * 20))
    with judging(lambda asked: {"status": status} if asked.number else honest(asked)) as server:
        judge(tmp_path, url=server.url, model="m", max_retries=0, parallel=1)
        assert len(server.asked) == 1 + 10


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


def test_a_reply_that_can_not_be_kept_ends_it(summaries, monkeypatch):
    def fsync(_):
        raise OSError(28, "No space left on device")

    with judging(honest) as server:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            judge(summaries, url=server.url, model="m", parallel=1)
        assert len(server.asked) == 1


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


def test_ctrl_c_pressed_again_does_not_wait_for_a_silent_server(summaries):
    reached, go_on = threading.Event(), threading.Event()

    def silent(asked):
        reached.set()
        go_on.wait(300)
        return honest(asked)

    with judging(silent) as server:
        child = started(summaries, server, 2)
        assert reached.wait(60)
        began = time.monotonic()
        while child.poll() is None and time.monotonic() < began + 60:  # a busy machine takes two that are close for one
            child.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert child.poll() is not None  # its requests and their retries would wait for two minutes
        assert "KeyboardInterrupt" in child.communicate()[1]
        go_on.set()


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
