"""Data sets of our own making in the official formats, for evaluations of tiny models; and what plain llama.cpp says of
their items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from support.logits import log_softmax
from support.running import last_logits, plain

WORDS = "boat lamp river stone Olm Hebbo green seven under window salt chair moon paper wheel north".split()


def words(rng: np.random.Generator, n: int) -> str:
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), n))


def choices(n: int, seed: int = 0) -> list[dict]:
    """Questions with two to four choices of one to three words."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        answers = [words(rng, int(rng.integers(1, 4))) for _ in range(int(rng.integers(2, 5)))]
        query = f"Question: {words(rng, 5)} {i}?"
        made.append({"query": query, "choices": answers, "gold": int(rng.integers(0, len(answers)))})
    return made


def write_lines(path: Path, entries: Sequence[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")
    return path


def likelihoods(path: Path, entries: Sequence[dict]) -> list[list[float]]:
    """Of each choice, token by token, by llama.cpp alone."""
    found = []
    with plain(path) as llm:
        for entry in entries:
            prompt = llm.tokenize(f"{entry['query']}\nAnswer:".encode())
            found.append([_likelihood(llm, prompt, llm.tokenize(f" {text}".encode())) for text in entry["choices"]])
    return found


def _likelihood(llm, prompt: list[int], tokens: list[int]) -> float:
    llm.reset()
    llm.eval(prompt)
    total = 0.0
    for token in tokens:
        total += log_softmax(last_logits(llm))[0, token]
        llm.eval([token])
    return float(total)


def accuracies(entries: Sequence[dict], likely: Sequence[Sequence[float]]) -> tuple[float, float]:
    """By likelihood, and by likelihood per character."""
    right = [np.argmax(row) == entry["gold"] for entry, row in zip(entries, likely)]
    lengths = [[len(choice) for choice in entry["choices"]] for entry in entries]
    right_norm = [
        np.argmax(np.array(row) / np.array(n)) == entry["gold"] for entry, row, n in zip(entries, likely, lengths)
    ]
    return float(np.mean(right)), float(np.mean(right_norm))
