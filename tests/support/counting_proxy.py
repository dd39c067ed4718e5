"""What a client and a server send each other, counted: the client connects to `endpoint`, which passes all of it on."""

from __future__ import annotations

import contextlib
import socket
import threading

__all__ = ["CountingProxy"]


class CountingProxy:
    def __init__(self, server: str):
        host, port = server.split(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        """Bytes from client to server."""
        self.received = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(self._server)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, to, count in ((client, server, "sent"), (server, client, "received")):
                threading.Thread(target=self._pass_on, args=(source, to, count), daemon=True).start()

    def _pass_on(self, source: socket.socket, to: socket.socket, count: str) -> None:
        with source, contextlib.suppress(OSError):  # one of the two is gone
            while data := source.recv(2**20):
                setattr(self, count, getattr(self, count) + len(data))
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
