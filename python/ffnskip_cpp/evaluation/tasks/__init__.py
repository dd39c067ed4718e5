"""The tasks, one file each."""

from __future__ import annotations

from typing import Any

from .base import Task
from .choice import Choice
from .factoid import Factoid

__all__ = ["TASKS"]

TASKS: dict[str, Task[Any]] = {task.name: task for task in (Factoid(), Choice())}
"""By name."""
