"""`ffnskip judge`: what it costs is said first, and nothing is sent without consent."""

from __future__ import annotations

import io
import json
import re

import pytest

pytest.importorskip("openai")

from ffnskip_cpp import cli
from support import judged_results as made_up
from support.judge_server import honest, judging


@pytest.fixture
def results(tmp_path):
    made_up.write_run(tmp_path, "summarize", "dense", made_up.summaries([2, 4]))
    made_up.write_run(tmp_path, "summarize", "random", made_up.summaries([3, 5]))
    return str(tmp_path)


@pytest.fixture
def server():
    with judging(honest) as server:
        yield server


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_table_is_printed(results, server, capsys):
    assert cli.main(["judge", results, "--url", server.url, "--model", "m", "--yes"]) == 0
    out = capsys.readouterr().out
    assert "m grades each answer by itself; 4 replies" in out
    assert "| random | made-up | 4.00 [3.00, 5.00] |      4.00 |" in out


def test_pairs_and_json(results, server, capsys):
    options = ["--mode", "pairwise", "--json", "--yes"]
    assert cli.main(["judge", results, "--url", server.url, "--model", "m", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["runs"][0]["rates"]["overall"]["win"]["value"] == 1
    assert cli.main(["judge", results, "--url", server.url, "--model", "m", *options[:2]]) == 0  # nothing to consent to
    out = capsys.readouterr().out
    assert "beside that of dense, in both orders" in out and "| 100% [100%, 100%] | 0% [0%, 0%] | 0% [0%, 0%] |" in out
    assert len(server.asked) == 4


def test_without_a_terminal_consent_must_be_given_before(results, server, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    price = ["--price-in", "1000000", "--price-out", "0"]
    assert cli.main(["judge", results, "--url", server.url, "--model", "m", *price]) == 2
    out, err = capsys.readouterr()
    assert (
        out == "" and "--yes consents" in err and err.startswith("4 requests; about ") and "at the prices given" in err
    )
    assert server.asked == []


@pytest.mark.parametrize(("reply", "status", "sent"), [("y\n", 0, 4), ("yes\n", 0, 4), ("n\n", 1, 0), ("", 1, 0)])
def test_a_terminal_is_asked(results, server, capsys, monkeypatch, reply, status, sent):
    monkeypatch.setattr("sys.stdin", Terminal(reply))
    assert cli.main(["judge", results, "--url", server.url, "--model", "m"]) == status
    assert len(server.asked) == sent
    err = capsys.readouterr().err
    assert "Send them? [y/N] " in err and ("ffnskip judge: nothing was sent\n" in err) == (sent == 0)


def test_what_failed_is_told_by_the_status(results, capsys):
    def failing(asked):
        return {"status": 500} if asked.number == 0 else honest(asked)

    with judging(failing) as server:
        command = ["judge", results, "--url", server.url, "--model", "m", "--max-retries", "0", "--yes"]
        assert cli.main(command) == 1
        assert "1 items do not count yet, since requests failed (Error code: 500" in capsys.readouterr().out
        assert cli.main(command) == 0
        assert len(server.asked) == 5


def test_no_server_is_one_line(results, capsys):
    with judging(honest) as server:
        url = server.url
    assert cli.main(["judge", results, "--url", url, "--model", "m", "--max-retries", "0", "--yes"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"ffnskip judge: {url}: no request got a reply")


def test_prompts_are_written_and_used(results, server, tmp_path, capsys):
    own = str(tmp_path / "mine")
    assert cli.main(["judge", "--write-prompts", own]) == 0
    assert cli.main(["judge", "--write-prompts", own]) == 1
    assert "is there already" in capsys.readouterr().err
    (tmp_path / "mine" / "summary.txt").write_text("criteria: fluency\n\nBe strict.")
    assert cli.main(["judge", results, "--url", server.url, "--model", "m", "--prompts", own, "--yes"]) == 0
    assert "Be strict." in server.asked[0].prompt and "| fluency | items |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "required: DIR"),
        (["DIR"], "required: --url"),
        (["DIR", "--url", "u"], "required: --model"),
        (["DIR", "--url", "u", "--model", "m"], "url: .* is no address"),
        (["DIR", "--url", "http://u", "--model", "m", "more"], "unrecognized arguments: more"),
        (["DIR", "--url", "http://u", "--model", "m", "--mode", "x"], "invalid choice"),
        (["DIR", "--url", "http://u", "--model", "m", "--criteria", "wit"], "criteria: 'wit' is none of"),
        (["DIR", "--url", "http://u", "--model", "m", "--api-key-env", "NO_SUCH"], "NO_SUCH is not set"),
    ],
)
def test_bad_usage_exits_with_2(words, why, results, capsys):
    try:
        status = cli.main(["judge", *(results if word == "DIR" else word for word in words)])
    except SystemExit as end:
        status = end.code
    err = capsys.readouterr().err
    assert status == 2 and re.search(why, err)
