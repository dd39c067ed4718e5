"""The tasks, one file each."""

from __future__ import annotations

from typing import Any

from .base import Task
from .chat import Chat
from .choice import Choice
from .cloze import Cloze
from .demo import Demo
from .factoid import Factoid
from .mmlu import MMLU
from .perplexity import Perplexity
from .summarize import Summarize

__all__ = ["TASKS"]

TASKS: dict[str, Task[Any]] = {
    task.name: task for task in (Factoid(), Chat(), Summarize(), MMLU(), Choice(), Cloze(), Perplexity(), Demo())
}
"""By name; those of the paper first."""
