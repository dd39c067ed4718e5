"""From verdicts to figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..runs import Figure
from ..statistics import bootstrap
from ..tasks.base import Metric
from .asking import Verdict
from .grades import Grades
from .templates import Prompt
from .texts import Judged
from .verdicts import OVERALL, JudgedRun, Rates

__all__ = ["Graded", "judged_run"]

MEAN = Metric("mean", "sum", "n")

Outcome = tuple[bool, bool, bool, bool]
"""Of a turn: won, tied, lost, and whether its orders disagree; as in `Rates`."""


@dataclass(frozen=True)
class Graded:
    """One prompt's part in a run: an answer in one turn, in one order."""

    run: str
    item: str
    turn: int
    """From 0."""
    swapped: bool
    """In pairs: the reference's answer stood first."""
    prompt: Prompt

    def own(self, grades: Grades) -> dict[str, float]:
        """By criterion and OVERALL, the grade of the run's answer."""
        return _with_overall({name: given[1 if self.swapped else 0] for name, given in grades.items()})

    def reference(self, grades: Grades) -> dict[str, float]:
        """In pairs, that of the reference's."""
        return _with_overall({name: given[0 if self.swapped else 1] for name, given in grades.items()})


def judged_run(judged: Judged, graded: Sequence[Graded], verdicts: Mapping[Prompt, Verdict]) -> JudgedRun:
    """
    Args:
        graded: All of this run.
    """
    of_item: dict[str, list[Graded]] = defaultdict(list)
    for each in graded:
        of_item[each.item].append(each)
    failed = {item for item, parts in of_item.items() if any(verdicts[part.prompt].error for part in parts)}
    valid = {item for item, parts in of_item.items() if all(verdicts[part.prompt].grades for part in parts)}
    counted = {
        item: [(part, _grades(verdicts[part.prompt])) for part in of_item[item]] for item in of_item if item in valid
    }
    own = {item: _means(part.own(grades) for part, grades in parts) for item, parts in counted.items()}
    pairs = judged.others is not None
    others = {
        item: _means(part.reference(grades) for part, grades in parts) for item, parts in counted.items() if pairs
    }
    run = judged.run
    return JudgedRun(
        run=run.name,
        task=run.task,
        data=run.data,
        method=run.method,
        label=run.full_label,
        items_sha256=dict(judged.items_sha256),
        invalid=len(of_item) - len(valid) - len(failed),
        failed=len(failed),
        missing=judged.missing,
        scores=_by_criterion(own),
        figures=_figures(own),
        reference_scores=_by_criterion(others),
        reference_figures=_figures(others),
        rates=_rates(counted) if pairs else {},
    )


def _grades(verdict: Verdict) -> Grades:
    assert verdict.grades is not None
    return verdict.grades


def _with_overall(grades: Mapping[str, float]) -> dict[str, float]:
    return {**grades, OVERALL: sum(grades.values()) / len(grades)}


def _means(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """By criterion, over an item's turns and orders."""
    found = _collected(parts)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _collected(parts: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for part in parts:
        for name, value in part.items():
            found[name].append(value)
    return found


def _by_criterion(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    names = _names(scores.values())
    return {name: {item: of[name] for item, of in scores.items() if name in of} for name in names}


def _names(parts: Iterable[Mapping[str, object]]) -> list[str]:
    """Those of any, OVERALL last."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    return sorted(names, key=lambda name: name == OVERALL)


def _figures(scores: Mapping[str, Mapping[str, float]]) -> dict[str, Figure]:
    return {
        name: _figure([(score, 1) for score in of_items.values()]) for name, of_items in _by_criterion(scores).items()
    }


def _figure(items: Sequence[tuple[float, float]]) -> Figure:
    """
    Args:
        items: Of each, a sum and what it is divided by.
    """
    values, weights = np.array(items, np.float64).T
    low, high = bootstrap(MEAN, values, weights)
    return Figure(float(MEAN.of(values, weights)), low, high, len(items))


def _rates(counted: Mapping[str, Sequence[tuple[Graded, Grades]]]) -> dict[str, Rates]:
    """By criterion: of each item how many of its turns are won, tied, lost, and disagreed on."""
    items: dict[str, list[list[Outcome]]] = defaultdict(list)
    for parts in counted.values():
        for name, turns in _outcomes(parts).items():
            items[name].append(turns)
    return {
        name: Rates(
            *(_figure([(sum(turn[i] for turn in turns), len(turns)) for turns in items[name]]) for i in range(4))
        )
        for name in _names([items])
    }


def _outcomes(parts: Sequence[tuple[Graded, Grades]]) -> dict[str, list[Outcome]]:
    """By criterion, of each turn of an item."""
    signs: dict[int, list[dict[str, float]]] = defaultdict(list)
    for part, grades in parts:
        own, other = part.own(grades), part.reference(grades)
        signs[part.turn].append({name: np.sign(own[name] - other[name]) for name in own})
    found: dict[str, list[Outcome]] = defaultdict(list)
    for orders in signs.values():
        for name, of_orders in _collected(orders).items():
            won, lost = all(sign > 0 for sign in of_orders), all(sign < 0 for sign in of_orders)
            found[name].append((won, not won and not lost, lost, len(set(of_orders)) > 1))
    return found
