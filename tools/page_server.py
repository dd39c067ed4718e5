"""A server for the page that has no model: it speaks what the page asks for, with made-up text and skipping, and fails
on demand. What a message of the user says decides:

    "busy"      429 the first time
    "cut"       the connection ends in the middle
    "markup"    text that would be HTML, were it taken for that
    "attention" attention is left out beside FFN blocks
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ffnskip_cpp.serving.page import HEADERS, page_files

N_LAYER = 30
WARM_UP = 12
TEXT = (
    "The lamp on the headland had burned for ninety years, and Mara was the ninth to keep it. Each evening she "
    "climbed the hundred and twelve steps, wound the clockwork, and wrote the weather into a book that nobody "
    "read.\n\nOne night the sea was so still that the light seemed to lie on it like a road. A boat came along it, "
    "without a sail and without a sound, and in the boat sat a boy who asked whether this was the place where the "
    "days are kept."
)
OTHER_ENDING = (
    " walked towards her over the water, slowly, as one walks in a church. He had a lantern of his own, and it was "
    "out. “Could you spare a little?” he asked."
)
MARKUP = 'Use <b>bold</b> & <img src="x" onerror="document.title=1"> <script>document.title="taken"</script> well.'


class PageServer(ThreadingHTTPServer):
    """Listens on loopback, at a free port. `seconds`: between two dense tokens."""

    daemon_threads = True

    def __init__(self, *, api_key: str | None = None, seconds: float = 0.01, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.api_key = api_key
        self.seconds = seconds
        self.requests: list[dict[str, Any]] = []
        self.n_left = 0
        self.was_busy = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[PageServer]:
    with PageServer(**options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def skips() -> dict[str, Any]:
    """GET /v1/skip."""
    ratio = {"minimum": 0, "maximum": 1, "default": 0.25}
    warm_up = {"minimum": 0, "integer": True, "default": 30}
    return {
        "model": "made-up-30",
        "n_layer": N_LAYER,
        "policy": "ffn_skip",
        "settings": {"policy": "ffn_skip", "sim_threshold": 0.95, "warm_up_index": WARM_UP, "skip_ratio": None},
        "policies": {
            "dense": {},
            "ffn_skip": {
                "skip_ratio": ratio,
                "sim_threshold": {"minimum": 0, "maximum": 1, "default": 0.9},
                "warm_up_index": warm_up,
            },
            "channels": {"skip_ratio": {**ratio, "default": 0.33}, "warm_up_index": warm_up},
            "skip_decode": {"skip_ratio": ratio},
        },
    }


def text_of(request: dict[str, Any]) -> str:
    """The whole answer, before `max_tokens`."""
    if "markup" in request["messages"][-1]["content"]:
        return MARKUP
    asked = request["skip"]
    if asked.get("policy") == "dense" or asked.get("skip_ratio", 0.25) < 0.2:
        return TEXT
    return TEXT[: TEXT.index(" asked whether")] + OTHER_ENDING


def tokens_of(text: str) -> list[str]:
    """Words with the blank before them, long ones in two."""
    words = [" " + word for word in text.split(" ")]
    words[0] = words[0][1:]
    return [part for word in words for part in ((word[:6], word[6:]) if len(word) > 9 else (word,))]


def _skip_of(i: int, asked: dict[str, Any], attention: bool, rng: random.Random) -> dict[str, Any]:
    policy, ratio = asked.get("policy", "ffn_skip"), asked.get("skip_ratio", 0.25)
    none = {"layers": [], "attention": [], "kept": None, "may_skip": policy != "dense"}
    if policy == "dense":
        return none
    if policy == "skip_decode":
        layers = list(range(4, 4 + min(i // 5, 18)))
        return {**none, "layers": layers, "attention": layers}
    if i < asked.get("warm_up_index", WARM_UP):
        return {**none, "may_skip": False}
    if policy == "channels":
        return {**none, "kept": 1 - ratio * rng.uniform(0.6, 1.4)}
    first = min(27, max(5, round(rng.gauss(14, 4))))
    layers = list(range(first, min(26, first + round(ratio * N_LAYER))))
    return {**none, "layers": layers, "attention": [9, 17, 21] if attention else []}


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    files = page_files()

    def do_GET(self) -> None:
        if self.path in self.files:
            file = self.files[self.path]
            self._send(200, file.body, file.media_type, HEADERS)
        elif not self._has_key():
            self._refuse(401, "the API key is missing or wrong")
        elif self.path == "/v1/skip":
            self._send(200, json.dumps(skips()).encode(), "application/json")
        else:
            self._refuse(404, f"{self.path}: there is no such path")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = request["messages"][-1]["content"]
        if not self._has_key():
            self._refuse(401, "the API key is missing or wrong")
        elif "busy" in said and not self.server.was_busy:
            self.server.was_busy = True
            self._refuse(429, "as many requests wait as may", {"Retry-After": "2"})
        else:
            self.server.requests.append(request)
            try:
                self._answer(request, said)
            except OSError:
                self.server.n_left += 1

    def _answer(self, request: dict[str, Any], said: str) -> None:
        self._head(200, {"Content-Type": "text/event-stream"})
        asked, rng = request["skip"], random.Random(7)
        tokens = tokens_of(text_of(request))
        wanted = min(len(tokens), request["max_tokens"])
        self._chunk({"role": "assistant"})
        seconds, left_out = 0.0, 0.0
        for i, text in enumerate(tokens[:wanted]):
            skip = _skip_of(i, asked, "attention" in said, rng)
            share = len(skip["layers"]) / N_LAYER if skip["kept"] is None else 1 - skip["kept"]
            left_out += share
            seconds += self.server.seconds * (1 - 0.6 * share)
            time.sleep(self.server.seconds * (1 - 0.6 * share))
            self._chunk({"content": text}, skip=skip)
            if "cut" in said and i == 8:
                self.close_connection = True
                return
        totals = {
            "n_prompt": 40, "n_cached": 25, "n_generated": wanted, "skip_ratio": left_out / wanted,
            "seconds_queue": 0.0, "seconds_first": self.server.seconds, "seconds": seconds,
        }  # fmt: skip
        self._chunk({}, finish_reason="stop" if wanted == len(tokens) else "length", skip={"totals": totals})
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunk(self, delta: dict[str, str], **more: Any) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": None, **more}
        self.wfile.write(
            b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
        )

    def _has_key(self) -> bool:
        return self.server.api_key is None or self.headers["Authorization"] == f"Bearer {self.server.api_key}"

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self._send(status, json.dumps({"error": error}).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, media_type: str, headers: dict[str, str] | None = None) -> None:
        self._head(status, {"Content-Type": media_type, "Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass
