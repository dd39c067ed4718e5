"""One run: a task's items of one data set, put to one model under one method; as it lies in a folder of results.

    DIR/RUN.json          what was measured, with what, and the figures
    DIR/RUN.items.jsonl   a record for each item, in the order of the run; what an interrupted run goes on from
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Figure", "Run"]


@dataclass(frozen=True)
class Figure:
    """A metric over items, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    n: int
    """Items."""


@dataclass(frozen=True)
class Run:
    """What RUN.json holds."""

    name: str
    """Of the run, and of its files: "factoid-freebaseqa-eval-ffn_skip-0.25"."""
    task: str
    data: str
    """Name of the data set: of its file, without the ending."""
    data_hash: str
    """SHA-256 of the file, or of the files of a folder in order of their names."""
    model: str
    """Name of the user's model file, without the ending; the same for all methods, other files among them."""
    fingerprint: str
    method: str
    """"dense", "ffn_skip", "calibrated:NAME", "file:NAME"."""
    label: str
    """For tables: "ffn_skip 25 %"."""
    skip_ratio_target: float | None
    config: dict[str, Any] | None
    """`SkipConfig.asdict()`, what differs from the defaults; None: nothing is skipped."""
    settings: dict[str, Any]
    """limit, seed, scoring, skip_prompts, warm_up_index, max_tokens, n_ctx, threads."""
    versions: dict[str, str]
    metrics: dict[str, Figure]
    groups: dict[str, dict[str, Figure]]
    """By group, then as `metrics`."""
    skip_ratio: float
    """Measured: of the blocks, or of channels the weight bytes, of all rows that count as generated."""
    could_skip: float
    """Of the tokens scored, the share that comes from a row that may skip. At 0 the run is of the dense model."""
    size_ratio: float
    """Of the file, over the user's: 1 but for other files."""
    seconds: float
