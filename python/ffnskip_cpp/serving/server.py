"""`create_app` on a port, until a signal ends it."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from .engine import Engine

__all__ = ["Server", "bind", "url_of"]

LAST_WORDS = 5  # seconds that clients have to take what was left, when all answers have ended


def bind(host: str, port: int) -> socket.socket:
    """A socket there, which does not listen yet: whether the port is free is known before a model is loaded.

    Args:
        port: 0: any that is free.
    Raises:
        OSError: It can't be bound; names the address.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"port: {port} is outside [0, 65536)")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(error.errno, error.strerror, host) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Of a server there."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serves, by `run(sockets=[...])`, until SIGINT or SIGTERM, or `should_exit`: then no more requests are taken, and
    what is being answered has `grace` seconds to end. A second Ctrl-C leaves these out. A signal is raised once more
    when all is done.

    Args:
        ready: Called when it listens.
        waits: Called when it has been told to end and answers are under way.
    """

    def __init__(
        self, app: ASGIApp, engine: Engine, *, grace: float, ready: Callable[[], None], waits: Callable[[], None]
    ):
        if not 0 <= grace < math.inf:
            raise ValueError(f"grace: {grace} is no number of seconds")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(grace) + LAST_WORDS,
            lifespan="off",
            ws="none",
        )
        super().__init__(config)
        self._engine = engine
        self._grace = grace
        self._ready = ready
        self._waits = waits

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        counts = self._engine.counts()
        if self._grace > 0 and counts.running + counts.queued > 0:
            self._waits()
        loop = asyncio.get_running_loop()
        closing = loop.run_in_executor(None, self._engine.close, self._grace)
        hurrying = asyncio.ensure_future(self._hurry())
        await super().shutdown(sockets)
        await closing
        hurrying.cancel()

    async def _hurry(self) -> None:
        """Leaves the grace out, once that is wanted."""
        while not self.force_exit:
            await asyncio.sleep(0.1)
        await asyncio.get_running_loop().run_in_executor(None, self._engine.close)
