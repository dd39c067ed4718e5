"""Progress of what takes its time: one kind of bar, on stderr, for all of the package."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Told", "nobody", "progress_bar"]

Told = Callable[[int], Any]
"""Called with how much was done, as the `update` of a bar."""


def nobody(n: int) -> None:
    """Is told, and does nothing about it."""


@contextlib.contextmanager
def progress_bar(
    description: str, total: float | None = None, *, unit: str = "", show: bool | None = None, delay: float = 0.0
) -> Iterator[tqdm[Any]]:
    """
    Args:
        total: What `update()` adds up to; None: not known yet (`bar.total` takes it later).
        unit: "B" counts bytes, with their multiples.
        show: None: where stderr is a terminal.
        delay: Seconds before it is there.
    """
    from tqdm import tqdm  # not before it is used: it takes a while to load

    with tqdm(
        total=total,
        desc=description,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=unit == "B",
        leave=False,
        delay=delay,
        disable=None if show is None else not show,
    ) as bar:
        yield bar
