"""What a trial found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..plain import plain
from .report import page
from .rows import Row
from .verdict import verdict

__all__ = ["Trial"]


@dataclass(frozen=True, repr=False)
class Trial:
    """What was found. Its repr is a page to read, `as_dict()` for programs."""

    model: str
    architecture: str
    type: str
    n_bytes: int
    n_layer: int
    n_threads: int
    warm_up_index: int
    text: str = ""
    """What was measured on, in words."""
    n_tokens: int = 0
    """Tokens compared."""
    tokens_per_second: float = math.nan
    """Of the dense model."""
    n_prompt: int = 0
    first_token_seconds: float = math.nan
    """Of the dense model, after a prompt of n_prompt tokens."""
    weights_bytes: int = 0
    """Memory that the weights by channel take beside the model's."""
    rows: tuple[Row, ...] = ()
    prompt: str = ""
    texts: tuple[tuple[str, str], ...] = ()
    """Name and greedy text after `prompt`, of the dense model and of the best settings of the largest ratios."""
    notes: tuple[str, ...] = ()
    complete: bool = False

    @property
    def verdict(self) -> str:
        """One line (docs/try.md has the rule)."""
        return verdict(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Of plain values; None for what was not measured."""
        return {**plain(self), "verdict": self.verdict}

    def __repr__(self) -> str:
        return page(self)
