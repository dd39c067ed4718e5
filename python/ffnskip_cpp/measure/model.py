"""A model, opened to be measured."""

from __future__ import annotations

import os
from typing import Any, Union

from ..errors import UnsupportedModelError
from ..llama import Llama
from ..lora import as_adapter
from ..threads import check_threads
from .text import N_CTX

__all__ = ["check_model", "open_model"]

PathLike = Union[str, "os.PathLike[str]"]


def check_model(path: PathLike, n_threads: int | None, lora: PathLike | None = None) -> None:
    """What `open_model` would refuse without a look into the files.

    Raises:
        FileNotFoundError: The model or the adapter is missing.
        IsADirectoryError: The model is a folder.
        ValueError: So many threads can't be had, or the adapter's scale is no number.
    """
    check_threads(n_threads)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{os.fspath(path)}: is a folder, and not a model file")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file")
    if lora is not None:
        as_adapter(lora)


def open_model(
    path: PathLike,
    n_ctx: int,
    *,
    skip: str | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    lora: PathLike | None = None,
    must_skip: bool = True,
) -> Llama:
    """
    Args:
        skip: None: dense; "auto": as the model's profile says.
        n_threads: None: all processors.
        n_gpu_layers: Layers on the GPU; -1: all.
        lora: FILE or FILE:SCALE.
        must_skip: Refuse a model that can't.
    Raises:
        ValueError: The model can't be loaded or can't skip (`UnsupportedModelError`).
    """
    threads = n_threads or os.cpu_count()
    adapter: dict[str, Any] = {} if lora is None else as_adapter(lora).options()
    llm = Llama(
        os.fspath(path),
        skip=skip,
        n_ctx=n_ctx,
        n_batch=N_CTX,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=n_gpu_layers,
        verbose=False,
        **adapter,
    )
    if must_skip and llm.why_dense is not None:
        llm.close()
        raise UnsupportedModelError(llm.why_dense)
    return llm
