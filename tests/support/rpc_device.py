"""A second device on any machine: llama.cpp's RPC server on loopback, which computes on the CPU.

To the scheduler it is what a GPU is: memory of its own, which the host reads and writes by copies. With
FFNSKIP_TEST_RPC=.../libggml-rpc.so of the llama.cpp under test, conftest.py starts one for a session and takes in
tests/offload; FFNSKIP_TEST_NGL says how many layers of all other comparisons are on it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp

_device = 0  # its address


def ggml(library: str) -> ctypes.CDLL:
    """One that llama_cpp has loaded."""
    return ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / library))


def serve(rpc_library: str) -> str:
    """Starts a server, which ends with this process. Returns HOST:PORT."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, __file__, rpc_library, endpoint], stdout=subprocess.DEVNULL)
    atexit.register(server.kill)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            if server.poll() is not None:
                raise RuntimeError(f"{rpc_library}: the server ended with status {server.returncode}") from None
            time.sleep(0.05)
    return endpoint


def start(rpc_library: str) -> None:
    """Starts a server, and registers its device: llama.cpp takes it as it takes a GPU."""
    global _device
    endpoint = serve(rpc_library)
    library = ctypes.CDLL(rpc_library)
    library.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    registry = ctypes.c_void_p(library.ggml_backend_rpc_add_server(endpoint.encode()))
    ggml("libggml.so.0").ggml_backend_register(registry)
    assert llama_cpp.llama_supports_gpu_offload(), "the device was registered with another libggml"
    device = ggml("libggml-base.so.0").ggml_backend_reg_dev_get
    device.restype = ctypes.c_void_p
    _device = device(registry, ctypes.c_size_t(0))


@contextlib.contextmanager
def taking_large_batches() -> Iterator[None]:
    """As GPUs do, the device has the matrices of the CPU brought to it where 32 rows or more are computed.

    This is written over what ggml has in its place, in a structure that is none of its interface.
    """
    op_name = ggml("libggml-base.so.0").ggml_op_name
    op_name.restype = ctypes.c_char_p

    def offloads(_device: int, node: int) -> bool:
        ne = (ctypes.c_int64 * 4).from_address(node + 16)  # behind a tensor's type and buffer
        op = ctypes.c_int32.from_address(node + 80)
        return max(ne[1], ne[2]) >= 32 and op_name(op) != b"GET_ROWS"

    function = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p)(offloads)
    offload_op = ctypes.c_void_p.from_address(_device + 11 * ctypes.sizeof(ctypes.c_void_p))
    assert offload_op.value is None, "ggml_backend_device_i is another one"
    offload_op.value = ctypes.cast(function, ctypes.c_void_p).value
    try:
        yield
    finally:
        offload_op.value = None


def _serve(rpc_library: str, endpoint: str) -> None:
    cpu = ggml("libggml.so.0").ggml_backend_dev_by_name
    cpu.restype = ctypes.c_void_p
    one = ctypes.c_size_t(1)  # thread, and device
    devices = (ctypes.c_void_p * 1)(cpu(b"CPU"))
    ctypes.CDLL(rpc_library).ggml_backend_rpc_start_server(endpoint.encode(), None, one, one, devices)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
