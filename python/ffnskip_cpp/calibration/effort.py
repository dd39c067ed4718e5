"""How much a search for settings may cost."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EFFORTS", "SEARCHED_ROWS", "Effort"]

SEARCHED_ROWS = 2048
"""Tokens past the warm-up that decide between the last settings of every race, at any effort."""


@dataclass(frozen=True)
class Effort:
    first_chunks: int
    """Chunks of the first round of a race."""
    searched_rows: int
    """Tokens past the warm-up of the last one."""
    n_blocks: int
    """FFN blocks that race for each place of the fixed set, but for the first, for which all do."""
    n_ranked: int
    """Settings of Algorithm 1 that race, per policy."""
    n_swaps: int
    """Times that blocks of the fixed set are exchanged for others."""
    compared_tokens: int
    """Of held-out text."""
    group: int
    """Layers whose inputs leave out channels together where the cost of one kind of input is measured."""
    probed_chunks: int
    """Of the search, that it is measured on."""
    wide: bool = False
    """With what seldom wins: a threshold for each layer, and Algorithm 1 beside a smaller fixed set."""


EFFORTS = {
    "quick": Effort(
        *(1, SEARCHED_ROWS),
        n_blocks=4,
        n_ranked=4,
        n_swaps=0,
        compared_tokens=2048,
        group=10,
        probed_chunks=2,
    ),
    "normal": Effort(
        *(1, SEARCHED_ROWS),
        n_blocks=8,
        n_ranked=12,
        n_swaps=1,
        compared_tokens=4096,
        group=5,
        probed_chunks=4,
    ),
    "thorough": Effort(
        *(4, 2 * SEARCHED_ROWS),
        n_blocks=16,
        n_ranked=24,
        n_swaps=3,
        compared_tokens=16384,
        group=2,
        probed_chunks=16,
        wide=True,
    ),
}
"""In ascending order."""
