"""An answer on its way to a client: whole or as server-sent events, as long as the client is there and time is left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Union

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .failures import ApiError, error_of, response_of
from .forms import Answered, Form
from .requests import End, Token
from .stream import Stream

__all__ = ["Reply"]

LAST_WORDS = 5.0  # seconds that a client has to take the news that its time is over

Item = tuple[int, Union[Token, End]]


class Reply(Response):
    """
    Args:
        streams: An answer each.
        is_streamed: As events.
        seconds: That it may take, sending included; 0: as long as it does.
        ended: Told how each answer ends.
    """

    def __init__(
        self, streams: Sequence[Stream], form: Form, *, is_streamed: bool, seconds: float, ended: Callable[[End], None]
    ):
        self.status_code = 200  # FastAPI looks at these two
        self.background = None
        self._streams = streams
        self._form = form
        self._is_streamed = is_streamed
        self._seconds = seconds
        self._ended = ended
        self._n_left = len(streams)
        self._is_late = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._events(send) if self._is_streamed else self._whole(scope, receive, send))
        leaving = asyncio.ensure_future(_until_gone(receive))
        tasks = {sending, leaving}
        try:
            await asyncio.wait(tasks, timeout=self._seconds or None, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() and not leaving.done():
                self._is_late = True
                self._cancel()
                await asyncio.wait(tasks, timeout=LAST_WORDS, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self._cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _cancel(self) -> None:
        if self._n_left > 0:
            for stream in self._streams:
                stream.cancel()

    async def _items(self) -> AsyncIterator[Item]:
        """Of all answers, as they come. Raises ApiError where one fails."""
        queue: asyncio.Queue[Item] = asyncio.Queue()

        async def read(index: int, stream: Stream) -> None:
            async for item in stream:
                queue.put_nowait((index, item))

        readers = [asyncio.ensure_future(read(index, stream)) for index, stream in enumerate(self._streams)]
        try:
            while self._n_left > 0:
                index, item = await queue.get()
                if isinstance(item, End):
                    self._count(item)
                yield index, item
        finally:
            for reader in readers:
                reader.cancel()

    def _count(self, end: End) -> None:
        self._n_left -= 1
        self._ended(end)
        if end.reason == "error":
            raise ApiError(500, f"the answer failed: {end.message}")
        if end.reason == "cancelled":
            why = f"the answer took longer than {self._seconds:g} s" if self._is_late else end.message
            raise ApiError(504 if self._is_late else 503, why)

    # ---- whole ----

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answers = await asyncio.gather(*(self._answer(stream) for stream in self._streams))
        except HTTPException as error:
            await response_of(error)(scope, receive, send)
            return
        body = _json(self._form.whole(answers))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, stream: Stream) -> Answered:
        tokens, end = await stream.rest()
        self._count(end)
        return Answered(tokens, end)

    # ---- events ----

    async def _events(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # to nginx: events go on as they come
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def say(data: bytes) -> None:
            await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})

        try:
            async for chunk in self._chunks():
                await say(_json(chunk))
            await say(b"[DONE]")
        except HTTPException as error:
            await say(_json(error_of(error)))
        await send({"type": "http.response.body", "body": b""})

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        form = self._form
        for index in range(len(self._streams)):
            choice = form.opening(index)
            if choice is not None:
                yield form.chunk([choice])
        ends: dict[int, End] = {}
        async for index, item in self._items():
            if isinstance(item, End):
                ends[index] = item
                for choice in form.closing(index, item):
                    yield form.chunk([choice])
            elif (choice := form.piece(index, item)) is not None:
                yield form.chunk([choice])
        if form.wanted.usage:
            yield form.chunk([], [ends[index] for index in range(len(self._streams))])


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
