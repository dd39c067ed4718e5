"""Model files, written once per session."""

from __future__ import annotations

import os

# Threads that wait for each other sleep instead of spinning: on a busy machine with as many threads as cores, tests
# take minutes otherwise. Read by the OpenMP runtime when libggml is loaded, so before the first import of it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ffnskip_cpp
from support import rpc_device, running, tiny_models

# A device beside the CPU, where one was asked for; without it nothing of tests/offload is collected.
RPC_LIBRARY = os.environ.get("FFNSKIP_TEST_RPC")
collect_ignore = [] if RPC_LIBRARY else ["offload"]

CLIENTS = Path(__file__).parent / "cpp" / "clients"

# Modules that train, convert, calibrate or start many programs; the rest runs with -m "not slow".
SLOW = {
    "test_algorithm1",
    "test_analyze",
    "test_architectures",
    "test_bench",
    "test_calibrate",
    "test_channels_reference",
    "test_convert",
    "test_convert_failures",
    "test_convert_families",
    "test_demo_world",
    "test_gpu_check",
    "test_harness",
    "test_harness_skipping",
    "test_main",
    "test_profile_use",
    "test_quantize",
    "test_readme",
    "test_reference",
    "test_run",
    "test_split_files",
    "test_try",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_sessionstart() -> None:
    if RPC_LIBRARY:
        rpc_device.start(RPC_LIBRARY)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--may-skip", metavar="REGEX", help="fail where a test is skipped without this reason")
    parser.addoption("--update-expected", action="store_true", help="write tests/expected/*.json in place of comparing")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where everything is installed, a file of tests must not vanish for want of an import."""
    allowed = session.config.getoption("--may-skip")
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if allowed is None or reporter is None:
        return
    for report in reporter.stats.get("skipped", []):
        if not re.search(allowed, str(report.longrepr)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            reporter.write_line(f"\nskipped, and --may-skip does not allow it: {report.longrepr}", red=True)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """model_file(kind, **options): path of the model of this kind; "demo" is the model that comes with the package,
    "demo_float32" the same weights in F32. `quantized`: by llama.cpp to a type such as "q4_k_s", but for the embeddings
    and the output matrix."""
    folder = tmp_path_factory.mktemp("models")
    written: dict[tuple[Any, ...], Path] = {}

    def write(kind: str, quantized: str | None = None, **options: Any) -> Path:
        if quantized is not None:
            source = write(kind, **options)
            return once(
                (kind, quantized, *sorted(options.items())), lambda to: running.quantized(source, to, quantized)
            )
        return once((kind, *sorted(options.items())), lambda to: tiny_models.WRITERS[kind](to, **options))

    def demo(kind: str, zero_ffn_layers: tuple[int, ...] = ()) -> Path:
        try:
            path = Path(ffnskip_cpp.demo_model())
        except FileNotFoundError as error:
            pytest.skip(str(error))
        if kind == "demo_float32":
            path = once((kind,), lambda to: running.in_float32(path, to))
        if zero_ffn_layers:
            return once((kind, zero_ffn_layers), lambda to: running.without_ffn(path, zero_ffn_layers, to))
        return path

    def once(key: tuple[Any, ...], make: Callable[[Path], Path]) -> Path:
        if key not in written:
            written[key] = make(folder / f"{len(written)}-{key[0]}.gguf")
        return written[key]

    return lambda kind, **options: demo(kind, **options) if kind.startswith("demo") else write(kind, **options)


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """client(name): a program of tests/cpp/clients, linked to libllama in the ordinary way."""
    folder = tmp_path_factory.mktemp("clients")
    built: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in built:
            built[name] = running.build_program(CLIENTS / f"{name}.cpp", folder / name)
        return built[name]

    return build


@pytest.fixture(params=[False, True], ids=["hook", "callback"])
def callback(request):
    """For `ours`: what needs no callback runs without it, and with it."""
    return request.param
