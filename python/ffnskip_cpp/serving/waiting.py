"""Requests that wait for a slot."""

from __future__ import annotations

from collections import deque
from typing import Callable, Generic, TypeVar

__all__ = ["Waiting"]

T = TypeVar("T")


class Waiting(Generic[T]):
    """First come, first served within a client; clients take turns."""

    def __init__(self) -> None:
        self._of: dict[str, deque[T]] = {}  # whose turn it is comes first
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(self, client: str, item: T) -> None:
        self._of.setdefault(client, deque()).append(item)
        self._n += 1

    def next(self) -> T:
        """Takes one out. Raises StopIteration where there is none."""
        client = next(iter(self._of))
        items = self._of.pop(client)
        item = items.popleft()
        if items:
            self._of[client] = items
        self._n -= 1
        return item

    def take(self, which: Callable[[T], bool]) -> list[T]:
        """Takes out all of which that is true."""
        taken: list[T] = []
        for client, items in list(self._of.items()):
            kept = deque(item for item in items if not which(item))
            taken += [item for item in items if which(item)]
            if kept:
                self._of[client] = kept
            else:
                del self._of[client]
        self._n -= len(taken)
        return taken
