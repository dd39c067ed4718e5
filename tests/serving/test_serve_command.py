"""`ffnskip serve` as a program: it says where it is, ends as it is told to, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import openai
import pytest

from ffnskip_cpp import demo_model
from ffnskip_cpp.cli import main
from support.api_server import NO_END

ENDLESS = {"prompt": "The", "max_tokens": 15_000, "stream": True, "logit_bias": NO_END}
LONG = "ffnskip serve: --ctx 20000: the model was trained on 512 tokens\n"
WAITS = "ffnskip serve: no more requests are taken; answers have {} s to end, and none after Ctrl-C again\n"


@contextlib.contextmanager
def served(*options, port=0, **variables):
    """The program, and its URL."""
    command = [
        sys.executable,
        "-m",
        "ffnskip_cpp",
        "serve",
        str(demo_model()),
        "--port",
        str(port),
        "-t",
        "1",
        *options,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **variables}, **pipes) as process:
        try:
            line = process.stdout.readline()
            yield process, re.search(r"at (http://[^ ;]+)", line or process.stderr.read())[1]
        finally:
            process.kill()


def end(process, sign):
    process.send_signal(sign)
    _, errors = process.communicate(timeout=20)
    return process.returncode, errors


def test_told_to_end_it_lets_answers_end_and_takes_no_more():
    with served("--ctx", "20000", "--grace", "20") as (process, url), httpx.Client(timeout=20) as http:
        with http.stream("POST", f"{url}/v1/completions", json={**ENDLESS, "max_tokens": 300}) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        assert len([line for line in rest if line.startswith("data: {")]) > 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")  # by a connection of its own
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (-signal.SIGTERM, LONG + WAITS.format(20))


@pytest.mark.parametrize(("grace", "n_presses"), [("0.3", 1), ("500", 2)])
def test_ctrl_c_ends_it_and_answers_when_their_time_is_over_or_at_once_when_pressed_again(grace, n_presses):
    with served("--ctx", "20000", "--grace", grace) as (process, url), httpx.Client(timeout=20) as http:
        with http.stream("POST", f"{url}/v1/completions", json=ENDLESS) as answer:
            lines = answer.iter_lines()
            next(lines)
            for _ in range(n_presses):
                process.send_signal(signal.SIGINT)
                time.sleep(0.5)  # two signals at once are one
            with contextlib.suppress(httpx.RemoteProtocolError if n_presses > 1 else ()):
                last = [line for line in lines if line][-1]
                error = json.loads(last[len("data: ") :])["error"]
                assert (error["message"], error["type"]) == ("the server is shutting down", "server_error")
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130
        assert errors == f"{LONG}{WAITS.format(grace)}ffnskip serve: interrupted; all answers have ended\n"


def test_killed_it_leaves_a_clean_error_and_its_port_free():
    with served("--ctx", "20000") as (process, url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=20) as client:
            with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
                for i, _ in enumerate(client.completions.create(model="", **ENDLESS)):
                    if i == 3:
                        process.kill()
            with pytest.raises(openai.APIConnectionError):
                client.models.list()
        process.wait(20)
        port = int(url.rpartition(":")[2])
        with served(port=port) as (again, same_url):
            assert same_url == url
            assert httpx.get(f"{url}/health").status_code == 200
            assert end(again, signal.SIGTERM) == (-signal.SIGTERM, "")


def test_the_key_comes_from_the_environment_and_skip_options_are_the_servers():
    with served("--skip-ratio", "0.25", "--warm-up", "2", FFNSKIP_API_KEY="a-key") as (process, url):
        assert httpx.get(f"{url}/v1/skip").status_code == 401
        said = httpx.get(f"{url}/v1/skip", headers={"Authorization": "Bearer a-key"}).json()
        assert said["policy"] == "ffn_skip"
        assert (said["settings"]["skip_ratio"], said["settings"]["warm_up_index"]) == (0.25, 2)
        code, errors = end(process, signal.SIGTERM)
        assert code == -signal.SIGTERM
        assert re.fullmatch(r"ffnskip serve: skip: ffn_skip .* not calibrated .*\n", errors)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--port", "99999"], 2, "--port 99999"),
        (["--host", "203.0.113.7", "--port", "0"], 1, "203.0.113.7:0: cannot assign"),
        (["--max-body", "0"], 2, "max_body: 0 is less than 1"),
        (["--timeout", "-1"], 2, "timeout: -1.0 is no number of seconds"),
        (["--grace", "nan"], 2, "--grace nan"),
        (["--max-queue", "-1"], 2, "--max-queue -1"),
        (["--cors", "example.org", "--port", "0"], 2, "cors: 'example.org' is no origin"),
        (["--api-key", " "], 2, "the API key is empty"),
        (["--skip-ratio", "2"], 2, "skip_ratio"),
        (["--profile", "nowhere.gguf"], 1, "nowhere.gguf"),
        (["--lora", "nowhere.gguf"], 1, "nowhere.gguf"),
        (["--parallel", "0"], 2, "--parallel 0"),
        (["-c", "-1"], 2, "--ctx -1"),
        (["-np", "300", "--port", "0"], 1, "n_parallel: 300 is outside"),
        (["--temp", "0"], 2, "unrecognized arguments: --temp 0; ffnskip serve --help says what there is"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(options, status, said, capfd, monkeypatch):
    monkeypatch.delenv("FFNSKIP_API_KEY", raising=False)
    assert main(["serve", str(demo_model()), *options]) == status
    out, errors = capfd.readouterr()
    assert out == ""
    assert errors.startswith("ffnskip serve: ") and said in errors and errors.count("\n") == 1


def test_a_port_that_is_taken_is_said_before_the_model_is_read(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "nowhere.gguf", "--port", str(port)]) == 1
    assert f"127.0.0.1:{port}: address already in use" in capfd.readouterr().err


def test_without_the_extra_it_says_what_to_install(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith("ffnskip_cpp.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["serve", str(demo_model())]) == 1
    assert "pip install 'ffnskip_cpp[server]'" in capfd.readouterr().err
