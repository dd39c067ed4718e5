"""What is refused before a request is looked at: a wrong key, a foreign name, a body too large or too slow."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ArgumentError
from .failures import ApiError, response_of

__all__ = ["Guard", "Limits"]

MOST_READ = 8  # times what a body may have


@dataclass(frozen=True)
class Limits:
    """
    Raises:
        ValueError: A value is out of its range.
    """

    max_body: int = 1 << 20
    """Bytes of a request."""
    seconds: float = 600.0
    """That a request may take, from its body to the last of the answer, the queue included; 0: no limit."""
    seconds_body: float = 30.0
    """That its body may take to arrive."""

    def __post_init__(self) -> None:
        if self.max_body < 1:
            raise ArgumentError(f"max_body: {self.max_body} is less than 1")
        if not self.seconds >= 0:
            raise ArgumentError(f"timeout: {self.seconds} is no number of seconds; 0: no limit")


class Guard:
    """
    Args:
        api_key: That requests must have; None: none is asked for, but then they must come by an address or the name
            "localhost", as a page of some other site, whose name has been pointed here, does not.
        open_paths: That need no key.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, api_key: str | None, open_paths: Collection[str]):
        self._app = app
        self._limits = limits
        self._key = None if api_key is None else api_key.encode()
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            await response_of(error)(scope, receive, send)
            return
        await self._app(scope, _limited(receive, self._limits), send)

    def _check(self, path: str, headers: Headers) -> None:
        if self._key is None:
            name = headers.get("host", "")
            if not _is_own(name):
                raise ApiError(
                    403, f"{name[:100]}: without an API key the server answers to addresses and localhost alone"
                )
        elif path not in self._open_paths:
            kind, _, key = headers.get("authorization", "").partition(" ")
            given = key.strip().encode("utf-8", errors="replace")
            if kind.lower() != "bearer" or not hmac.compare_digest(given, self._key):
                raise ApiError(401, "the API key is missing or wrong", headers={"WWW-Authenticate": "Bearer"})


def _is_own(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _limited(receive: Receive, limits: Limits) -> Receive:
    """Raises ApiError where the body is too large or too slow; what comes after it is not limited.

    The rest of a body that is too large is read too, within limits: most clients look at an answer after that alone.
    """
    deadline = time.monotonic() + limits.seconds_body
    n_bytes, is_whole = 0, False

    async def part() -> Message:
        nonlocal n_bytes, is_whole
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise ApiError(408, f"the body did not come within {limits.seconds_body:g} s") from None
        n_bytes += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        return message

    async def limited() -> Message:
        if is_whole:
            return await receive()
        message = await part()
        if n_bytes <= limits.max_body:
            return message
        while not is_whole and n_bytes <= MOST_READ * limits.max_body:
            await part()
        raise ApiError(413, f"the body has more than {limits.max_body} bytes")

    return limited
