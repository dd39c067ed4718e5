"""Whether the context has room, asked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Item, Prompt, Subject

__all__ = ["check_prompts", "check_texts", "n_tokens", "no_room", "room"]


def n_tokens(subject: Subject, prompt: Prompt) -> int:
    return len(subject.tokenize(prompt) if isinstance(prompt, str) else prompt)


def room(subject: Subject, max_tokens: int) -> int:
    """Tokens that a prompt may have which can be shortened: the answer gets all it may have, or at least a quarter of
    the context."""
    return subject.n_ctx() - min(max_tokens, subject.n_ctx() // 4)


def check_prompts(subject: Subject, items: Sequence[Item], prompts: Sequence[Prompt]) -> None:
    """ValueError for the first prompt that leaves no room for an answer."""
    for item, prompt in zip(items, prompts):
        if (n := n_tokens(subject, prompt)) >= subject.n_ctx():
            raise no_room(subject, item, n)


def check_texts(subject: Subject, items: Sequence[Item], texts: Sequence[tuple[str, Sequence[str]]]) -> None:
    """ValueError for the first prefix that leaves no room for one of its continuations."""
    for item, (prefix, continuations) in zip(items, texts):
        if (n := max(n_tokens(subject, prefix + text) for text in continuations)) > subject.n_ctx():
            raise no_room(subject, item, n)


def no_room(subject: Subject, item: Item, n: int) -> ValueError:
    if subject.n_ctx() == subject.n_ctx_train():
        return ValueError(f"{item.where}: {n} tokens, and the model was trained on {subject.n_ctx()}; leave it out")
    return ValueError(f"{item.where}: {n} tokens, and the context has {subject.n_ctx()}; a larger n_ctx is right")
