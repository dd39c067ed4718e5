"""The course of an evaluation: what is run, in which order, and what of it is there already."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..llama import Llama
from ..measure.model import open_model
from ..measure.text import Text
from .facts import Facts, FactsMaker
from .items import SPEED, DataSet
from .making import SettingsMaker, finds_on_text
from .methods import Asked, Method
from .runs import Run, dense_of
from .speed import measure_speeds
from .statistics import Paired, figures, paired
from .store import Store
from .subject import ModelSubject, Options
from .tasks import TASKS
from .tasks.base import Record, Settings
from .tasks.chat import write_answers
from .wanted import Wanted

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Work"]

BLOCK = 4
"""Times as many items as answers are generated at once are put to a model at a time. What they come to depends on
nothing before them, so that an interrupted run, which goes on with such a block, comes to what it would have."""

OF_SPEED = DataSet(SPEED, "", "", ())


class Work:
    """
    Args:
        llm: The user's model, dense.
        texts: To find settings on, and to measure speed on.
        opening: Options of `open_model` for other files of the model.
        bar: Gets the items.
    Raises:
        ValueError: A method does not fit the model, or runs are there with other settings. Nothing has been run then.
    """

    def __init__(
        self,
        llm: Llama,
        store: Store,
        wanted: Wanted,
        asked: Sequence[Asked],
        data_sets: Sequence[DataSet],
        texts: Sequence[Text],
        opening: Mapping[str, Any],
        bar: tqdm[Any],
    ):
        self._llm, self._store, self._wanted, self._texts = llm, store, wanted, texts
        self._opening, self._bar = opening, bar
        self._options = Options(wanted.skip_prompts, wanted.warm_up_index, wanted.n_parallel)
        self._maker = FactsMaker(llm, wanted, opening["n_gpu_layers"])
        data_sets = [*data_sets, *([OF_SPEED] if SPEED in wanted.tasks else [])]
        self._making = SettingsMaker(llm, texts, wanted.warm_up_index, wanted.seed)
        # Those that are found on text, which takes a while, last: what is wrong is refused before.
        in_order = sorted(asked, key=lambda each: finds_on_text(each, has_text=bool(texts)))
        planned = {each: self._plan(each, data_sets) for each in in_order}
        self._planned = [planned[each] for each in asked]
        bar.total = sum(
            len(data.items) - store.n_done(facts["name"], len(data.items))
            for _, runs in self._planned
            for data, facts in runs
        )

    def _plan(self, asked: Asked, data_sets: Sequence[DataSet]) -> tuple[Method, list[tuple[DataSet, Facts]]]:
        """A method, and the run of each data set."""
        self._bar.set_description_str(f"finding what {asked.label} leaves out")
        there = [self._store.facts(self._maker.name(asked, data)) for data in data_sets]
        known = self._maker.found_before(asked, [facts for facts in there if facts is not None])
        method = self._making.method(asked, known)
        runs = [(data, self._maker.of(asked, method, data)) for data in data_sets]
        for _, facts in runs:
            self._store.check(facts)
        return method, runs

    def run(self) -> list[Run]:
        """All of it, method by method, so that each model file is opened once. Data set by data set they are returned,
        dense first."""
        found: dict[str, Run] = {}
        for method, runs in self._planned:
            unfinished = []
            for data, facts in runs:
                run = self._store.finished(facts["name"])
                if run is not None:
                    found[run.name] = run
                elif data.task != SPEED:
                    unfinished.append((data, facts))
            if unfinished:
                with self._subject(method) as subject:
                    found.update((facts["name"], self._run(subject, data, facts)) for data, facts in unfinished)
        found.update((run.name, run) for run in self._speeds(found))
        return [found[facts["name"]] for of_data in zip(*(runs for _, runs in self._planned)) for _, facts in of_data]

    @contextlib.contextmanager
    def _subject(self, method: Method) -> Iterator[ModelSubject]:
        if method.model is None:
            with self._llm.skipping(method.skip):
                yield ModelSubject(self._llm, method, self._llm, self._options)
        else:
            with open_model(method.model, self._wanted.n_ctx, must_skip=False, **self._opening) as other:
                yield ModelSubject(other, method, self._llm, self._options)

    def _run(self, subject: ModelSubject, data: DataSet, facts: Facts) -> Run:
        task, settings = TASKS[data.task], Settings(self._wanted.scoring, self._wanted.max_tokens)
        size = BLOCK * self._wanted.n_parallel
        self._bar.set_description_str(f"{data.name}, {subject.method.label}")
        with self._store.journal(facts) as journal:
            for first in range(len(journal.records), len(data.items), size):
                started = time.monotonic()
                subject.begin()
                for record in task.run(subject, data.items[first : first + size], settings):
                    journal.add(record)
                    self._bar.update()
                journal.keep(time.monotonic() - started, subject.counts)
            metrics, groups = figures(task.metrics, journal.records)
            run = Run(
                **facts,
                metrics=metrics,
                groups=groups,
                skip_ratio=journal.counts.skip_ratio,
                could_skip=_could_skip(journal.records),
                size_ratio=self._maker.size_ratio(subject.method.model),
                seconds=journal.seconds,
            )
            if run.task == "chat":
                write_answers(self._store.folder, run, journal.records)
        self._store.finish(run)
        return run

    def _speeds(self, found: Mapping[str, Run]) -> Iterator[Run]:
        """Of what is not measured yet, and dense once more to compare with."""
        planned = [(method, facts) for method, runs in self._planned for data, facts in runs if data.task == SPEED]
        if all(facts["name"] in found for _, facts in planned):
            return
        missing = [planned[0], *(each for each in planned[1:] if each[1]["name"] not in found)]
        self._bar.set_description_str("speed, all in turn")
        started, wanted = time.monotonic(), self._wanted
        methods = [method for method, _ in missing]
        speeds = measure_speeds(self._llm, methods, self._texts, wanted.max_tokens, wanted.seed, self._opening)
        seconds = (time.monotonic() - started) / len(missing)
        for (method, facts), (metrics, skip_ratio) in zip(missing, speeds):
            if facts["name"] in found:
                continue
            run = Run(
                **facts,
                metrics=metrics,
                groups={},
                skip_ratio=skip_ratio,
                could_skip=float(method.skip is not None),
                size_ratio=self._maker.size_ratio(method.model),
                seconds=seconds,
            )
            self._store.finish(run)
            yield run

    def differences(self, runs: Sequence[Run]) -> dict[str, Paired]:
        """By name, of each run to the dense one, in its task's first metric; where any item counts for it."""
        found = {}
        records = {run.name: self._store.records(run) for run in runs}
        for run in runs:
            dense = dense_of(run, runs)
            if run.task == SPEED or dense is None or dense is run:
                continue
            with contextlib.suppress(ValueError):  # no item that counts
                found[run.name] = paired(TASKS[run.task].metrics[0], records[run.name], records[dense.name])
        return found


def _could_skip(records: Sequence[Record]) -> float:
    """Of the tokens scored, the share that comes from a row that may skip."""
    n_scored = sum(record.n_scored for record in records)
    return sum(record.n_may_skip for record in records) / n_scored if n_scored else 0.0
