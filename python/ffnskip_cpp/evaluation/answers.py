"""Whether an answer is a right one, by the rules of SQuAD (Rajpurkar et al. 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

__all__ = ["exact_match", "f1", "matches", "normalized"]

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> list[str]:
    """Words: in lower case, without punctuation and articles. Where nothing else is there ("A", "The The"), the
    articles stay; SQuAD would take all such answers for the same."""
    plain = text.lower().translate(PUNCTUATION)
    return ARTICLES.sub(" ", plain).split() or plain.split()


def matches(answer: str, right: Sequence[str]) -> bool:
    """One of the right answers is among the words of the answer, all its words in a row."""
    given = normalized(answer)
    return any(_within(words, given) for words in map(normalized, right))


def exact_match(answer: str, right: Sequence[str]) -> bool:
    """The answer is one of the right ones and nothing more."""
    given = normalized(answer)
    return bool(given) and any(given == normalized(text) for text in right)


def f1(answer: str, right: Sequence[str]) -> float:
    """[0, 1]: harmonic mean of the share of the answer's words that a right one has, and of the right one's words that
    the answer has; of the right answer for which it is largest."""
    given = normalized(answer)
    return max((_f1(given, normalized(text)) for text in right), default=0.0)


def _within(words: list[str], given: list[str]) -> bool:
    n = len(words)
    return n > 0 and any(given[i : i + n] == words for i in range(len(given) - n + 1))


def _f1(given: list[str], right: list[str]) -> float:
    common = sum((Counter(given) & Counter(right)).values())
    return 2 * common / (len(given) + len(right)) if common else 0.0
