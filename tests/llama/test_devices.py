"""RPC servers as devices, where there are none: what is wrong is named. With servers: tests/offload."""

from __future__ import annotations

import socket

import llama_cpp
import pytest

from ffnskip_cpp import UnsupportedModelError, add_rpc_servers, cli


@pytest.mark.parametrize(
    "endpoint", ["", "localhost", ":50052", "localhost:", "localhost:0", "localhost:65536", "a:b", "a:1,"]
)
def test_what_is_no_endpoint_is_refused(endpoint):
    with pytest.raises(ValueError, match=r"rpc: '.*' is no server; HOST:PORT is right"):
        add_rpc_servers(endpoint)


def test_no_server_at_all_needs_no_rpc():
    add_rpc_servers([])


def test_a_list_is_taken_as_it_is():
    with pytest.raises(ValueError, match="rpc: 'b' is no server"):
        add_rpc_servers(["a:1", "b"])


@pytest.fixture
def nobody():
    """An address where no server is."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{probe.getsockname()[1]}"


def test_where_there_is_no_server_or_no_rpc_it_is_said(nobody):
    expected = "no server answers at 127" if llama_cpp.llama_supports_rpc() else "built without RPC"
    with pytest.raises((RuntimeError, UnsupportedModelError), match=expected):
        add_rpc_servers(nobody)


def test_commands_take_servers_as_llama_cpps_programs_do(nobody, capsys):
    assert cli.main(["try", "no-such.gguf", "--rpc", nobody]) == 1
    assert "ffnskip try: rpc: " in capsys.readouterr().err
    assert cli.main(["bench", "no-such.gguf", "--rpc", "nobody"]) == 1
    assert capsys.readouterr().err == "ffnskip bench: rpc: 'nobody' is no server; HOST:PORT is right\n"
