"""Model files, written once per session."""

from __future__ import annotations

import os

# Threads that wait for each other sleep instead of spinning: on a busy machine with as many threads as cores, tests
# take minutes otherwise. Read by the OpenMP runtime when libggml is loaded, so before the first import of it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ffnskip_cpp
import running
import tiny_models

WRITERS = {
    **tiny_models.SKIPPABLE,
    "gptneox_sequential": lambda path, **options: tiny_models.write_gptneox(path, parallel=False, **options),
    "llama_q8_0": lambda path, **options: tiny_models.write_llama(path, qtype=tiny_models.Q8_0, **options),
    "bert": tiny_models.write_bert,
    "mamba": tiny_models.write_mamba,
}


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """model_file(kind, **options): path of the model of this kind; "demo" is the model that comes with the package."""
    folder = tmp_path_factory.mktemp("models")
    written: dict[tuple[Any, ...], Path] = {}

    def write(kind: str, **options: Any) -> Path:
        key = (kind, *sorted(options.items()))
        if key not in written:
            written[key] = WRITERS[kind](folder / f"{len(written)}-{kind}.gguf", **options)
        return written[key]

    def demo(zero_ffn_layers: tuple[int, ...] = (), float32: bool = False) -> Path:
        try:
            path = Path(ffnskip_cpp.demo_model())
        except FileNotFoundError as error:
            pytest.skip(str(error))
        key = ("demo", zero_ffn_layers, float32)
        if zero_ffn_layers and key not in written:
            written[key] = running.without_ffn(path, zero_ffn_layers, folder / f"{len(written)}-demo.gguf")
        if float32 and key not in written:
            written[key] = running.in_float32(path, folder / f"{len(written)}-demo.gguf")
        return written.get(key, path)

    return lambda kind, **options: demo(**options) if kind == "demo" else write(kind, **options)
