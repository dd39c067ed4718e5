"""examples/ray_serve.py on a Ray cluster of its own: two replicas answer, one of them is killed, no request is lost.

    python tools/check_ray.py MODEL [--profile FILE] [--seconds 60] [--clients 8]

A request that fails is sent again, twice at most, as OpenAI's clients do; then it is lost. Needs ray[serve].
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

# On two busy cores Ray's own processes take longer to start than it waits for them.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "60")

import ray
from ray import serve

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

PORT = 18322
RETRIES = 2
BODY = {"prompt": "Herno Jotsen", "max_tokens": 32, "temperature": 0}


def ask(body: dict[str, Any]) -> dict[str, Any]:
    """Raises where the answer is none."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        assert response.status == 200, answer
        return answer
    finally:
        connection.close()


def client(until: float, found: collections.Counter[str], texts: set[str], seconds: list[float]) -> None:
    while time.monotonic() < until:
        started = time.monotonic()
        for attempt in range(1 + RETRIES):
            try:
                texts.add(ask(BODY)["choices"][0]["text"])
                found["answered at once" if attempt == 0 else "answered when asked again"] += 1
                seconds.append(time.monotonic() - started)
                break
            except (OSError, http.client.HTTPException, AssertionError, ValueError):
                time.sleep(0.5)
        else:
            found["lost"] += 1


def replicas() -> set[int]:
    """Processes of those that live."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if path.read_bytes().startswith(b"ray::ServeReplica"):
                found.add(int(path.parent.name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--profile", metavar="FILE")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()
    from ray_serve import build

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    given = {"model": args.model, "replicas": "2", "threads": "1"} | ({"profile": args.profile} if args.profile else {})
    serve.run(build(given))
    before = replicas()
    assert len(before) == 2, before
    found: collections.Counter[str] = collections.Counter()
    texts: set[str] = set()
    seconds: list[float] = []
    until = time.monotonic() + args.seconds
    threads = [threading.Thread(target=client, args=(until, found, texts, seconds)) for _ in range(args.clients)]
    for thread in threads:
        thread.start()
    time.sleep(args.seconds / 3)
    os.kill(min(before), signal.SIGKILL)
    killed = time.monotonic()
    while not (new := replicas() - before) and time.monotonic() < until:
        time.sleep(0.2)
    back = time.monotonic() - killed
    for thread in threads:
        thread.join()
    seconds.sort()
    print(
        json.dumps(
            {
                **found,
                "texts": len(texts),
                "replicas": len(replicas()),
                "seconds_to_another": round(back, 1) if new else None,
                "answer_s": {
                    "p50": round(seconds[len(seconds) // 2], 2),
                    "p95": round(seconds[len(seconds) * 95 // 100], 2),
                },
            }
        )
    )
    serve.shutdown()
    ray.shutdown()
    assert not found["lost"] and len(texts) == 1


if __name__ == "__main__":
    main()
