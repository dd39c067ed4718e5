"""A server of the demo model on loopback, at a free port, in a thread of the test's process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx

from ffnskip_cpp.serving.app import create_app
from ffnskip_cpp.serving.engine import Engine
from ffnskip_cpp.serving.guard import Limits
from ffnskip_cpp.serving.server import Server, bind, url_of

NO_END = {"1": -100, "5": -100}
"""Logit bias without the demo model's ends of a text and of a turn."""


@dataclass(frozen=True)
class ApiServer:
    url: str
    engine: Engine
    http: httpx.Client
    """Takes paths."""


@contextlib.contextmanager
def api_server(
    model: str,
    *,
    limits: Limits | None = None,
    api_key: str | None = None,
    origins: tuple[str, ...] = (),
    **options: Any,
) -> Iterator[ApiServer]:
    """`options`: of the engine; flash attention is off, as in `llama_cpp.Llama`. Yields when it answers, and ends with
    nothing left."""
    with (
        closing(bind("127.0.0.1", 0)) as bound,
        closing(Engine(model, **{"flash_attn": False, "n_threads": 1, "n_threads_batch": 1, **options})) as engine,
    ):
        app = create_app(engine, limits=limits or Limits(), api_key=api_key, origins=origins)
        is_ready = threading.Event()
        url = url_of(bound)
        server = Server(app, engine, grace=0.0, ready=is_ready.set, waits=lambda: None)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            assert is_ready.wait(20)
            with httpx.Client(base_url=url, timeout=30) as http:
                yield ApiServer(url, engine, http)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
