"""A model's graph, seen without computing anything."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._core import Controller

__all__ = ["probed"]


@contextlib.contextmanager
def probed(path: Path) -> Iterator[tuple[Controller, str | None]]:
    """A controller that has seen the model's graph, and why the model can't skip. The weights stay where they are, in
    the file: not repacked, not on a GPU."""
    import llama_cpp

    from ._core import Controller
    from .errors import Unsupported
    from .load_error import explained

    controller = Controller()
    refused = None
    with explained(quiet=True), contextlib.ExitStack() as stack:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, False
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise ValueError(f"Failed to load model from file: {path}")
        stack.callback(llama_cpp.llama_model_free, model)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = 32
        options.cb_eval = ctypes.cast(controller.callback, llama_cpp.ggml_backend_sched_eval_callback)
        options.cb_eval_user_data = controller.user_data
        context = llama_cpp.llama_init_from_model(model, options)
        if not context:
            raise ValueError(f"Failed to create a context for {path}")
        stack.callback(llama_cpp.llama_free, context)
        try:
            controller.probe(ctypes.cast(context, ctypes.c_void_p).value or 0)
        except Unsupported as error:
            refused = str(error)
        yield controller, refused
