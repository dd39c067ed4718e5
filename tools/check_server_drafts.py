"""That `llama-server` says the same with skipping drafts as alone, in all its slots; and how fast, beside dense drafts.

    python tools/check_server_drafts.py llama-server MODEL DRAFT --policy channels

Greedy, 500 tokens a slot, on the loopback interface. Options after the three paths are those of `ffnskip run`. Rows of
a batch of another size add up in another order, so that texts of quantised models may part where two tokens are nearly
as likely; with --ubatch 1 each row is computed alone, which is slow, and nothing may.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

PORT = 18123
URL = f"http://127.0.0.1:{PORT}"


@contextlib.contextmanager
def serving(command: list[str], log: str) -> Iterator[None]:
    with open(log, "w", encoding="utf-8") as file, subprocess.Popen(command, stdout=file, stderr=file) as server:
        try:
            while True:
                with contextlib.suppress(OSError):
                    if json.load(urllib.request.urlopen(f"{URL}/health")).get("status") == "ok":
                        break
                if server.poll() is not None:
                    raise SystemExit(f"{command[0]} ended with status {server.returncode}; see {log}")
                time.sleep(0.2)
            yield
        finally:
            server.terminate()
            server.wait()


def answer(slot: int, n_tokens: int) -> list[int]:
    """Tokens of a prompt that differs from slot to slot, in token ids that every model has."""
    asked = {
        "prompt": [40 + (7 * slot + 13 * i) % 150 for i in range(6 + slot)],
        "n_predict": n_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "return_tokens": True,
        "cache_prompt": False,
        "id_slot": slot,
    }
    request = urllib.request.Request(
        f"{URL}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    return list(json.load(urllib.request.urlopen(request))["tokens"])


def answers(command: list[str], log: str, slots: int, n_tokens: int) -> list[list[int]]:
    """Of all slots at once; says how long they took, which tells something on an idle machine alone."""
    with serving(command, log), ThreadPoolExecutor(slots) as pool:
        begin = time.perf_counter()
        tokens = list(pool.map(lambda slot: answer(slot, n_tokens), range(slots)))
        seconds = time.perf_counter() - begin
    print(f"{log}: {sum(map(len, tokens)) / seconds:.1f} tokens/s", flush=True)
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("model")
    parser.add_argument("draft")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("-n", type=int, default=500, help="tokens of each slot")
    parser.add_argument("--ubatch", type=int, default=512)
    args, skip = parser.parse_known_args()

    size = args.slots * (args.n + 64)
    options = ["-np", args.slots, "-c", size, "-ub", args.ubatch, "-t", 1, "-tb", 1, "--port", PORT, "--no-warmup"]
    exact = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]
    server = [args.server, "-m", args.model, *map(str, options), *exact, "-fit", "off", "--no-ui"]
    run = [sys.executable, "-m", "ffnskip_cpp", "run", "--draft-only", *skip, "--"]
    drafting = [*server, "-md", args.draft, "--spec-type", "draft-simple"]
    alone = answers(server, "server-alone.log", args.slots, args.n)
    answers(drafting, "server-dense-drafts.log", args.slots, args.n)
    drafted = answers([*run, *drafting], "server-skipping-drafts.log", args.slots, args.n)
    with open("server-skipping-drafts.log", encoding="utf-8") as log:
        print("".join(line for line in log if line.startswith("ffnskip: ")), end="")
    for slot, (one, other) in enumerate(zip(alone, drafted)):
        parts = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), None)
        print(f"slot {slot}: {len(one)} tokens, " + ("identical" if one == other else f"other ones from {parts} on"))
    sys.exit(int(alone != drafted))


if __name__ == "__main__":
    main()
