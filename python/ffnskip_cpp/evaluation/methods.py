"""What is compared: ways to skip, at a ratio each, profiles, and other files of the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..skip_config import SkipConfig

__all__ = ["Method"]


@dataclass(frozen=True)
class Method:
    """One of them, as it is run."""

    name: str
    """"dense", "ffn_skip", "calibrated:NAME" of a profile, "file:NAME" of another model file."""
    label: str
    """For tables: "ffn_skip 25 %"."""
    ratio: float | None
    """That was asked for; None where there is none to ask for."""
    skip: SkipConfig | Path | None
    """None: nothing is skipped. A path: a skip profile."""
    model: Path | None = None
    """Another file than the user's."""
