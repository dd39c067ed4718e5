"""Progress in tokens, with the time left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Bar"]


class Bar:
    """How many tokens there will be is foretold at every stage of the work. What was measured by an earlier run is
    taken off the whole, not added to what is done: it takes no time, and would make the rest look fast."""

    def __init__(self, bar: tqdm[Any]):
        self._bar = bar
        self._total = 0.0

    def expect(self, n_tokens: int) -> None:
        """So many tokens are still to be evaluated."""
        self._set_total(self._bar.n + n_tokens)

    def __call__(self, n_tokens: int) -> None:
        """So many were."""
        self._set_total(max(self._total, self._bar.n + n_tokens))
        self._bar.update(n_tokens)

    def found(self, n_tokens: int) -> None:
        """So many need not be."""
        self._set_total(max(self._total - n_tokens, self._bar.n))
        self._bar.refresh()

    def _set_total(self, n_tokens: float) -> None:
        self._bar.total = self._total = n_tokens
