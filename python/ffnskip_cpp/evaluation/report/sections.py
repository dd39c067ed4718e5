"""Parts of a report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..items import SPEED
from ..methods import DENSE
from ..runs import Run
from ..wanted import N_CTX, N_PARALLEL, SCORING
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
    ("parallel", "--parallel", N_PARALLEL),
    ("n_gpu_layers", "--n-gpu-layers", -1),
    ("skip_prompts", "--skip-prompts", None),
    ("warm_up_index", "--warm-up", WARM_UP),
)
"""Settings of runs, the options of `ffnskip eval` that make them, and what needs none."""

OF_SPEED = ("threads", "--threads", None)  # which decides there alone


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
    like: Sequence[Run] = (),
    options: Sequence[str] = (),
) -> str:
    """That measures them.

    Args:
        like: Runs, dense first, that it asks the same as, and that it goes on beside.
    """
    words = ["ffnskip", "eval", f"{model.model}.gguf", "--task", task]
    words += ["--data", "DATA"] if task != SPEED else []
    words += ["--method", ",".join(methods)]
    words += ["--skip-ratio", ",".join(f"{ratio:g}" for ratio in ratios)] if ratios else []
    words += ["--text", "TEXT"] if "short_gpt" in methods else []  # which its layers are found on
    folder = model.folders[like[0].name if like else next(iter(model.folders))]
    return shlex.join([*words, *_settings(like), *options, "-o", str(folder)])


def _settings(runs: Sequence[Run]) -> list[str]:
    """Options that they were made with: what they were asked, and how they skip where all do alike."""
    options = []
    for name, option, usual in (*USUAL, *([OF_SPEED] if any(run.task == SPEED for run in runs) else [])):
        values = {run.settings.get(name) for run in runs} - {None}
        if len(values) == 1 and values != {usual}:
            options += [option, str(*values)]
    adapters = {_adapter(run.settings.get("lora")) for run in runs}
    return [*options, "--lora", *adapters] if len(adapters) == 1 and adapters != {""} else options


def _adapter(facts: Mapping[str, Any] | None) -> str:
    """FILE or FILE:SCALE, by its name: as of the model, its folder is not known. "" where there is none."""
    if facts is None:
        return ""
    name, scale = facts["lora"], facts["lora_scale"]
    return str(name) if scale == 1 else f"{name}:{scale}"


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
        command = eval_command(model, sheet.task, methods, missing, like=[result.run for result in sheet.results])
        lines.append(f"Not measured: {', '.join(methods)}{at}: `{command}`")
    return lines


def _missing(ratios: Sequence[float], there: Sequence[float | None], tolerance: float) -> tuple[float, ...]:
    measured = [ratio for ratio in there if ratio is not None]
    return tuple(r for r in ratios if not any(round(abs(r - other), 9) <= tolerance for other in measured))
