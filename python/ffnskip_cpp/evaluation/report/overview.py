"""What skipping costs against what it saves: every data set's main figure next to the share left out, and to the speed
measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Optional

from ..methods import DENSE
from ..runs import Figure, Run
from ..tasks.base import Metric
from . import paper
from .comparison import cells
from .pictures import Panel, drawn, picture
from .results import ModelResults, Result, Sheet
from .sections import Section, absent, eval_command, skipped
from .tables import METHOD, SIZE, Cell, Column, Table, Value, heading

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["quality", "speed"]

SPEED_UP = Metric("speed_up", "speed_up")
PER_SECOND = "tokens_per_second"
Row = tuple[str, Optional[float], str]  # method, ratio, label


def quality(model: ModelResults) -> list[Section]:
    """The table of everything, and the curves against the share left out."""
    if not model.sheets:
        return []
    of_row = [(sheet, _by_row(sheet)) for sheet in model.sheets]
    rows = sorted({row for _, by_row in of_row for row in by_row}, key=lambda row: _rank(row, of_row))
    values: list[dict[str, Value]] = [{"method": label} for _, _, label in rows]
    columns = [
        METHOD,
        Column("skipped", "skipped (%)"),
        SIZE,
    ]
    for sheet, by_row in of_row:
        results = [by_row.get(row) for row in rows]
        for metric in sheet.main_metrics:
            columns.append(Column(f"{sheet.name} {metric.name}", f"{sheet.title}: {heading(metric)}"))
            for value, cell in zip(values, cells(metric, [(result, None) for result in results])):
                value[columns[-1].key] = cell
    for value, row in zip(values, rows):
        measured = [by_row[row].run for _, by_row in of_row if row in by_row]
        value["skipped"] = None if measured[0].config is None else skipped([run.skip_ratio for run in measured])
        value["size"] = None if measured[0].size_ratio == 1 else measured[0].size_ratio
    return [
        Section(
            "quality",
            "Quality against what is left out",
            "The first figure of every task. Skipped: of the FFN blocks, with attention or channels of weight bytes, "
            "measured over all rows that count as generated. Pictures leave out other files of the model, which skip "
            "nothing.",
            Table(columns, values),
            lambda: _curves(model, f"{model.model}: quality against what is left out", None),
        )
    ]


def _by_row(sheet: Sheet) -> dict[Row, Result]:
    return {
        (line.method, ratio, result.label): result for line in sheet.lines for ratio, result in line.results.items()
    }


def _rank(row: Row, of_row: Sequence[tuple[Sheet, Mapping[Row, Result]]]) -> tuple[int, int]:
    """As the sheets have them: by the first that has it."""
    return next((i, list(by_row).index(row)) for i, (_, by_row) in enumerate(of_row) if row in by_row)


def speed(model: ModelResults) -> list[Section]:
    """The table of speeds, and the curves against them."""
    if all(run.method == DENSE for run in model.speeds):
        results = [result.run for sheet in model.sheets for result in sheet.results if result.run.method != DENSE]
        methods = list(dict.fromkeys(run.method for run in results if ":" not in run.method))
        ratios = sorted({run.skip_ratio_target for run in results if run.skip_ratio_target is not None})
        command = eval_command(model, "speed", methods or ["ffn_skip"], ratios, like=model.speeds)
        return [absent("speed", "Quality against speed", command)]
    rows = [_speed_row(run) for run in model.speeds]
    columns = [
        METHOD,
        Column("skipped", "skipped (%)", 1),
        SIZE,
        Column("speed_up", "speed-up"),
        Column("paper", f"paper, {paper.MODEL}", 2, optional=True),
        Column("per_second", "tokens/s", 2),
    ]
    return [
        Section(
            "speed",
            "Quality against speed",
            "Speed-up: median over tokens of dense's time over the method's, all in turn in one process, and its "
            "quartiles in place of an interval. The paper's is a ratio of its tokens per second (Table 4, RTX A6000).",
            Table(columns, rows),
            (lambda: _curves(model, f"{model.model}: quality against speed", model.speeds)) if model.sheets else None,
        )
    ]


def _speed_row(run: Run) -> dict[str, Value]:
    speed_up, per_second = run.metrics.get(SPEED_UP.name), run.metrics.get(PER_SECOND)
    printed = paper.TABLE_4.get(run.skip_ratio_target) if run.method in (DENSE, "ffn_skip") else None
    return {
        "method": run.label,
        "skipped": None if run.config is None else 100 * run.skip_ratio,
        "size": None if run.size_ratio == 1 else run.size_ratio,
        "speed_up": None if speed_up is None else Cell.of(speed_up, SPEED_UP),
        "paper": None if printed is None else printed / paper.TABLE_4[None],
        "per_second": None if per_second is None else per_second.value,
    }


def _curves(model: ModelResults, title: str, speeds: Sequence[Run] | None) -> Drawing:
    """Against the share left out; with speeds, against these."""
    panels = [
        Panel(sheet.title, metric, drawn(sheet.lines), sheet.dense)
        for sheet in model.sheets
        for metric in sheet.main_metrics
    ]
    if speeds is None:
        return picture(
            title, panels, "skipped (%)", lambda r: None if r.is_file else 100 * r.run.skip_ratio, dense_x=0.0
        )
    by_method: dict[tuple[str, float | None], Figure] = {
        (run.method, run.skip_ratio_target): run.metrics[SPEED_UP.name]
        for run in speeds
        if SPEED_UP.name in run.metrics
    }

    def x_of(result: Result) -> float | None:
        found = by_method.get((result.run.method, result.run.skip_ratio_target))
        return None if found is None else found.value

    return picture(title, panels, "speed, dense = 1", x_of, dense_x=1.0)
