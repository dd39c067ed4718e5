"""How fast `ffnskip serve` answers: next to llama-server with many clients, next to `Llama.generate` with one.

    python tools/bench_server.py MODEL [--llama-server PATH] [--clients 1,8] [--rounds 3] [-t 2] [--skip JSON] [-o FILE]

All that is compared is loaded at once and asked in turn, A B A B, so that what else the machine does falls on all of
it; a server that is not asked is stopped meanwhile. Every prompt is a new one, so that nobody spares its evaluation.
Figures are tokens a second of all clients together, and quotients of neighbouring runs: median, least and most.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ffnskip_cpp import Llama
from soak_server import server

TEXT = "The history of the town begins with a river, a mill and a bridge. "
Run = Callable[[int], float]
_numbers = itertools.count(1)


def prompts(n: int, words: int) -> list[str]:
    return [(f"Chapter {next(_numbers)}. " + TEXT * (1 + words // 14)).strip() for _ in range(n)]


def post(port: int, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer}")
        return answer
    finally:
        connection.close()


def asked(process: subprocess.Popen[Any], port: int, n_tokens: int, words: int, more: dict[str, Any]) -> Run:
    """Tokens a second that so many clients get together, each with one answer."""
    process.send_signal(signal.SIGSTOP)

    def run(clients: int) -> float:
        process.send_signal(signal.SIGCONT)
        try:
            return measured(clients)
        finally:
            process.send_signal(signal.SIGSTOP)

    def measured(clients: int) -> float:
        bodies = [
            {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, **more} for prompt in prompts(clients, words)
        ]
        started = time.monotonic()
        with ThreadPoolExecutor(clients) as threads:
            answers = list(threads.map(lambda body: post(port, body), bodies))
        n = sum(answer["usage"]["completion_tokens"] for answer in answers)
        return n / (time.monotonic() - started)

    return run


@contextlib.contextmanager
def llama_server(
    path: str, model: str, clients: int, n_ctx: int, threads: int
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = 18321
    options = [
        "-np",
        clients,
        "-c",
        clients * n_ctx,
        "-t",
        threads,
        "-tb",
        threads,
        "--port",
        port,
        "--host",
        "127.0.0.1",
    ]
    process = subprocess.Popen(
        [path, "-m", model, *map(str, options)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.1)
        yield process, port
    finally:
        process.kill()
        process.wait()


def alone(llm: Llama, n_tokens: int, words: int) -> Run:
    """`Llama.generate`, prompt included, as a client of a server waits for it, too."""

    def run(clients: int) -> float:
        prompt = prompts(1, words)[0]
        llm.reset()
        started = time.monotonic()
        n = sum(1 for _ in llm.generate(prompt, max_tokens=n_tokens, temp=0.0, repeat_penalty=1.0))
        return n / (time.monotonic() - started)

    return run


def in_turn(runs: dict[str, Run], clients: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(clients)  # what is done once is done
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run(clients))
    first, *others = found
    quotients = {f"{first} / {name}": [round(a / b, 3) for a, b in zip(found[first], found[name])] for name in others}
    return {
        "clients": clients,
        "tokens_per_second": {name: round(statistics.median(values), 2) for name, values in found.items()},
        "quotients": {
            name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
            for name, values in quotients.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--llama-server", metavar="PATH")
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-n", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--words", type=int, default=40, help="of a prompt, about")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--skip", type=json.loads, metavar="JSON", help="what requests skip; also measured dense")
    parser.add_argument("-o", "--output", metavar="FILE")
    args = parser.parse_args()
    numbers = [int(number) for number in args.clients.split(",")]
    n_ctx, results = 512, []
    options = ["--parallel", str(max(numbers)), "--ctx", str(n_ctx), "-t", str(args.threads)]
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(server(args.model, options))
        ours = asked(*served, args.n, args.words, {"skip": {"policy": "dense"}})
        many: dict[str, Run] = {"ffnskip serve": ours}
        if args.skip is not None:
            many["ffnskip serve, skipping"] = asked(*served, args.n, args.words, {"skip": args.skip})
        if args.llama_server:
            theirs = llama_server(args.llama_server, args.model, max(numbers), n_ctx, args.threads)
            many["llama-server"] = asked(*stack.enter_context(theirs), args.n, args.words, {})
        llm = stack.enter_context(
            Llama(
                args.model,
                skip=None,
                n_ctx=n_ctx,
                n_threads=args.threads,
                n_threads_batch=args.threads,
                flash_attn=True,  # as the servers
                verbose=False,
            )
        )
        for clients in numbers:
            runs = {**many, "Llama.generate": alone(llm, args.n, args.words)} if clients == 1 else many
            results.append(in_turn(runs, clients, args.rounds))
            print(json.dumps(results[-1], indent=2), flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
