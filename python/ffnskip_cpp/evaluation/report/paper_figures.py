"""The paper's Figures 3, 4 and 5, as tables and pictures. It prints no numbers with its own."""

from __future__ import annotations

from collections.abc import Sequence

from ..methods import DENSE
from ..tasks.base import Metric
from . import paper
from .comparison import cells
from .pictures import Drawn, Panel, drawn, picture
from .results import ModelResults, Result, Sheet, judge_metric
from .sections import Section, absent, eval_command, unmeasured
from .tables import METHOD, Column, Table, Value, heading

__all__ = ["figure_3", "figure_4", "figure_5"]

METHODS = (DENSE, "random", "random_adaptive_region", "ffn_skip")
RATIOS = (0.05, 0.15, 0.25, 0.35)
"""Of the paper's comparison with its baselines, Table 3; the ticks of its figures are not printed."""
WARM_UPS = (0, 10, 20, 30, 40)
GROUP_ORDER = ("small", "medium", "large")


def figure_3(model: ModelResults) -> list[Section]:
    """Summaries by length: a row of panels for each length, one for each criterion."""
    title = "Figure 3: summaries by length"
    found = [_by_length(model, sheet, title) for sheet in model.of("summarize")]
    return found or [absent("figure3", title, eval_command(model, "summarize", METHODS, RATIOS))]


def _by_length(model: ModelResults, sheet: Sheet, title: str) -> Section:
    metrics = _criteria(sheet)
    wanted = [(metric, group) for group in _groups(sheet) for metric in metrics]
    columns = len(metrics) if len(metrics) > 1 else len(GROUP_ORDER)
    return _by_group(model, sheet, "figure3", title, wanted, columns)


def figure_4(model: ModelResults) -> list[Section]:
    """Conversation by category."""
    title = "Figure 4: conversation by category"
    found = [_by_category(model, sheet, title) for sheet in model.of("chat")]
    return found or [absent("figure4", title, eval_command(model, "chat", METHODS, RATIOS))]


def _by_category(model: ModelResults, sheet: Sheet, title: str) -> Section:
    wanted = [(metric, group) for metric in sheet.main_metrics for group in _groups(sheet)]
    return _by_group(model, sheet, "figure4", title, wanted, 4)


def _groups(sheet: Sheet) -> list[str]:
    return sorted(sheet.groups, key=lambda g: (GROUP_ORDER.index(g) if g in GROUP_ORDER else len(GROUP_ORDER), g))


def _criteria(sheet: Sheet) -> list[Metric]:
    """Each that a judge went by, and the task's own metric."""
    names = {result.run.name for result in sheet.results}
    judged = [
        judge_metric(judgement, criterion)
        for judgement in sheet.judgements
        for criterion in dict.fromkeys(name for run in judgement.runs if run.run in names for name in run.scores)
    ]
    return [*judged, sheet.metrics[0]]


def _by_group(
    model: ModelResults, sheet: Sheet, name: str, title: str, wanted: Sequence[tuple[Metric, str]], n_columns: int
) -> Section:
    """A column, and a panel, for each metric and group."""
    results = [result for line in sheet.lines for result in line.results.values()]
    rows: list[dict[str, Value]] = [{"method": result.label, "skipped": _skipped(result)} for result in results]
    columns = [METHOD, Column("skipped", "skipped (%)", 1)]
    for metric, group in wanted:
        columns.append(Column(f"{group} {metric.name}", f"{group}: {heading(metric)}"))
    for metric in dict.fromkeys(metric for metric, _ in wanted):
        groups = [group for other, group in wanted if other == metric]
        found = iter(cells(metric, [(result, group) for group in groups for result in results]))
        for group in groups:
            for row in rows:
                row[f"{group} {metric.name}"] = next(found)
    lines = drawn(sheet.lines)
    panels = [Panel(group, metric, lines, sheet.dense, group) for metric, group in wanted]
    return Section(
        f"{name}-{sheet.name}",
        f"{title}: {sheet.title}",
        paper.FIGURES_NOTE,
        Table(columns, rows),
        lambda: picture(
            f"{model.model}: {sheet.title}",
            panels,
            "skipped (%)",
            lambda result: None if result.is_file else 100 * result.run.skip_ratio,
            dense_x=0.0,
            columns=n_columns,
        ),
        unmeasured(model, sheet, METHODS, _ratios(sheet)),
    )


def _ratios(sheet: Sheet) -> Sequence[float]:
    """Those that are measured: at each of them all methods are wanted."""
    found = {result.run.skip_ratio_target for result in sheet.results if result.run.method in METHODS}
    return sorted(ratio for ratio in found if ratio is not None) or RATIOS


def _skipped(result: Result) -> float | None:
    return None if result.run.config is None else 100 * result.run.skip_ratio


# ---- Figure 5 ----


def figure_5(model: ModelResults) -> list[Section]:
    """Runs that differ in their warm-up alone."""
    ablated = [(sheet, lines) for sheet in model.sheets if (lines := _ablated(sheet))]
    title = "Figure 5: warm-up"
    if not ablated:
        command = eval_command(model, "summarize", ["ffn_skip"], [0.25], options=["--warm-up", "N"])
        return [absent("figure5", title, command, f", once for each N of {', '.join(map(str, WARM_UPS))}")]
    return [_warm_up(model, sheet, lines, title) for sheet, lines in ablated]


def _ablated(sheet: Sheet) -> list[Drawn]:
    found: dict[tuple[object, ...], list[Result]] = {}
    for result in sheet.results:
        if result.warm_up is not None and result.run.method != DENSE:
            skip_prompts = result.run.settings.get("skip_prompts")
            found.setdefault((result.run.method, result.run.label, skip_prompts), []).append(result)
    return [
        Drawn(str(method), f"{label}{'' if n is None else f', skip-prompts {n}'}", results)
        for (method, label, n), results in found.items()
        if len({result.warm_up for result in results}) > 1
    ]


def _warm_up(model: ModelResults, sheet: Sheet, lines: Sequence[Drawn], title: str) -> Section:
    flat = [(line, result) for line in lines for result in line.results]
    rows: list[dict[str, Value]] = [
        {"method": line.label, "warm_up": result.warm_up, "skipped": _skipped(result)} for line, result in flat
    ]
    columns = [METHOD, Column("warm_up", "warm-up"), Column("skipped", "skipped (%)", 1)]
    for metric in sheet.main_metrics:
        columns.append(Column(metric.name, heading(metric)))
        for row, cell in zip(rows, cells(metric, [(result, None) for _, result in flat])):
            row[metric.name] = cell
    panels = [Panel(sheet.title, metric, lines, sheet.dense) for metric in sheet.main_metrics]
    return Section(
        f"figure5-{sheet.name}",
        f"{title}: {sheet.title}",
        f"Warm-up: generated tokens that run in full first. {paper.FIGURES_NOTE}",
        Table(columns, rows),
        lambda: picture(
            f"{model.model}: {sheet.title}", panels, "warm-up (tokens)", lambda result: result.warm_up, dense_x=None
        ),
    )
