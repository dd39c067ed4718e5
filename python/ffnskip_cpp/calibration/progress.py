"""A progress bar in tokens, with the time left."""

from __future__ import annotations

from tqdm import tqdm

__all__ = ["Bar"]


class Bar:
    """How many tokens there will be is foretold at every stage of the work. What was measured by an earlier run is
    taken off the whole, not added to what is done: it takes no time, and would make the rest look fast."""

    def __init__(self, shown: bool):
        self._bar = tqdm(total=0, desc="calibrating", unit=" tokens", leave=False, disable=None if shown else True)

    def expect(self, n_tokens: int) -> None:
        self._bar.total = self._bar.n + n_tokens
        self._bar.refresh()

    def __call__(self, n_tokens: int) -> None:
        self._bar.total = max(self._bar.total, self._bar.n + n_tokens)
        self._bar.update(n_tokens)

    def found(self, n_tokens: int) -> None:
        self._bar.total = max(self._bar.total - n_tokens, self._bar.n)
        self._bar.refresh()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
