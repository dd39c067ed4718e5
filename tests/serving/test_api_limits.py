"""What is refused, in OpenAI's form and by name; clients that are slow, silent or gone; and what nobody may do."""

from __future__ import annotations

import json
import socket
import time
from urllib.parse import urlsplit

import openai
import pytest

from ffnskip_cpp import demo_model
from ffnskip_cpp.serving.guard import Limits
from support.api_server import NO_END, api_server
from support.running import F32_CACHE

KEY = "a-key-that-nobody-prints"
MESSAGES = [{"role": "user", "content": "The"}]
ENDLESS = {"prompt": "The", "max_tokens": 500, "logit_bias": NO_END}


@pytest.fixture(scope="module")
def server():
    options = {"n_parallel": 2, "skip": None, "max_queue": 1, **F32_CACHE}
    with api_server(str(demo_model()), limits=Limits(max_body=20_000), **options) as server:
        yield server


@pytest.fixture(scope="module")
def locked():
    """With a key, another site's origin, and little time."""
    limits = Limits(seconds=0.5, seconds_body=0.5)
    options = {"n_parallel": 2, "skip": None, "n_ctx": 20_000}
    with api_server(
        str(demo_model()), api_key=KEY, origins=("https://A.example/",), limits=limits, **options
    ) as server:
        yield server


def error_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def connection(server):
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def request_bytes(server, path, body, length=None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {urlsplit(server.url).netloc}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length or len(data)}\r\n\r\n".encode() + data


def wait_until(is_so, seconds=15):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- bad values ----


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"seed": -2}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"n": 1000}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"stream": 1}, "stream"),
        ({"skip": {"skip_ratio": 2}}, "skip_ratio"),
        ({"skip": {"skip_ratio": "much"}}, "skip"),
        ({"skip": {"depth": 2}}, "skip"),
        ({"skip": {"policy": "channels"}}, "skip"),
        ({"skip": {"layers": [99]}}, "layers"),
        ({"skip": {"seed": 2**70}}, "seed"),
        ({"skip": {"trace": 1}}, "skip.trace"),
        ({"skip": [1]}, "skip"),
        ({"best_of": 2}, "best_of"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_bad_values_are_refused_by_name(server, path, fields, param):
    rest = {"prompt": "The"} if path == "/v1/completions" else {"messages": MESSAGES}
    error = error_of(server.http.post(path, json={**rest, "max_tokens": 2, **fields}), 400)
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
        assert error["message"].startswith(param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [5, 9999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [[2**70]]}, "prompt"),
        ({"prompt": "a " * 3000}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 3}, "prompt"),
        ({"prompt": "\ud800"}, None),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": 1, "echo": True}, "logprobs"),
    ],
)
def test_bad_prompts_are_refused(server, body, param):
    data = json.dumps(body).encode()
    response = server.http.post("/v1/completions", content=data, headers={"Content-Type": "application/json"})
    assert error_of(response, 400)["param"] == param


DEEP = {"type": "object", "properties": {}}
for _ in range(150):
    DEEP = {"type": "object", "properties": {"a": DEEP}, "required": ["a"]}
FUNCTION = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


def with_schema(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content",
        ),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (with_schema({"type": "unicorn"}), "response_format.json_schema.schema"),
        (with_schema({"$ref": "https://example.org/x.json"}), "response_format.json_schema.schema"),
        (with_schema({"$ref": "file:///etc/passwd"}), "response_format.json_schema.schema"),
        (
            with_schema({"type": "array", "items": {"type": "null"}, "minItems": 10**9}),
            "response_format.json_schema.schema",
        ),
        (with_schema({"type": "string", "pattern": "^a{999999999}$"}), "response_format.json_schema.schema"),
        (with_schema({"properties": {str(i): {} for i in range(1500)}}), "response_format.json_schema.schema"),
        ({"tools": [FUNCTION]}, "tools"),  # the demo model's template has none
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": []}, "functions"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"modalities": ["audio"]}, "modalities.0"),
        (
            {"response_format": {"type": "json_object", "schema": {"type": "unicorn"}}},
            "response_format.schema",
        ),
    ],
)
def test_bad_chats_are_refused(server, fields, param):
    began = time.monotonic()
    response = server.http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 2, **fields})
    assert error_of(response, 400)["param"] == param
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"prompt":', b"[1]", b"null", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 9000, b'"a"', b"1" * 9000],
)
def test_bodies_that_are_no_request(server, body):
    response = server.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    error_of(response, 400)


def test_a_form_of_another_site_is_no_request(server):
    """Browsers send text/plain to any site without asking it first."""
    error_of(
        server.http.post("/v1/completions", content=b'{"prompt": "The"}', headers={"Content-Type": "text/plain"}),
        400,
    )


def test_deep_but_right_schemas_work(server):
    fields = {"messages": MESSAGES, "max_tokens": 2, **with_schema(DEEP)}
    assert server.http.post("/v1/chat/completions", json=fields).status_code == 200


# ---- paths, keys, names ----


def test_paths_and_methods_that_do_not_exist(server):
    for path in (
        "/nothing",
        "/v1",
        "/../../etc/passwd",
        "/%2e%2e/etc/passwd",
        "/app.py",
        "/page/app.js",
        "//etc/passwd",
    ):
        assert error_of(server.http.get(path), 404)["code"] == "not_found"
    assert error_of(server.http.delete("/v1/models"), 405)["code"] == "method_not_allowed"


def test_the_page_is_there_with_its_policy(server):
    page = server.http.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert server.http.get("/app.js").headers["content-type"].startswith("text/javascript")


def test_a_name_that_was_pointed_here_is_refused(server, locked):
    for name in ("rebound.example", "localhost.rebound.example", "127.0.0.1.rebound.example", ""):
        error_of(server.http.get("/v1/skip", headers={"Host": name}), 403)
    for name in ("localhost:1234", "127.0.0.1", "[::1]:8080", "192.168.1.5:8080"):
        assert server.http.get("/v1/skip", headers={"Host": name}).status_code == 200
    headers = {"Host": "models.example", "Authorization": f"Bearer {KEY}"}
    assert locked.http.get("/v1/skip", headers=headers).status_code == 200


def test_the_key_is_asked_for_but_by_the_page_and_health(locked, capfd):
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}):
        for path in ("/v1/models", "/v1/skip", "/metrics", "/openapi.json", "/nothing"):
            assert error_of(locked.http.get(path, headers=given), 401)["type"] == "authentication_error"
        error_of(locked.http.post("/v1/completions", json={"prompt": "The"}, headers=given), 401)
    for path in ("/", "/app.js", "/health"):
        assert locked.http.get(path).status_code == 200
    assert locked.http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    printed = "".join(capfd.readouterr())
    assert KEY not in printed and "sk-wrong" not in printed


def test_other_sites_are_kept_out_unless_named(server, locked):
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in server.http.options("/v1/completions", headers=asks).headers
    assert "access-control-allow-origin" not in server.http.get("/health", headers=asks).headers
    allowed = locked.http.options("/v1/completions", headers=asks)
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    refused = locked.http.get("/v1/models", headers=asks)  # scripts may read why
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://a.example")
    other = locked.http.options("/v1/completions", headers={**asks, "Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


# ---- sizes, time, and clients ----


def test_bodies_too_large_are_refused_whether_or_not_they_say_so(server):
    large = json.dumps({"prompt": "a" * 120_000}).encode()
    headers = {"Content-Type": "application/json"}
    assert (
        error_of(server.http.post("/v1/completions", content=large, headers=headers), 413)["code"] == "body_too_large"
    )
    pieces = (large[i : i + 1000] for i in range(0, len(large), 1000))
    error_of(server.http.post("/v1/completions", content=pieces, headers=headers), 413)


def test_bodies_that_do_not_come_are_not_waited_for(locked):
    with connection(locked) as sock:
        head = request_bytes(locked, "/v1/completions", b'{"prompt"', length=100)
        sock.sendall(head.replace(b"Content-Type", f"Authorization: Bearer {KEY}\r\nContent-Type".encode()))
        assert sock.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_full_queue_refuses_and_says_when_to_come_again(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        streams = [client.completions.create(model="", **ENDLESS, stream=True) for _ in range(3)]
        with pytest.raises(openai.RateLimitError) as refusal:
            client.completions.create(model="", prompt="The", max_tokens=1)
        assert int(refusal.value.response.headers["retry-after"]) > 0
        error_of(server.http.post("/v1/completions", json={"prompt": "The", "n": 4}), 429)
        for stream in streams:
            stream.close()
        wait_until(lambda: server.engine.counts().running + server.engine.counts().queued == 0)
        assert client.completions.create(model="", prompt="The", max_tokens=1).choices


def test_a_request_of_many_answers_is_taken_whole(server):
    """However few may run and wait: asked again, it would be as many."""
    body = {"prompt": ["The", "A"], "max_tokens": 2, "n": 4, "logit_bias": NO_END}
    choices = server.http.post("/v1/completions", json=body).json()["choices"]
    assert [(choice["index"], choice["finish_reason"]) for choice in choices] == [(i, "length") for i in range(8)]


def test_a_prompt_too_long_has_openais_code(server):
    body = {"messages": [{"role": "user", "content": "a " * 3000}]}
    assert error_of(server.http.post("/v1/chat/completions", json=body), 400)["code"] == "context_length_exceeded"


def test_answers_that_take_too_long_are_ended(locked):
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {**ENDLESS, "max_tokens": 15_000}
    assert error_of(locked.http.post("/v1/completions", json=body, headers=headers), 504)["code"] == "timeout"
    text = locked.http.post("/v1/completions", json={**body, "stream": True}, headers=headers).text
    last = json.loads(text.strip().splitlines()[-1][len("data: ") :])
    assert last["error"]["code"] == "timeout"
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.APIError, match="longer than"):
            list(client.completions.create(model="", **body, stream=True))
    wait_until(lambda: locked.engine.counts().running == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_the_answer_ends_when_its_client_has_gone(server, stream):
    before = server.engine.counts().cancelled
    with connection(server) as sock:
        sock.sendall(request_bytes(server, "/v1/completions", {**ENDLESS, "stream": stream}))
        wait_until(lambda: server.engine.counts().running == 1)
    wait_until(lambda: server.engine.counts().running == 0)
    assert server.engine.counts().cancelled == before + 1


def test_a_slow_reader_gets_all_and_holds_nobody_up(server):
    body = {**ENDLESS, "max_tokens": 150, "stream": True, "skip": {"trace": True}, "temperature": 0}
    with connection(server) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.sendall(request_bytes(server, "/v1/completions", body))
        got = sock.recv(64)
        for _ in range(3):  # others are served meanwhile
            assert server.http.post("/v1/completions", json={"prompt": "The", "max_tokens": 2}).status_code == 200
        while b"data: [DONE]" not in got:
            got += sock.recv(1024)
    events = [json.loads(line[6:])["choices"][0] for line in got.split(b"\n") if line.startswith(b"data: {")]
    assert sum("layers" in event["skip"] for event in events) == 150
    assert events[-1]["skip"]["totals"]["n_generated"] == 150


def test_nonsense_on_the_wire_is_survived(server):
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"\0" * 100,
    ):
        with connection(server) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
    assert server.http.get("/health").status_code == 200
