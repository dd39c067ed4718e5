"""Progress in tokens, with the time left."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Bar"]


class Bar:
    """How many tokens there will be is foretold at every stage of the work. What was measured by an earlier run is
    taken off the whole, not added to what is done: it takes no time, and would make the rest look fast."""

    def __init__(self, bar: tqdm[None]):
        self._bar = bar

    def expect(self, n_tokens: int) -> None:
        """So many tokens are still to be evaluated."""
        self._change_total(self._bar.n + n_tokens)

    def __call__(self, n_tokens: int) -> None:
        """So many were."""
        self._bar.total = max(self._bar.total, self._bar.n + n_tokens)
        self._bar.update(n_tokens)

    def found(self, n_tokens: int) -> None:
        """So many need not be."""
        self._change_total(max(self._bar.total - n_tokens, self._bar.n))

    def _change_total(self, n_tokens: float) -> None:
        self._bar.total = n_tokens
        self._bar.refresh()
