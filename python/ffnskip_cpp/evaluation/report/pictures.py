"""Pictures of a report: a metric against something else, a line for each method, in one panel or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ... import style
from ..methods import DENSE
from ..tasks.base import Metric
from .results import Line, Result
from .tables import Cell, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Drawn", "Panel", "drawn", "picture"]

METHOD_STYLE = {
    "ffn_skip": (style.BLUE, "o"),
    "random": (style.VERMILION, "^"),
    "random_adaptive_region": (style.ORANGE, "s"),
    "short_gpt": (style.PURPLE, "v"),
    "skip_decode": (style.SKY, "P"),
    "channels": (style.GREEN, "D"),
    "calibrated": ("black", "*"),
    "file": (style.GREY, "X"),
}
SINGLE = ("calibrated", "file")  # points without a line
LINE_STYLES = ("-", "--", ":", "-.")  # of lines of one method, in turn
PANEL_WIDTH, PANEL_HEIGHT = 3.2, 2.7  # inches
LEGEND_COLUMNS = 4


@dataclass(frozen=True)
class Drawn:
    """A line of a picture."""

    method: str
    label: str
    results: Sequence[Result]


@dataclass(frozen=True)
class Panel:
    title: str
    metric: Metric
    lines: Sequence[Drawn]
    dense: Result | None
    group: str | None = None


def drawn(lines: Sequence[Line]) -> list[Drawn]:
    """Without the dense model's, which panels have by themselves."""
    return [Drawn(line.method, line.label, list(line.results.values())) for line in lines if line.method != DENSE]


def picture(
    title: str,
    panels: Sequence[Panel],
    x_label: str,
    x_of: Callable[[Result], float | None],
    *,
    dense_x: float | None,
    columns: int = 3,
) -> Figure:
    """
    Args:
        x_of: Where a result stands; None: nowhere.
        dense_x: Where lines begin, with the dense model; None: they do not.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with style.drawing(PANEL_WIDTH * columns + 0.3, PANEL_HEIGHT * rows + 0.6, rows, columns) as (figure, axes):
        flat = list(axes.flat)
        for ax, panel in zip(flat, panels):
            _draw(ax, panel, x_of, dense_x)
            ax.set_xlabel(x_label)
        for ax in flat[len(panels) :]:
            ax.set_visible(False)
        handles = {label: handle for ax in flat for handle, label in zip(*ax.get_legend_handles_labels())}
        figure.legend(
            handles.values(), handles, loc="outside lower left", ncols=min(len(handles), LEGEND_COLUMNS), frameon=False
        )
        style.add_title(figure, title)
    return figure


def _draw(ax: Axes, panel: Panel, x_of: Callable[[Result], float | None], dense_x: float | None) -> None:
    dense = _cell(panel.dense, panel) if panel.dense is not None else None
    if dense is not None:
        ax.axhline(dense.value, color=style.GREY, linewidth=0.8)
        ax.axhspan(dense.low, dense.high, color=style.GREY, alpha=0.15, linewidth=0, label="dense, 95 %")
    drawn_of: dict[str, int] = {}
    for line in panel.lines:
        nth = drawn_of[line.method] = drawn_of.get(line.method, -1) + 1
        start = [] if dense is None or dense_x is None else [(dense_x, dense.value)]
        _draw_line(ax, panel, line, LINE_STYLES[nth % len(LINE_STYLES)], start, x_of)
    ax.set_title(panel.title)
    ax.set_ylabel(heading(panel.metric))


def _draw_line(
    ax: Axes,
    panel: Panel,
    line: Drawn,
    line_style: str,
    start: list[tuple[float, float]],
    x_of: Callable[[Result], float | None],
) -> None:
    """From the dense model's point to those measured, with their intervals; hollow where nothing could skip."""
    points = [
        (x, cell) for result in line.results if (x := x_of(result)) is not None and (cell := _cell(result, panel))
    ]
    if not points:
        return
    points.sort(key=lambda point: point[0])
    kind = line.method.partition(":")[0]
    color, marker = METHOD_STYLE.get(kind, ("black", "."))
    values = [cell.value for _, cell in points]
    errors = [
        [max(0.0, cell.value - cell.low) for _, cell in points],
        [max(0.0, cell.high - cell.value) for _, cell in points],
    ]
    ax.errorbar(
        [x for x, _ in points],
        values,
        yerr=errors,
        color=color,
        marker=marker,
        markersize=4.5,
        markerfacecolor="white" if all(cell.is_dense for _, cell in points) else color,
        linestyle="none" if kind in SINGLE else line_style,
        linewidth=1.1,
        elinewidth=0.7,
        label=line.label,
    )
    if start and kind not in SINGLE:
        ax.plot(*zip(*start, (points[0][0], values[0])), color=color, linestyle=line_style, linewidth=1.1)


def _cell(result: Result, panel: Panel) -> Cell | None:
    figure = result.figure(panel.metric, panel.group)
    return None if figure is None else Cell.of(figure, panel.metric, is_dense=result.is_dense)
