"""The weights by channel of policy "channels": where the core takes them from, and a bar while it stores them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .files import PathLike
from .progress import progress_bar

if TYPE_CHECKING:
    from tqdm import tqdm

    from ._core import Controller

__all__ = ["storing_weights"]

SOON = 1.0  # seconds without a bar


@contextlib.contextmanager
def storing_weights(
    controller: Controller, model_path: PathLike, *, n_threads: int = 0, show: bool | None = None
) -> Iterator[None]:
    """Settings that the controller is given within the block may want weights by channel, which takes a while where no
    context of the model has them yet.

    Args:
        n_threads: 0: one for each core.
        show: A progress bar on stderr; None: where that is a terminal.
    """
    with contextlib.ExitStack() as stack:
        bars: list[tqdm[Any]] = []  # none before there is something to tell

        def told(done: float) -> bool:
            if not bars:
                bars.append(
                    stack.enter_context(
                        progress_bar("storing the weights by channel", 100, unit="%", show=show, delay=SOON)
                    )
                )
            bars[0].update(round(100 * done) - bars[0].n)
            return True

        controller.set_weights_source(os.fspath(model_path), n_threads, told)
        try:
            yield
        finally:
            controller.set_weights_source(os.fspath(model_path), n_threads)
