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
    """Tokens as they come, then one `End`; `async for` by one reader, on any event loop.

    What is not read yet waits here, all of an answer at most: a slow reader holds nothing up.
    """

    def __init__(self, wake: Callable[[], None]):
        self.is_cancelled = False
        self._wake = wake  # the engine
        self._lock = threading.Lock()
        self._items: deque[Token | End] = deque()
        self._reader: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None  # that waits
        self._is_read = False  # to its end

    def cancel(self) -> None:
        """Nobody wants the answer any more: it ends with the turn that is going on. From any thread, at any time."""
        self.is_cancelled = True
        self._wake()

    def put(self, items: Iterable[Token | End]) -> None:
        """For the engine."""
        with self._lock:
            self._items.extend(items)
            reader, self._reader = self._reader, None
        if reader is not None:
            loop, future = reader
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(_wake, future)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token | End:
        while not self._is_read:
            with self._lock:
                if self._items:
                    item = self._items.popleft()
                    self._is_read = isinstance(item, End)
                    return item
                loop = asyncio.get_running_loop()
                future = loop.create_future()
                self._reader = (loop, future)
            await future
        raise StopAsyncIteration


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
