"""Several texts at once: generations that share batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Completion"]


@dataclass(frozen=True)
class Completion:
    """What a prompt was continued with."""

    text: str
    """Up to the stop string, which is not part of it."""
    tokens: tuple[int, ...]
    """That were generated, without the end token."""
    finish_reason: Literal["stop", "length"]
    """"stop": an end token or a stop string; "length": max_tokens, or the context was full."""
    n_may_skip: int
    """Of the tokens, those that come from a row that may skip."""
