"""The paper's Tables 2, 3 and 5, with its numbers beside those measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from ..methods import DENSE
from . import paper
from .comparison import cells
from .results import Line, ModelResults, Result, Sheet
from .sections import Section, absent, eval_command, skipped, unmeasured
from .tables import METHOD, Column, Table, Value, heading

__all__ = ["table_2", "table_3", "table_5"]

PAPER = f"paper, {paper.MODEL}"
NEAR = 0.05  # a ratio that still stands for that of Table 2
TASKS_OF_TABLE_2 = {"factoid": "Factoid-QA", "chat": "conversation", "summarize": "summaries"}
BY_RATIO = (
    "Columns are the ratios that were asked for; what was skipped is in the first table. As it is: what takes no ratio."
)
Ratio = Optional[float]


def named(method: str, label: str) -> str:
    """With the paper's name, where it has one."""
    return f"{label} ({paper.METHODS[method]})" if method in paper.METHODS else label


# ---- Table 2 ----


def table_2(model: ModelResults) -> list[Section]:
    """All three tasks at about a fifth."""
    methods = _of_table_2(model)
    rows: list[dict[str, Value]] = [{"method": named(method, label)} for label, method in methods.items()]
    columns, notes = [METHOD, Column("skipped", "skipped (%)")], []
    shares: list[list[float]] = [[] for _ in rows]
    for task, title in TASKS_OF_TABLE_2.items():
        for sheet in model.of(task):
            by_label = {line.label: _near(line) for line in sheet.lines}
            results = [by_label.get(label) for label in methods]
            for share, result in zip(shares, results):
                share += [result.run.skip_ratio] if result is not None and result.run.config is not None else []
            columns += _fill(rows, sheet, results)
            notes += unmeasured(model, sheet, list(paper.TABLE_2), [paper.TABLE_2_RATIO], NEAR)
        if not model.of(task):
            columns.append(Column(task, title))
            command = eval_command(model, task, list(paper.TABLE_2), [paper.TABLE_2_RATIO])
            notes.append(f"Not measured: {title}: `{command}`")
        columns.append(Column(f"{task} paper", PAPER, 2))
    for row, share, method in zip(rows, shares, methods.values()):
        row["skipped"] = skipped(share) if share else None
        row.update({f"{task} paper": number for task, number in paper.TABLE_2.get(method, {}).items()})
    reading = (
        f"At a skip ratio of about {100 * paper.TABLE_2_RATIO:.0f} %: the nearest that was asked for, within "
        f"{100 * NEAR:.0f} points. The paper's conversations and summaries were graded by GPT-4, 0 to 10."
    )
    return [Section("table2", "Table 2: three tasks at one ratio", reading, Table(columns, rows), notes=notes)]


def _of_table_2(model: ModelResults) -> dict[str, str]:
    """By label of the row its method: the paper's first, measured or not."""
    lines = [line for task in TASKS_OF_TABLE_2 for sheet in model.of(task) for line in sheet.lines]
    measured = {line.label: line.method for line in lines if _near(line) is not None}
    methods: dict[str, str] = {}
    for method in paper.TABLE_2:
        methods.update({label: method for label, other in measured.items() if other == method} or {method: method})
    return {**methods, **measured}


def _near(line: Line) -> Result | None:
    """The one at about the ratio, the smaller of two as near; of what takes none, by what it skipped. Dense and other
    files in any case."""

    def ratio(result: Result) -> float:
        asked = result.run.skip_ratio_target
        return result.run.skip_ratio if asked is None else asked

    def distance(result: Result) -> float:
        return round(abs(ratio(result) - paper.TABLE_2_RATIO), 9)

    nearest = min(line.results.values(), key=lambda result: (distance(result), ratio(result)))
    return nearest if nearest.run.config is None or distance(nearest) <= NEAR else None


def _fill(rows: Sequence[dict[str, Value]], sheet: Sheet, results: Sequence[Result | None]) -> list[Column]:
    """The columns of one sheet."""
    columns = []
    for metric in sheet.main_metrics:
        columns.append(Column(f"{sheet.name} {metric.name}", f"{sheet.title}: {heading(metric)}"))
        for row, cell in zip(rows, cells(metric, [(result, None) for result in results])):
            row[columns[-1].key] = cell
    return columns


# ---- Tables 3 and 5 ----


def table_3(model: ModelResults) -> list[Section]:
    """Factoid-QA by method and ratio, a table for each data set."""
    ratios = [ratio for ratio in paper.TABLE_3["ffn_skip"] if ratio is not None]
    title = "Table 3: Factoid-QA by ratio"
    if not model.of("factoid"):
        return [absent("table3", title, eval_command(model, "factoid", list(paper.TABLE_3), ratios))]
    sections = []
    for sheet in model.of("factoid"):
        lines = [(line, None, paper.TABLE_3.get(line.method, {})) for line in _with_all(sheet, list(paper.TABLE_3))]
        metric = sheet.metrics[0]
        table = _by_ratio(sheet, lines, [None, *ratios])
        reading = f"{heading(metric)}. The paper's data set is FreebaseQA. {BY_RATIO}"
        notes = unmeasured(model, sheet, list(paper.TABLE_3), ratios)
        sections.append(Section(f"table3-{sheet.name}", f"{title}: {sheet.title}", reading, table, notes=notes))
    return sections


def table_5(model: ModelResults) -> list[Section]:
    """MMLU by group and ratio, a table for each way it was asked."""
    ratios = [ratio for ratio in paper.TABLE_5["STEM"] if ratio is not None]
    title = "Table 5: MMLU by group"
    methods = [DENSE, "ffn_skip"]
    if not model.of("mmlu"):
        return [absent("table5", title, eval_command(model, "mmlu", methods, ratios))]
    sections = []
    for sheet in model.of("mmlu"):
        lines = [(line, group, _of_paper(line, group)) for line in _with_all(sheet, methods) for group in paper.TABLE_5]
        table = _by_ratio(sheet, lines, [None, *ratios])
        reading = f"{heading(sheet.metrics[0])}. {BY_RATIO}"
        notes = unmeasured(model, sheet, methods, ratios)
        sections.append(Section(f"table5-{sheet.name}", f"{title}: {sheet.title}", reading, table, notes=notes))
    return sections


def _of_paper(line: Line, group: str) -> dict[Ratio, float]:
    """The full model's number is dense's, the others are ffn_skip's."""
    return {
        ratio: number
        for ratio, number in paper.TABLE_5[group].items()
        if line.method == (DENSE if ratio is None else "ffn_skip")
    }


def _with_all(sheet: Sheet, methods: Sequence[str]) -> list[Line]:
    """The lines measured, and empty ones of the paper's methods that were not."""
    there = {line.method for line in sheet.lines}
    return [*sheet.lines, *(Line(method, method, {}) for method in methods if method not in there)]


def _by_ratio(sheet: Sheet, lines: Sequence[tuple[Line, str | None, dict[Ratio, float]]], ratios: list[Ratio]) -> Table:
    """A row for each line and group, a column for each ratio, the paper's numbers beside them."""
    rows: list[dict[str, Value]] = [
        {"method": named(line.method, line.label), "group": group} for line, group, _ in lines
    ]
    measured = {ratio for line, _, _ in lines for ratio in line.results}
    ratios = sorted({*ratios, *measured}, key=lambda ratio: -1.0 if ratio is None else ratio)
    columns = [METHOD, Column("group", "Group", is_text=True, optional=True)]
    wanted = [(line.results.get(ratio), group) for ratio in ratios for line, group, _ in lines]
    found = iter(cells(sheet.metrics[0], wanted))
    for ratio in ratios:
        key = "as it is" if ratio is None else f"{100 * ratio:.3g} %"
        columns += [Column(key, key), Column(f"{key} paper", PAPER, 2, optional=True)]
        for row, (_, _, printed) in zip(rows, lines):
            row[key], row[f"{key} paper"] = next(found), printed.get(ratio)
    return Table(columns, rows)
