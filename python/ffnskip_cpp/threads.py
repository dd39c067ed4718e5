"""How many threads llama.cpp can be given."""

from __future__ import annotations

from .errors import ArgumentError

__all__ = ["MAX_THREADS", "check_threads"]

MAX_THREADS = 512  # GGML_MAX_N_THREADS; ggml does not check


def check_threads(n_threads: int | None) -> None:
    """Raises ArgumentError where they are too few or too many; None is llama.cpp's choice."""
    if n_threads is not None and not 1 <= n_threads <= MAX_THREADS:
        raise ArgumentError(f"threads: {n_threads} can't compute anything; 1 to {MAX_THREADS}")
