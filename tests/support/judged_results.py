"""Folders of results with made-up answers, as evaluations leave them."""

from __future__ import annotations

from ffnskip_cpp.evaluation.runs import Run, record_line
from ffnskip_cpp.evaluation.store import open_store
from ffnskip_cpp.evaluation.tasks.base import Record

CATEGORIES = ("writing", "coding", "math")


def write_run(folder, task, method, records, *, label=None, data="made-up", **settings):
    """`records` as they are, in the files of a run of `task`."""
    name = f"{task}-{data}-{method}".replace(":", "_")
    run = Run(
        name=name,
        task=task,
        data=data,
        data_hash="0" * 64,
        model="tiny",
        fingerprint="f",
        method=method,
        label=label or method,
        skip_ratio_target=None,
        config=None,
        settings={"limit": None, "seed": 0, **settings},
        versions={},
        metrics={},
        groups={},
        skip_ratio=0.0,
        could_skip=1.0,
        size_ratio=1.0,
        seconds=1.0,
    )
    with open_store(folder) as store:
        store.finish(run)
    (folder / f"{name}.items.jsonl").write_bytes(b"".join(map(record_line, records)))
    return name


def chat(worths, *, reference=False):
    """Dialogues; `worths`: for each, what its turns' answers are worth."""
    return [
        _record(
            str(81 + i),
            CATEGORIES[i % len(CATEGORIES)],
            question_id=81 + i,
            question=[f"Question {i} of {{braces}}?", "And then?"][: len(of_turns)],
            turns=[f"Answer to {i}, turn {turn}, worth {worth}" for turn, worth in enumerate(of_turns)],
            **({"reference": [f"right {i}", ""][: len(of_turns)]} if reference else {}),
        )
        for i, of_turns in enumerate(worths)
    ]


def summaries(worths):
    return [
        _record(
            f"story-{i}",
            ("small", "medium", "large")[i % 3],
            question=f"Summarize the given story: {i} went out.",
            reference="highlight",
            text=f"{i} left, worth {worth}",
        )
        for i, worth in enumerate(worths)
    ]


def facts(worths):
    return [
        _record(f"fact-{i}", "", question=f"who is {i}", reference=[f"name {i}", "alias"], text=f"{i}, worth {worth}")
        for i, worth in enumerate(worths)
    ]


def _record(name, group, **shown):
    return Record(name, group, {}, 10, 10, shown)
