"""Results as they lie in folders.

for model in read_results([Path("results")]):
    for sheet in model.sheets:
        for result in sheet.results:
            print(sheet.title, result.label, result.figure(sheet.metrics[0]))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..collapse import agreement
from ..items import SPEED, sha256_of
from ..judge.verdicts import JudgedRun, Judgement, read_judgements
from ..methods import DENSE, RATIO_METHODS
from ..runs import ITEMS, OF_ITEMS, Run, dense_of, read_records, read_runs
from ..tasks import TASKS
from ..tasks.base import Record
from .results import ModelResults, Result, Sheet, judge_metric

__all__ = ["read_results"]

METHOD_ORDER = (DENSE, *RATIO_METHODS, "calibrated", "file")


def read_results(folders: Sequence[Path]) -> list[ModelResults]:
    """By model, in order of their names.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: One has no results, or a file in it is damaged.
    """
    found = [found for folder in folders for found in _read(folder)]
    models = sorted({each.run.model for each in found})
    return [_of_model(model, [each for each in found if each.run.model == model]) for model in models]


@dataclass(frozen=True)
class _Found:
    """A run as it lies in a folder."""

    folder: Path
    run: Run
    records: Sequence[Record]
    judgements: Sequence[Judgement]
    """Of this run. Their runs that were made anew since have no grades, and no `items_sha256`."""


def _read(folder: Path) -> list[_Found]:
    runs = read_runs(folder)
    if not runs:
        raise ValueError(f"{folder}: has no finished run; ffnskip eval MODEL ... -o {folder} makes some")
    for run in runs:
        if run.task not in (*TASKS, SPEED):
            raise ValueError(f"{folder / run.name}.json: task {run.task!r} is none of {', '.join((*TASKS, SPEED))}")
    judgements = [_of_these_answers(folder, judgement) for judgement in read_judgements(folder)]
    return [_judged(folder, run, read_records(folder, run), judgements) for run in runs]


def _of_these_answers(folder: Path, judgement: Judgement) -> Judgement:
    runs = [run if _is_of_these_answers(folder, run) else _without_grades(run) for run in judgement.runs]
    return dataclasses.replace(judgement, runs=tuple(runs))


def _is_of_these_answers(folder: Path, judged: JudgedRun) -> bool:
    """A run it was compared with may have been removed, as a file of answers may."""
    paths = {folder / f"{name}{ITEMS}": sha256 for name, sha256 in judged.items_sha256.items()}
    return all(sha256_of(path) == sha256 for path, sha256 in paths.items() if path.is_file())


def _without_grades(judged: JudgedRun) -> JudgedRun:
    return dataclasses.replace(
        judged, items_sha256={}, scores={}, figures={}, reference_scores={}, reference_figures={}, rates={}
    )


def _judged(folder: Path, run: Run, records: Sequence[Record], judgements: Sequence[Judgement]) -> _Found:
    of_run = [judgement for judgement in judgements if any(judged.run == run.name for judged in judgement.runs)]
    scores = {
        judge_metric(judgement, criterion).value: by_item
        for judgement in of_run
        for judged in judgement.runs
        if judged.run == run.name
        for criterion, by_item in judged.scores.items()
    }
    with_scores = [
        _with(record, {name: by_item[record.id] for name, by_item in scores.items() if record.id in by_item})
        for record in records
    ]
    return _Found(folder, run, with_scores, of_run)


def _with(record: Record, values: Mapping[str, float]) -> Record:
    return dataclasses.replace(record, values={**record.values, **values})


def _of_model(model: str, found: Sequence[_Found]) -> ModelResults:
    _check_is_one_file(model, found)
    folders: dict[str, Path] = {}
    for each in found:
        if each.run.name in folders:
            raise ValueError(
                f"{each.run.name} of {model} is in {folders[each.run.name]} and in {each.folder}; give one"
            )
        folders[each.run.name] = each.folder
    asked: dict[tuple[object, ...], list[_Found]] = {}
    for each in found:
        if each.run.task != SPEED:
            asked.setdefault((each.run.task, each.run.data, each.run.data_hash, *_settings(each.run)), []).append(each)
    runs = [each.run for each in found]
    sheets = [_sheet(same, _differing(same[0].run, runs)) for same in asked.values()]
    order = list(TASKS)
    sheets.sort(key=lambda sheet: (order.index(sheet.task), sheet.name))
    return ModelResults(model, folders, sheets, _ordered(run for run in runs if run.task == SPEED))


def _check_is_one_file(model: str, found: Sequence[_Found]) -> None:
    """Raises ValueError where runs are of different files of that name, as far as they say."""
    of_file = {sha256: each for each in found if (sha256 := each.run.settings.get("model_sha256"))}
    if len(of_file) > 1:
        (one, first), (other, second) = list(of_file.items())[:2]
        raise ValueError(
            f"{model}: {first.run.name} in {first.folder} and {second.run.name} in {second.folder} are of different "
            f"files of that name, SHA-256 {one[:8]} and {other[:8]}; each needs a folder and a report of its own, or "
            "another name"
        )


def _settings(run: Run) -> list[object]:
    return [run.settings.get(name) for name in OF_ITEMS]


def _differing(run: Run, runs: Iterable[Run]) -> dict[str, object]:
    """What is asked otherwise of other runs on the same data: settings, and the data where it has changed."""
    others = [other for other in runs if (other.task, other.data) == (run.task, run.data)]
    settings = {
        name: value
        for i, (name, value) in enumerate(zip(OF_ITEMS, _settings(run)))
        if any(_settings(other)[i] != value for other in others)
    }
    changed = any(other.data_hash != run.data_hash for other in others)
    return {**settings, **({"sha256": run.data_hash[:8]} if changed else {})}


def _sheet(found: Sequence[_Found], differing: Mapping[str, object]) -> Sheet:
    task, data = found[0].run.task, found[0].run.data
    judgements = {judgement.name: judgement for each in found for judgement in each.judgements}
    return Sheet(
        "-".join([task, data, *(f"{name}-{value}" for name, value in differing.items())]),
        ", ".join([task, data, *(f"{name.replace('_', '-')} {value}" for name, value in differing.items())]),
        task,
        TASKS[task].metrics,
        _results(found),
        list(judgements.values()),
    )


def _results(found: Sequence[_Found]) -> list[Result]:
    records = {each.run.name: each.records for each in found}
    runs = _ordered(each.run for each in found)
    dense = {run.name: Result(run, records[run.name], None) for run in runs if run.method == DENSE}
    results = []
    for run in runs:
        reference = dense_of(run, runs)
        if run.name in dense:
            results.append(dense[run.name])
        elif reference is None:
            results.append(Result(run, records[run.name], None))
        else:
            other = dense[reference.name]
            results.append(Result(run, _agreeing(records[run.name], other.records), other))
    return results


def _agreeing(records: Sequence[Record], dense: Sequence[Record]) -> list[Record]:
    tokens = {record.id: record.shown["tokens"] for record in dense if "tokens" in record.shown}
    return [
        _with(record, _agreement(tokens[record.id], record.shown["tokens"]))
        if record.id in tokens and "tokens" in record.shown
        else record
        for record in records
    ]


def _agreement(dense: Sequence[int], tokens: Sequence[int]) -> dict[str, float]:
    found = agreement(dense, tokens)
    same = found.first_difference is None
    return {
        "agreement": found.share,
        "same_text": float(same),
        "first_difference": float(len(tokens) if found.first_difference is None else found.first_difference),
    }


def _ordered(runs: Iterable[Run]) -> list[Run]:
    """Dense first, then methods as they are listed, then profiles, then other files."""

    def key(run: Run) -> tuple[object, ...]:
        kind = run.method.partition(":")[0]
        rank = METHOD_ORDER.index(kind) if kind in METHOD_ORDER else len(METHOD_ORDER)
        numbers = (run.settings.get("warm_up_index"), run.settings.get("skip_prompts"))
        return (rank, run.method, *(-1 if n is None else n for n in numbers), run.skip_ratio_target or 0, run.name)

    return sorted(runs, key=key)
