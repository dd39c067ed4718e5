"""Devices on other machines: llama.cpp's RPC servers."""

from __future__ import annotations

from collections.abc import Sequence

from . import _core

__all__ = ["add_rpc_servers"]


def add_rpc_servers(endpoints: str | Sequence[str]) -> None:
    """Devices of RPC servers become devices of this process: models that are loaded from then on put their layers there
    as they put them on GPUs (`n_gpu_layers`). There is no way to take them back; adding one again does nothing.

    Args:
        endpoints: "HOST:PORT,HOST:PORT", or a list of "HOST:PORT".
    Raises:
        ValueError: An endpoint is not of that form.
        RuntimeError: No server answers at one of them.
        UnsupportedModelError: The llama.cpp that llama_cpp has was built without RPC.
    """
    _core.add_rpc_servers(endpoints.split(",") if isinstance(endpoints, str) else list(endpoints))
