"""The page that an evaluation prints: a table for all of its runs, and what is to be said about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..table import markdown
from .items import SPEED
from .methods import DENSE
from .runs import Figure, Run
from .statistics import Paired
from .tasks import TASKS
from .tasks.base import Metric

__all__ = ["page"]

SPEED_UP = Metric("speed_up", "speed_up")
NAMES = ("task", "data", "method", "metric", "value", "95 %", "to dense", "95 % ", "p", "not read", "could skip")
LEFT = ("task", "data", "method", "metric")
NOTES = f"""\
95 %: bootstrap intervals over items, of {SPEED} the quartiles over tokens. to dense: on the same items, and p of the
paired test, not corrected for how many there are. not read: of the rows that count as generated, the share of the FFN
blocks; where attention or channels are left out, of weight bytes. could skip: of the scored tokens, the share that
comes from a row that may."""
CAN_NOT_SKIP = "nothing of what is scored could skip: use --skip-prompts N, or where answers are longer --warm-up N"


def page(runs: Sequence[Run], differences: Mapping[str, Paired]) -> str:
    """In Markdown."""
    rows = [_row(run, differences.get(run.name)) for run in runs]
    dense = [f"{run.name}: {CAN_NOT_SKIP}" for run in runs if run.config is not None and run.could_skip == 0]
    return "\n\n".join([markdown(NAMES, rows, left=LEFT), NOTES, *(["\n".join(dense)] if dense else [])])


def _row(run: Run, difference: Paired | None) -> tuple[str, ...]:
    metric = SPEED_UP if run.task == SPEED else TASKS[run.task].metrics[0]
    figure = run.metrics.get(metric.name, Figure(math.nan, math.nan, math.nan, 0))
    seen = ("", "", "")
    if difference is not None:
        d = difference
        seen = (_number(d.difference, metric, "+"), _range(d.low, d.high, metric, "+"), f"{d.p:.2g}")
    return (
        run.task,
        run.data,
        run.label,
        metric.name,
        _number(figure.value, metric),
        _range(figure.low, figure.high, metric),
        *seen,
        f"{run.skip_ratio:.1%}" if run.config is not None else "",
        f"{run.could_skip:.0%}" if run.method != DENSE and run.config is not None else "",
    )


def _range(low: float, high: float, metric: Metric, sign: str = "") -> str:
    return f"{_number(low, metric, sign)} to {_number(high, metric, sign)}"


def _number(value: float, metric: Metric, sign: str = "") -> str:
    if math.isnan(value):
        return ""
    return f"{100 * value:{sign}.1f} %" if metric.percent else f"{value:{sign}.4g}"
