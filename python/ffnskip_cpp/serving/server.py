"""`create_app` on a port, until a signal ends it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from .engine import Engine

__all__ = ["bind", "serve", "url_of"]

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


def serve(app: ASGIApp, engine: Engine, bound: socket.socket, *, grace: float, ready: Callable[[], None]) -> None:
    """Serves until SIGINT or SIGTERM: then no more requests are taken, and what is being answered has `grace` seconds
    to end. A second Ctrl-C leaves these out. The signal is raised once more when all is done."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(grace) + LAST_WORDS,
        lifespan="off",
        ws="none",
    )
    _Server(config, engine, grace, ready).run(sockets=[bound])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, engine: Engine, grace: float, ready: Callable[[], None]):
        super().__init__(config)
        self._engine = engine
        self._grace = grace
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        closing = loop.run_in_executor(None, self._engine.close, self._grace)
        await super().shutdown(sockets)
        if self.force_exit:
            await loop.run_in_executor(None, self._engine.close)
        await closing
