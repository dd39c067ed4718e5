"""A trial under way: what is known so far, what time is left, and who is told what begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..llama import Llama
from ..skip_config import SkipConfig
from .rows import Row
from .trial import Trial

__all__ = ["Course", "Subject"]


@dataclass
class Subject:
    """What a row is about."""

    row: Row
    model: Llama | None = None
    """The file of a quantisation."""

    @property
    def measured(self) -> SkipConfig | Llama | None:
        return self.model or self.row.config


class Course:
    """
    Args:
        seconds: What all of it is to take.
        begins: Told what begins.
    """

    def __init__(self, seconds: float, begins: Callable[[str], Any]):
        self.begins = begins
        self.subjects: list[Subject] = []
        self._seconds = seconds
        self._start = time.monotonic()
        self._known: Trial | None = None

    def is_over(self, share: float) -> Callable[[], bool]:
        """Whether that share of the time is over."""
        return lambda: self.left(share) <= 0

    def left(self, share: float) -> float:
        """Seconds until that share of the time is over."""
        return self._start + share * self._seconds - time.monotonic()

    @property
    def has_begun(self) -> bool:
        return self._known is not None

    @property
    def trial(self) -> Trial:
        assert self._known is not None, "nothing is known before the model is loaded"
        return replace(self._known, rows=tuple(subject.row for subject in self.subjects))

    def start(self, trial: Trial) -> None:
        self._known = trial

    def change(self, **changes: Any) -> None:
        """What has become known, by fields of Trial."""
        self._known = replace(self.trial, **changes)

    def note(self, note: str) -> None:
        self.change(notes=(*self.trial.notes, note))
