"""What a model is told as a user would: in its own chat template, or in the paper's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from .base import Prompt, Subject

__all__ = ["Messages", "conversation", "shortened", "stops"]

Messages = Sequence[dict[str, str]]

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
NAMES = {"user": "USER:", "assistant": "ASSISTANT:"}

WORD = re.compile(r"\S+")


def conversation(subject: Subject, messages: Messages) -> Prompt:
    """What the assistant's next answer follows."""
    told = subject.chat_prompt(messages)
    if told is not None:
        return told
    said = (f"{NAMES[message['role']]} {message['content']}" for message in messages)
    return " ".join([SYSTEM, *said, NAMES["assistant"]])


def stops(prompt: Prompt) -> tuple[str, ...]:
    """Where an answer ends that no token ends: in the paper's words the model goes on for the user."""
    return (NAMES["user"],) if isinstance(prompt, str) else ()


def shortened(text: str, fits: Callable[[str], bool]) -> tuple[str, int]:
    """The longest beginning of whole words that fits, and how many words are left out. Nothing, if nothing fits."""
    if fits(text):
        return text, 0
    ends = [0, *(word.end() for word in WORD.finditer(text))]
    low, high = 0, len(ends) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(text[: ends[middle]]) else (low, middle)
    return text[: ends[low]], len(ends) - 1 - low
