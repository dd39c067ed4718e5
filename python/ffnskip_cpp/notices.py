"""What the user is told: in the log, or by a warning that points at a line of theirs."""

from __future__ import annotations

import logging
import sys
import warnings

import llama_cpp

__all__ = ["log", "warn"]

_ON_THE_WAY = ("ffnskip_cpp", "llama_cpp", "contextlib")

_logger = logging.getLogger("ffnskip_cpp")


def log(llm: llama_cpp.Llama, message: str) -> None:
    """A warning where the user wants to hear of what goes on, and otherwise there for who asks."""
    _logger.log(logging.WARNING if llm.verbose else logging.INFO, message)


def warn(message: str) -> None:
    """Points at the line of the user's, however many calls of this package and of llama_cpp lead here from it."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _ON_THE_WAY:
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(message, stacklevel=level)
