"""`ffnskip serve` under clients of every kind: does its memory grow, is a request lost, how long do they wait?

    python tools/soak_server.py MODEL --minutes 60 --clients 8 -o soak.json [-- OPTIONS OF ffnskip serve]

Starts the server on loopback, and ends it. Of the clients one reads a byte a second, one sends bodies that are none,
one goes away in the middle of answers, and the others take theirs, streamed or whole, of mixed lengths. Each waits a
little between two requests (--pause), so that the number of them is bounded.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORDS = "river stone bright walk under seven letter morning paper glass winter road small bird open".split()
MALFORMED = [
    b"",
    b"{",
    b"[]",
    b'{"messages": 3}',
    b'{"messages": []}',
    b'{"prompt": "a", "max_tokens": -1}',
    b'{"prompt": "a", "temperature": "hot"}',
    b'{"prompt": "a", "skip": {"no_such": 1}}',
    b'{"prompt": "a", "response_format": {"type": "json_schema"}}',
    b"\xff\xfe" * 50,
    b'{"prompt": "' + b"a" * (2 << 20) + b'"}',
]
SLOW_BYTES = 90  # that the slow client reads of an answer before it goes away
WARM_UP = 0.1  # of the time, which the slope of memory leaves out


@dataclass
class Counts:
    """What clients saw. Shared: lists grow, numbers change under the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    answered: int = 0
    busy: int = 0
    """429, asked again."""
    refused: int = 0
    """Bodies that are none, with 4xx and OpenAI's form."""
    gone: int = 0
    """Answers that the client left."""
    slow: int = 0
    lost: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    """Seconds to the first token of streamed answers."""
    rate: list[float] = field(default_factory=list)
    """Tokens a second behind it."""

    def add(self, name: str, by: int = 1) -> None:
        with self.lock:
            setattr(self, name, getattr(self, name) + by)


class Client:
    """
    Args:
        skips: What requests say under "skip"; one of them is drawn for each.
    """

    def __init__(self, port: int, counts: Counts, seed: int, skips: list[Any]):
        self.port, self.counts, self.random, self.skips = port, counts, random.Random(seed), skips

    def body(self, *, stream: bool) -> dict[str, Any]:
        n = self.random.choice((1, 5, 20, 80))
        text = " ".join(self.random.choice(WORDS) for _ in range(n))
        body: dict[str, Any] = {"max_tokens": self.random.choice((4, 16, 60)), "seed": self.random.randrange(99)}
        body |= {"prompt": text} if self.random.random() < 0.5 else {"messages": [{"role": "user", "content": text}]}
        skip = self.random.choice(self.skips)
        return body | {"stream": stream} | ({} if skip == "server's" else {"skip": skip})

    @contextmanager
    def answer(self, body: bytes, path: str) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            yield connection.getresponse()
        finally:
            connection.close()

    def ask(self, body: dict[str, Any], take: Callable[[http.client.HTTPResponse], None]) -> None:
        """Again while the server is busy."""
        path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
        for _ in range(100):
            with self.answer(json.dumps(body).encode(), path) as response:
                if response.status == 429:
                    response.read()
                    self.counts.add("busy")
                elif response.status == 200:
                    take(response)
                    return
                else:
                    raise RuntimeError(f"{response.status}: {response.read()[:300]!r}")
            time.sleep(0.5)
        raise RuntimeError("busy for 100 times")

    # ---- kinds ----

    def whole(self) -> None:
        def take(response: http.client.HTTPResponse) -> None:
            choice = json.loads(response.read())["choices"][0]
            assert choice["finish_reason"] in ("stop", "length"), choice

        self.ask(self.body(stream=False), take)
        self.counts.add("answered")

    def streamed(self) -> None:
        started = time.monotonic()
        times: list[float] = []

        def take(response: http.client.HTTPResponse) -> None:
            ended = False
            for event in _events(response):
                choice = event["choices"][0] if event["choices"] else {}
                times.append(time.monotonic())
                ended = ended or choice.get("finish_reason") in ("stop", "length")
            assert ended, "no finish_reason"

        self.ask(self.body(stream=True), take)
        with self.counts.lock:
            self.counts.answered += 1
            self.counts.first.append(times[0] - started)
            if len(times) > 8:
                self.counts.rate.append((len(times) - 1) / (times[-1] - times[0]))

    def leaving(self) -> None:
        def take(response: http.client.HTTPResponse) -> None:
            for _, _event in zip(range(self.random.randrange(1, 6)), _events(response)):
                pass

        self.ask(self.body(stream=True), take)
        self.counts.add("gone")

    def malformed(self) -> None:
        with self.answer(self.random.choice(MALFORMED), "/v1/chat/completions") as response:
            assert 400 <= response.status < 500, response.status
            assert json.loads(response.read())["error"]["message"]
        self.counts.add("refused")

    def slow(self) -> None:
        body = json.dumps(self.body(stream=True) | {"max_tokens": 60}).encode()
        path = b"/v1/completions" if b'"prompt"' in body else b"/v1/chat/completions"
        with socket.create_connection(("127.0.0.1", self.port), timeout=300) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            head = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            connection.sendall(head % path + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            for _ in range(SLOW_BYTES):
                assert connection.recv(1), "closed early"
                time.sleep(1)
        self.counts.add("slow")


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line[6:])


def run_client(kind: Callable[[], None], counts: Counts, until: float, pause: float) -> None:
    while time.monotonic() < until:
        try:
            kind()
        except Exception as error:
            with counts.lock:
                counts.lost.append(f"{kind.__name__}: {type(error).__name__}: {error}")
        time.sleep(pause * random.random() * 2)


def resident(pid: int) -> float:
    """MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{pid} has ended")


def slope(samples: list[tuple[float, float]]) -> float:
    """MiB an hour, least squares, of (seconds, MiB)."""
    samples = samples[int(len(samples) * WARM_UP) :]
    return statistics.linear_regression(*zip(*samples)).slope * 3600 if len(samples) > 2 else 0.0


def percentiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 3), "p95": round(cuts[94], 3), "n": len(values)}


@contextmanager
def server(model: str, options: list[str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "ffnskip_cpp", "serve", model, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            yield process, int(said.split("http://127.0.0.1:")[1].split(";")[0].split("/")[0].split()[0])
        finally:
            process.send_signal(signal.SIGCONT)  # if it was stopped
            process.terminate()


def _parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Before and behind --."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pause", type=float, default=1, metavar="S", help="between two requests, on average")
    parser.add_argument("--skip", action="append", type=json.loads, metavar="JSON", help="of requests; may be repeated")
    parser.add_argument("-o", "--output", metavar="FILE")
    own, options = _parted(sys.argv[1:])
    args = parser.parse_args(own)

    counts, samples = Counts(), []
    with server(args.model, options) as (process, port):
        started = time.monotonic()
        until = started + 60 * args.minutes
        skips = ["server's", *(args.skip or [])]
        clients = [Client(port, counts, seed, skips) for seed in range(args.clients)]
        special = [clients[0].slow, clients[1].malformed, clients[2].leaving]
        kinds = special + [client.streamed if i % 2 else client.whole for i, client in enumerate(clients[3:])]
        threads = [threading.Thread(target=run_client, args=(kind, counts, until, args.pause)) for kind in kinds]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            samples.append((time.monotonic() - started, resident(process.pid)))
            time.sleep(min(10, max(0.5, args.minutes)))
        metrics = http.client.HTTPConnection("127.0.0.1", port)
        metrics.request("GET", "/metrics")
        numbers = metrics.getresponse().read().decode()
    found = {name: value for name, value in vars(counts).items() if name not in ("lock", "first", "rate", "lost")}
    found |= {
        "lost": len(counts.lost),
        "lost_why": counts.lost[:20],
        "minutes": args.minutes,
        "status": process.returncode,
    }
    found |= {"first_token_s": percentiles(counts.first), "tokens_per_s": percentiles(counts.rate)}
    found |= {
        "resident_mib": [round(samples[0][1], 1), round(samples[-1][1], 1)],
        "mib_per_hour": round(slope(samples), 2),
    }
    print(json.dumps(found, indent=2))
    if args.output:
        lines = [line for line in numbers.splitlines() if not line.startswith("#")]
        Path(args.output).write_text(json.dumps(found | {"resident": samples, "metrics": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
