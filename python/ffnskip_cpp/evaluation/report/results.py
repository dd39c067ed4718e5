"""Runs as a report sees them: by model, by what was asked of it, and next to the dense model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...skip_config import SkipConfig
from ..judge.verdicts import OVERALL, Judgement
from ..methods import DENSE
from ..runs import Figure, Run
from ..statistics import Paired, figures, paired
from ..tasks.base import Metric, Record

__all__ = ["AGREEMENT", "WARM_UP", "Line", "ModelResults", "Result", "Sheet", "judge_metric"]

AGREEMENT = (
    Metric("agreement", "agreement", percent=True),
    Metric("same_text", "same_text", percent=True),
    Metric("first_difference", "first_difference"),
)
"""Of a generated text with the dense model's: the share of tokens before the first that differs, whether none does, and
how many these are."""

WARM_UP = SkipConfig().warm_up_index


@dataclass(frozen=True, eq=False)
class Result:
    """A run, and the dense one that it is compared with."""

    run: Run
    records: Sequence[Record]
    """With the values of AGREEMENT and of judges."""
    dense: Result | None
    """None of a dense run, or where it was not measured."""
    _known: dict[tuple[str, str | None, str], Figure | Paired | None] = field(default_factory=dict, repr=False)

    @property
    def warm_up(self) -> int | None:
        """None where there is none."""
        found: int | None = self.run.settings.get("warm_up_index")
        return found

    @property
    def label(self) -> str:
        return self.run.full_label

    @property
    def is_dense(self) -> bool:
        """Though it is called otherwise: nothing of what was scored could skip."""
        return self.run.method != DENSE and not self.is_file and self.run.could_skip == 0

    @property
    def is_file(self) -> bool:
        return self.run.method.startswith("file:")

    def figure(self, metric: Metric, group: str | None = None) -> Figure | None:
        """Of all items, or of a group; None where there is none."""
        key = (metric.name, group, "figure")
        if key not in self._known:
            self._known[key] = self._figure(metric, group)
        return self._known[key]  # type: ignore[return-value]

    def _figure(self, metric: Metric, group: str | None) -> Figure | None:
        kept = self.run.metrics if group is None else self.run.groups.get(group, {})
        found = kept.get(metric.name) or figures([metric], self._of(group))[0].get(metric.name)
        return None if found is None or math.isnan(found.value) else found

    def against_dense(self, metric: Metric, group: str | None = None) -> Paired | None:
        """None of what is dense, or where nothing can be compared."""
        key = (metric.name, group, "paired")
        if key not in self._known:
            self._known[key] = self._paired(metric, group)
        return self._known[key]  # type: ignore[return-value]

    def _paired(self, metric: Metric, group: str | None) -> Paired | None:
        if self.dense is None or self.is_dense:
            return None
        try:
            return paired(metric, self._of(group), self.dense._of(group))
        except ValueError:  # no item that both have
            return None

    def _of(self, group: str | None) -> Sequence[Record]:
        return self.records if group is None else [record for record in self.records if record.group == group]


@dataclass(frozen=True, eq=False)
class Line:
    """Results of one method in one sheet, at one ratio or several, all else alike."""

    method: str
    label: str
    results: Mapping[float | None, Result]
    """By the ratio that was asked for; None where there is none to ask for."""

    @property
    def warms_up_otherwise(self) -> bool:
        return any(result.run.asked_warm_up not in (None, WARM_UP) for result in self.results.values())


@dataclass(frozen=True, eq=False)
class Sheet:
    """Runs that were asked the same."""

    name: str
    """Of files: "factoid-freebaseqa-eval"."""
    title: str
    task: str
    metrics: Sequence[Metric]
    """The task's; the first is the one that tables and curves are about."""
    results: Sequence[Result]
    judgements: Sequence[Judgement]
    """Of some of the runs at least."""

    @property
    def main_metrics(self) -> list[Metric]:
        """What judges gave, if any; and the task's first."""
        return [*(judge_metric(judgement) for judgement in self.judgements), self.metrics[0]]

    @property
    def dense(self) -> Result | None:
        """With the usual warm-up, which decides what is scored of a perplexity, if there are several."""
        found = [result for result in self.results if result.run.method == DENSE]
        return min(found, key=lambda result: result.warm_up not in (None, WARM_UP), default=None)

    @property
    def groups(self) -> list[str]:
        return sorted({group for result in self.results for group in result.run.groups})

    @property
    def lines(self) -> list[Line]:
        """Those with another warm-up than usual only where the usual one was not measured."""
        found = self.all_lines
        usual = {line.method for line in found if not line.warms_up_otherwise}
        return [line for line in found if not line.warms_up_otherwise or line.method not in usual]

    @property
    def all_lines(self) -> list[Line]:
        lines: dict[tuple[str, str], dict[float | None, Result]] = {}
        for result in self.results:
            lines.setdefault((result.run.method, result.run.variant), {})[result.run.skip_ratio_target] = result
        return [
            Line(method, f"{method.partition(':')[2] or method}{variant}", results)
            for (method, variant), results in lines.items()
        ]


@dataclass(frozen=True, eq=False)
class ModelResults:
    """All that was measured of a model."""

    model: str
    folders: Mapping[str, Path]
    """By name of the run, where it lies."""
    sheets: Sequence[Sheet]
    speeds: Sequence[Run]
    """Of task `speed`, dense first."""

    def of(self, task: str) -> list[Sheet]:
        return [sheet for sheet in self.sheets if sheet.task == task]


def judge_metric(judgement: Judgement, criterion: str = OVERALL) -> Metric:
    """What a judge gave, as a metric of the records."""
    name = f"{judgement.name}: {criterion}"
    return Metric(name, name)
