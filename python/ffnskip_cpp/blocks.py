"""The blocks of a model, by kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._core import Block

__all__ = ["attention_blocks", "ffn_blocks"]


def ffn_blocks(blocks: Sequence[Block]) -> list[Block]:
    """One for each layer that has an FFN."""
    return [block for block in blocks if block.kind == "ffn"]


def attention_blocks(blocks: Sequence[Block]) -> list[Block]:
    """One for each layer that has attention."""
    return [block for block in blocks if block.kind == "attention"]
