"""Checkpoints, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """models(**options): paths of a checkpoint and its GGUF file, as `write_model` makes them."""
    harness = pytest.importorskip("support.harness")
    made: dict[Any, tuple[Path, Path]] = {}

    def make(**options: Any) -> tuple[Path, Path]:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = harness.write_model(tmp_path_factory.mktemp("checkpoint"), **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def pair(models: Callable[..., tuple[Path, Path]]) -> Callable[..., tuple[Any, Any]]:
    """pair(**options): the harness's own class and ours, on one checkpoint."""
    harness = pytest.importorskip("support.harness")
    made: dict[Any, tuple[Any, Any]] = {}

    def make(**options: Any) -> tuple[Any, Any]:
        key = tuple(sorted(options.items()))
        if key not in made:
            checkpoint, path = models(**options)
            made[key] = harness.hf(checkpoint), harness.ffnskip(path)
        return made[key]

    return make
