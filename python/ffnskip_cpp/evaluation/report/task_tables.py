"""All figures of every sheet: what the task measures, signs of collapse, subjects, and what judges said."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..judge.verdicts import JudgedRun, Judgement
from ..runs import Figure
from ..tasks.base import Metric
from ..tasks.generated import COLLAPSE
from .comparison import cells
from .results import AGREEMENT, ModelResults, Result, Sheet, judge_metric
from .sections import Section
from .tables import METHOD, SIZE, Cell, Column, Table, Value, heading

__all__ = ["collapse", "every_figure", "judged", "subjects"]

SHARE = Metric("share", "share", percent=True)
COLLAPSE_READING = """\
In tokens of the model: 4-grams that were there before, different tokens and pairs, the longest stretch of one phrase
over and over; bytes over those that zlib makes of them; answers that had all the tokens they may have. Next to the
dense model's texts: the share of tokens before the first that differs, texts that are the same, and how many tokens
stand before the first that differs."""
MADE_ANEW = "Judged before it, or what it is compared with, was made anew"
OF_COLLAPSE = frozenset(metric.name for metric in COLLAPSE)


def every_figure(model: ModelResults) -> list[Section]:
    """The task's own, of every run."""
    return [
        Section(
            sheet.name,
            f"All figures: {sheet.title}",
            "Could skip: of the tokens that figures hang on, those from a row that may skip. To dense: the difference "
            "in the first figure, on the same items, and p of the paired test, with Holm's correction for all "
            "tests of the column.",
            _with_difference(sheet, [metric for metric in sheet.metrics if metric.name not in OF_COLLAPSE]),
        )
        for sheet in model.sheets
        if any(metric.name not in OF_COLLAPSE for metric in sheet.metrics)
    ]


def _with_difference(sheet: Sheet, metrics: Sequence[Metric]) -> Table:
    columns, rows = _with_metrics(sheet.results, metrics)
    columns[1:1] = [
        Column("items", "items"),
        Column("skipped", "skipped (%)", 1),
        Column("could_skip", "could skip (%)", 1),
        SIZE,
    ]
    columns += [Column("difference", f"{metrics[0].name} to dense"), Column("p", "p", 4)]
    for row, result in zip(rows, sheet.results):
        run, first = result.run, row[metrics[0].name]
        row["items"] = len(result.records)
        row["size"] = None if run.size_ratio == 1 else run.size_ratio
        if run.config is not None:
            row["skipped"], row["could_skip"] = 100 * run.skip_ratio, 100 * run.could_skip
        test = result.against_dense(metrics[0])
        if test is not None and isinstance(first, Cell):
            figure = Figure(test.difference, test.low, test.high, test.n)
            row["difference"], row["p"] = Cell.of(figure, metrics[0]), first.p
    return Table(columns, rows)


def _with_metrics(results: Sequence[Result], metrics: Sequence[Metric]) -> tuple[list[Column], list[dict[str, Value]]]:
    rows: list[dict[str, Value]] = [{"method": result.label} for result in results]
    for metric in metrics:
        for row, cell in zip(rows, cells(metric, [(result, None) for result in results])):
            row[metric.name] = cell
    return [METHOD, *(Column(metric.name, heading(metric)) for metric in metrics)], rows


def collapse(model: ModelResults) -> list[Section]:
    """Of what was generated."""
    sections = []
    for sheet in model.sheets:
        metrics = [metric for metric in sheet.metrics if metric.name in OF_COLLAPSE]
        if metrics:
            columns, rows = _with_metrics(sheet.results, [*metrics, *AGREEMENT])
            sections.append(
                Section(
                    f"collapse-{sheet.name}",
                    f"Collapse: {sheet.title}",
                    COLLAPSE_READING,
                    Table(columns, rows),
                )
            )
    return sections


def subjects(model: ModelResults) -> list[Section]:
    """Of MMLU: for each subject the right answers."""
    sections = []
    for sheet in model.of("mmlu"):
        names = sorted({str(record.shown["subject"]) for result in sheet.results for record in result.records})
        by_subject = [_by_subject(result) for result in sheet.results]
        metric = sheet.metrics[0]
        rows: list[dict[str, Value]] = [{"subject": name} for name in names]
        columns = [Column("subject", "Subject", is_text=True)]
        for result, split in zip(sheet.results, by_subject):
            columns.append(Column(result.label, result.label))
            for row, cell in zip(rows, cells(metric, [(split, name) for name in names])):
                row[result.label] = cell
        sections.append(
            Section(
                f"subjects-{sheet.name}",
                f"By subject: {sheet.title}",
                f"{heading(metric)}. Of few items each: see the intervals.",
                Table(columns, rows),
            )
        )
    return sections


def _by_subject(result: Result) -> Result:
    """The same, its records in groups by subject."""
    records = [dataclasses.replace(record, group=str(record.shown["subject"])) for record in result.records]
    return Result(dataclasses.replace(result.run, groups={}), records, result.dense and _by_subject(result.dense))


def judged(model: ModelResults) -> list[Section]:
    """What each judge said of each sheet."""
    return [_judged(sheet, judgement) for sheet in model.sheets for judgement in sheet.judgements]


def _judged(sheet: Sheet, judgement: Judgement) -> Section:
    of_run = {run.run: run for run in judgement.runs if run.items_sha256}
    made_anew = {run.run for run in judgement.runs} - set(of_run)
    results = [result for result in sheet.results if result.run.name in of_run]
    left_out = ", ".join(result.label for result in sheet.results if result.run.name in made_anew)
    note = f"\n\n{MADE_ANEW}: {left_out}; `ffnskip judge` grades it again."
    criteria = list(dict.fromkeys(name for result in results for name in of_run[result.run.name].scores))
    columns, rows = _with_metrics(results, [judge_metric(judgement, criterion) for criterion in criteria])
    for result, row in zip(results, rows):
        row.update(_rates(of_run[result.run.name]))
    columns += [Column(name, name, optional=True) for name in ("win", "tie", "lose", "orders disagree")]
    columns += [Column(name, name, optional=name == "no reference") for name in ("invalid", "failed", "no reference")]
    against = f" against {judgement.against}" if judgement.against is not None else ""
    return Section(
        f"judge-{judgement.name}-{sheet.name}",
        f"Judged by {judgement.judge}: {sheet.title}",
        f"{judgement.name}: grades from 1 to 10, {judgement.mode}{against}. Win, tie, lose (%): of comparisons in both "
        "orders. Invalid and failed: items that don't count because a reply was none that was asked for, or none came."
        + (note if left_out else ""),
        Table(columns, rows) if rows else None,
    )


def _rates(run: JudgedRun) -> dict[str, Value]:
    counts: dict[str, Value] = {"invalid": run.invalid, "failed": run.failed, "no reference": run.missing or None}
    rates = run.rates.get("overall")
    if rates is None:
        return counts
    of = {"win": rates.win, "tie": rates.tie, "lose": rates.lose, "orders disagree": rates.disagree}
    return {**counts, **{name: Cell.of(figure, SHARE) for name, figure in of.items()}}
