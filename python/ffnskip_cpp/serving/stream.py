"""The answer to a request, handed from the thread that decodes to whoever reads it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .requests import End, Token

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Stream"]


class Stream:
    """Tokens as they come, then one `End`; `async for` or `rest` by one reader, on any event loop.

    What is not read yet waits here, all of an answer at most: a slow reader holds nothing up.
    """

    def __init__(self, wake: Callable[[], None]):
        self.is_cancelled = False
        self._wake = wake  # the engine
        self._lock = threading.Lock()
        self._items: deque[Token | End] = deque()
        self._reader: _Reader | None = None  # that waits
        self._is_read = False  # to its end

    def cancel(self) -> None:
        """Nobody wants the answer any more: it ends with the turn that is going on. From any thread, at any time."""
        self.is_cancelled = True
        self._wake()

    def put(self, items: Iterable[Token | End]) -> None:
        """For the engine."""
        with self._lock:
            self._items.extend(items)
            reader = self._reader
            if reader is None or (reader.until_end and not self._has_ended()):
                return
            self._reader = None
        reader.wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token | End:
        while not self._is_read:
            with self._lock:
                if self._items:
                    item = self._items.popleft()
                    self._is_read = isinstance(item, End)
                    return item
                reader = self._reader = _Reader(until_end=False)
            await reader.woken
        raise StopAsyncIteration

    async def rest(self) -> tuple[tuple[Token, ...], End]:
        """All that is not read yet, once the answer has ended. Its reader is woken once, and takes no time before from
        the threads that compute."""
        while True:
            with self._lock:
                if self._has_ended():
                    self._is_read = True
                    tokens = tuple(item for item in self._items if isinstance(item, Token))
                    end = self._items[-1]
                    assert isinstance(end, End)
                    return tokens, end
                reader = self._reader = _Reader(until_end=True)
            await reader.woken

    def _has_ended(self) -> bool:
        return len(self._items) > 0 and isinstance(self._items[-1], End)


class _Reader:
    def __init__(self, *, until_end: bool):
        self.until_end = until_end
        self._loop = asyncio.get_running_loop()
        self.woken: asyncio.Future[None] = self._loop.create_future()

    def wake(self) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(_wake, self.woken)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
