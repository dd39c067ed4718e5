"""What `ffnskip try` is made of: `texts` to measure on, `subjects` that are tried, of them those that a `search` finds
and `smaller` quantisations to compare with, `quality` and `speed` of all; `work`, which does it in a given time, along
its `course`; and `trial`, the result, with its `rows`, its `verdict` and the page to read (`report`)."""

from __future__ import annotations

from .trial import Trial
from .work import TrialInterrupted, try_model

__all__ = ["Trial", "TrialInterrupted", "try_model"]
