"""Parts of a report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..items import SPEED
from ..methods import DENSE
from ..wanted import N_CTX, SCORING
from .results import WARM_UP, ModelResults, Sheet
from .tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Section", "absent", "eval_command", "skipped", "unmeasured"]


USUAL = (
    ("limit", "--limit", None),
    ("seed", "--seed", 0),
    ("scoring", "--scoring", SCORING[0]),
    ("max_tokens", "--max-tokens", None),
    ("n_ctx", "--n-ctx", N_CTX),
    ("skip_prompts", "--skip-prompts", None),
    ("warm_up_index", "--warm-up", WARM_UP),
)
"""Settings of runs, the options of `ffnskip eval` that make them, and what needs none."""


@dataclass(frozen=True)
class Section:
    """A table, a picture, or both, with what is said about it."""

    name: str
    """Of its files."""
    title: str
    reading: str
    """How to read it; "" where there is nothing."""
    table: Table | None = None
    picture: Callable[[], Figure] | None = None
    notes: Sequence[str] = ()
    """What was not measured, and the command that does."""


def absent(name: str, title: str, command: str, how: str = "") -> Section:
    """One of which nothing was measured."""
    return Section(name, title, "", notes=[f"Not measured: `{command}`{how}"])


def skipped(ratios: Sequence[float]) -> str:
    """Shares of what was skipped, in percent: one, or from the least to the most."""
    low, high = (f"{100 * end:.1f}" for end in (min(ratios), max(ratios)))
    return low if low == high else f"{low}-{high}"


def eval_command(
    model: ModelResults,
    task: str,
    methods: Sequence[str],
    ratios: Sequence[float] = (),
    *,
    like: Sheet | None = None,
    options: Sequence[str] = (),
) -> str:
    """That measures them.

    Args:
        like: Asks the same as the runs of this sheet.
    """
    words = ["ffnskip", "eval", f"{model.model}.gguf", "--task", task]
    words += ["--data", "DATA"] if task != SPEED else []
    words += ["--method", ",".join(methods)]
    words += ["--skip-ratio", ",".join(f"{ratio:g}" for ratio in ratios)] if ratios else []
    words += ["--text", "TEXT"] if "short_gpt" in methods else []  # which its layers are found on
    words += [] if like is None else _settings(like)
    return shlex.join([*words, *options, "-o", str(model.folder)])


def _settings(sheet: Sheet) -> list[str]:
    """Options that its runs were made with: what they were asked, and how they skip where all do alike."""
    options = []
    for name, option, usual in USUAL:
        values = {result.run.settings.get(name) for result in sheet.results} - {None}
        if len(values) == 1 and values != {usual}:
            options += [option, str(*values)]
    return options


def unmeasured(
    model: ModelResults, sheet: Sheet, wanted: Sequence[str], ratios: Sequence[float], tolerance: float = 0.0
) -> list[str]:
    """A line for each command that measures what a table of `sheet` lacks.

    Args:
        wanted: Methods.
        ratios: Of those that take one.
        tolerance: How far from a ratio another may be that does as well.
    """
    lacking: dict[tuple[float, ...], list[str]] = {}
    for method in wanted:
        there = [ratio for line in sheet.lines if line.method == method for ratio in line.results]
        missing = () if method == DENSE else _missing(ratios, there, tolerance)
        if missing or not there:
            lacking.setdefault(missing, []).append(method)
    lines = []
    for missing, methods in lacking.items():
        at = f" at {', '.join(f'{100 * ratio:g}' for ratio in missing)} %" if missing else ""
        command = eval_command(model, sheet.task, methods, missing, like=sheet)
        lines.append(f"Not measured: {', '.join(methods)}{at}: `{command}`")
    return lines


def _missing(ratios: Sequence[float], there: Sequence[float | None], tolerance: float) -> tuple[float, ...]:
    measured = [ratio for ratio in there if ratio is not None]
    return tuple(r for r in ratios if not any(round(abs(r - other), 9) <= tolerance for other in measured))
