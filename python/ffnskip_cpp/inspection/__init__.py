"""What there is to skip in a model."""

from __future__ import annotations

from .inspection import inspect
from .report import Inspection

__all__ = ["Inspection", "inspect"]
