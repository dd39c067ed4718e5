"""A server that speaks OpenAI's protocol on loopback and does what a test says; it remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

MODEL = "judge-of-today"


class Asked:
    """One request."""

    def __init__(self, body, headers, number):
        self.body = body
        self.key = json.dumps(body["messages"])
        self.number = number  # of all requests, from 0
        self.authorization = headers.get("Authorization")

    @property
    def prompt(self):
        """What a conversation begins with."""
        return self.body["messages"][0]["content"]

    @property
    def tries(self):
        """Replies that were given in this conversation before."""
        return sum(message["role"] == "assistant" for message in self.body["messages"])


class JudgeServer:
    """`answer(asked)` gives the text of a reply, or a dict: status, headers, body (raw bytes), delay in seconds,
    finish_reason, model, usage, or "cut", which breaks the connection in the middle."""

    def __init__(self, answer, port=0):
        self.answer = answer
        self.asked = []
        self.paid = Counter()  # by conversation, replies that were given in full
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    asked = Asked(body, self.headers, len(server.asked))
                    server.asked.append(asked)
                server._answer(self, asked)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def _answer(self, handler, asked):
        given = self.answer(asked)
        given = {"text": given} if isinstance(given, str) else given
        time.sleep(given.get("delay", 0))
        status = given.get("status", 200)
        body = given.get("body")
        if body is None:
            body = json.dumps(self._completion(asked, given) if status == 200 else _error(status, given)).encode()
        with contextlib.suppress(OSError):  # the client has gone
            handler.send_response(status)
            handler.send_header("Content-Type", given.get("type", "application/json"))
            handler.send_header("Content-Length", str(len(body)))
            for name, value in given.get("headers", {}).items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body[: len(body) // 2] if given.get("cut") else body)
            handler.wfile.flush()
            if given.get("cut"):
                handler.close_connection = True
            elif status == 200:
                with self._lock:
                    self.paid[asked.key] += 1

    def _completion(self, asked, given):
        return {
            "id": f"chatcmpl-{asked.number}",
            "object": "chat.completion",
            "created": 0,
            "model": given.get("model", MODEL),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": given["text"]},
                    "finish_reason": given.get("finish_reason", "stop"),
                }
            ],
            "usage": given.get("usage", {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}),
        }

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _error(status, given):
    return {
        "error": {
            "message": f"made up {status}",
            "type": "made_up",
            "param": None,
            "code": None,
            **given.get("error", {}),
        }
    }


@contextlib.contextmanager
def judging(answer, port=0):
    with mock.patch.dict(os.environ, {"NO_PROXY": "127.0.0.1"}):
        server = JudgeServer(answer, port)
        try:
            yield server
        finally:
            server.close()


# ---- a judge that reads what answers are worth from their own words: "worth 7" ----


def names(prompt):
    """The criteria that a prompt asks for, in the form in its last line."""
    return re.findall(r'"(\w+)":', prompt.strip().splitlines()[-1])


def answers(prompt):
    """Those between the prompts' marks."""
    return re.findall(r"^=== (?:FIRST |SECOND )?ANSWER ===\n(.*?)\n=== END OF", prompt, re.S | re.M)


def worth(answer):
    """Of its last turn."""
    return int(re.findall(r"worth (\d+)", answer)[-1])


def honest(asked, bias=0):
    """
    Args:
        bias: What the first of two answers gets on top.
    """
    grades = [worth(answer) for answer in answers(asked.prompt)]
    grades[0] = min(10, grades[0] + (bias if len(grades) == 2 else 0))
    value = grades[0] if len(grades) == 1 else grades
    return f"As good as it says.\n{json.dumps(dict.fromkeys(names(asked.prompt), value))}"
