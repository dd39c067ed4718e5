"""What judging will cost, before it does."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...plain import plain
from .templates import Prompt

__all__ = ["Estimate", "estimate"]

BYTES_PER_TOKEN = 4  # of English; other languages have more bytes in a character, and more tokens
TOKENS_OF_A_PROMPT = 8  # that a chat template puts around it, or so
TOKENS_OF_A_REPLY = 150  # two or three sentences, and the grades


@dataclass(frozen=True, repr=False)
class Estimate:
    """Its repr is the sentence for a user."""

    requests: int
    """Without those that failures and invalid replies add."""
    known: int
    """Verdicts that were asked for before, and cost nothing."""
    tokens_in: int
    tokens_out: int
    """About: texts are not tokenised."""
    price: float | None
    """In the unit of the prices given; None without them."""

    def as_dict(self) -> dict[str, Any]:
        return plain(self)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        parts = [f"{self.requests:,} requests"]
        if self.known:
            parts[0] += f" ({self.known:,} more verdicts are there already)"
        parts.append(f"about {self.tokens_in:,} tokens in and {self.tokens_out:,} out, without retries")
        if self.price is not None:
            parts.append(f"about {self.price:,.2f} at the prices given")
        return "; ".join(parts)


def estimate(prompts: Iterable[Prompt], known: int, price_in: float | None, price_out: float | None) -> Estimate:
    """
    Args:
        prompts: That are to be asked.
        price_in, price_out: Of a million tokens; None: of no charge, where the other is given.
    """
    tokens = [TOKENS_OF_A_PROMPT + math.ceil(len(prompt.text.encode()) / BYTES_PER_TOKEN) for prompt in prompts]
    tokens_in, tokens_out = sum(tokens), TOKENS_OF_A_REPLY * len(tokens)
    price = None
    if price_in is not None or price_out is not None:
        price = (tokens_in * (price_in or 0) + tokens_out * (price_out or 0)) / 1e6
    return Estimate(len(tokens), known, tokens_in, tokens_out, price)
