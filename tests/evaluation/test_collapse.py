"""Measures of collapse next to the definitions, tried out on every stretch of a text."""

from __future__ import annotations

import random

import pytest

from ffnskip_cpp.batches import Completion
from ffnskip_cpp.evaluation.collapse import agreement, collapse


def completion(tokens, text="", reason="stop"):
    return Completion(text, tuple(tokens), reason, 0)


def longest_run(tokens):
    """Of all stretches the longest that is a phrase, over and over, the last time perhaps not to its end."""
    best = min(1, len(tokens))
    for first in range(len(tokens)):
        for last in range(first + 1, len(tokens) + 1):
            stretch = tokens[first:last]
            for n in range(1, len(stretch) // 2 + 1):
                if (stretch[:n] * len(stretch))[: len(stretch)] == stretch:
                    best = max(best, len(stretch))
    return best


@pytest.mark.parametrize("n_different", [1, 2, 3, 20])
def test_of_random_texts(n_different):
    rng = random.Random(n_different)
    for length in (0, 1, 2, 3, 4, 5, 17, 24):
        tokens = [rng.randrange(n_different) for _ in range(length)]
        got = collapse(completion(tokens))
        grams = [tuple(tokens[i : i + 4]) for i in range(length - 3)]
        repeated = sum(gram in grams[:i] for i, gram in enumerate(grams))
        assert got.repeated_4grams == pytest.approx(repeated / len(grams) if grams else 0)
        assert got.distinct_1 == pytest.approx(len(set(tokens)) / length if length else 1)
        pairs = list(zip(tokens, tokens[1:]))
        assert got.distinct_2 == pytest.approx(len(set(pairs)) / len(pairs) if pairs else 1)
        assert (got.longest_run, got.length) == (longest_run(tokens), length)


@pytest.mark.parametrize(
    ("tokens", "run"),
    [
        ([1, 2, 3], 1),
        ([1, 2, 2, 3], 2),
        ([9, 1, 2, 1, 2, 1, 8], 5),
        ([1, 2, 3, 4, 1, 2, 3, 4], 8),
        ([1, 2, 3, 4, 1, 2, 3], 1),
        ([7] * 1000, 1000),
    ],
)
def test_longest_run(tokens, run):
    assert collapse(completion(tokens)).longest_run == run


def test_a_text_that_repeats_itself_is_compressed():
    prose = "Olm, who had been a duke, sold forty boats in Ul; nobody asked him why, and so he told the cat of it."
    once, often = (collapse(completion([1], text)).compression for text in (prose, "of Ul " * 100))
    assert 0.8 < once < 1.3 and often > 20
    assert collapse(completion([])).compression == 0
    assert collapse(completion([1], "é" * 500)).compression > 20  # bytes, not characters


def test_unfinished_and_means():
    both = collapse(completion([1, 1, 1, 1], reason="length"), completion([1, 2]))
    assert (both.unfinished, both.length, both.longest_run, both.distinct_1) == (0.5, 3, 2.5, (0.25 + 1) / 2)
    assert both.values()["unfinished"] == 0.5


@pytest.mark.parametrize(
    ("dense", "tokens", "first", "share"),
    [
        ([1, 2, 3, 4], [1, 2, 9, 4], 2, 0.5),
        ([1, 2, 3, 4], [1, 2, 3, 4], None, 1.0),
        ([1, 2, 3, 4], [1, 2, 3], 3, 0.75),
        ([1, 2, 3], [1, 2, 3, 4], 3, 0.75),
        ([1], [2], 0, 0.0),
        ([], [2], 0, 0.0),
        ([], [], None, 1.0),
    ],
)
def test_agreement(dense, tokens, first, share):
    got = agreement(dense, tokens)
    assert (got.first_difference, got.share) == (first, share)
