"""Folders of results, made up: in the form that `ffnskip eval` and `ffnskip judge` leave them in, with nothing run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ffnskip_cpp.evaluation.items import sha256_of
from ffnskip_cpp.evaluation.judge.verdicts import JudgedRun, Judgement, write_judgement
from ffnskip_cpp.evaluation.runs import Figure, Run, record_line
from ffnskip_cpp.evaluation.statistics import figures
from ffnskip_cpp.evaluation.tasks import TASKS
from ffnskip_cpp.evaluation.tasks.base import Metric, Record

MODEL = "made-up-1b.Q4_0"
WARM_UP = 30
CATEGORIES = ("coding", "extraction", "humanities", "math", "reasoning", "roleplay", "stem", "writing")
GROUPS = {
    "chat": CATEGORIES,
    "summarize": ("small", "medium", "large"),
    "mmlu": ("STEM", "Humanities", "Social Science", "Others"),
}
SUBJECTS = {"STEM": "anatomy", "Humanities": "philosophy", "Social Science": "sociology", "Others": "virology"}
WRITTEN = (
    *(("dense", None), ("ffn_skip", 0.1), ("ffn_skip", 0.2)),
    *((method, 0.2) for method in ("random", "random_adaptive_region", "short_gpt", "skip_decode", "channels")),
)
"""Methods and ratios of `write_everything`."""


class Results:
    """A folder of them."""

    def __init__(self, folder: Path, model: str = MODEL):
        self.folder, self.model = folder, model
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, task, records, method="dense", ratio=None, *, data="facts", **more):
        """A finished run on items. Returns its name.

        Args:
            records: What they came to.
            more: Fields of `Run`, and its settings.
        """
        metrics, groups = figures(TASKS[task].metrics, records)
        could_skip = sum(record.n_may_skip for record in records) / sum(record.n_scored for record in records)
        name = self._write(
            task, data, method, ratio, metrics=metrics, groups=groups, **{"could_skip": could_skip, **more}
        )
        (self.folder / f"{name}.items.jsonl").write_bytes(b"".join(map(record_line, records)))
        return name

    def add_speed(self, method="dense", ratio=None, speed_up=(1.0, 1.0, 1.0), **more):
        """
        Args:
            speed_up: Median and quartiles.
        """
        found = {"speed_up": Figure(*speed_up, 64), "tokens_per_second": Figure(*(10 * x for x in speed_up), 64)}
        return self._write("speed", "", method, ratio, metrics=found, groups={}, could_skip=1.0, **more)

    def _write(
        self, task, data, method, ratio, *, skip_ratio=None, size_ratio=1.0, could_skip, metrics, groups, **settings
    ):
        skips = not method.startswith(("dense", "file:"))
        warm_up = settings.pop("warm_up_index", WARM_UP if skips and task != "speed" else None)
        usual = {"limit": None, "seed": 0, "scoring": None, "skip_prompts": None, "max_tokens": None, "n_ctx": 4096}
        named = [
            f"{key}-{value}" for key, value in {"warm_up": warm_up, **settings}.items() if value not in (None, WARM_UP)
        ]
        ratio_named = None if ratio is None else f"{ratio:g}"
        run = Run(
            name="-".join(filter(None, [task, data, method.replace(":", "-"), ratio_named, *named])),
            task=task,
            data=data,
            data_hash="0" * 64,
            model=self.model,
            fingerprint="made-up",
            method=method,
            label=method.partition(":")[2] or method if ratio is None else f"{method} {100 * ratio:.3g} %",
            skip_ratio_target=ratio,
            config={} if skips else None,
            settings={**usual, "warm_up_index": warm_up, **settings},
            versions={"ffnskip": "0", "llama_cpp": "0"},
            metrics=metrics,
            groups=groups,
            skip_ratio=(ratio or 0.0) if skip_ratio is None else skip_ratio,
            could_skip=could_skip,
            size_ratio=size_ratio,
            seconds=1.0,
        )
        (self.folder / f"{run.name}.json").write_text(json.dumps(run.as_dict()))
        return run.name

    def judge(self, runs, *, mode="single", against=None, reference=None, rates=None):
        """
        Args:
            runs: By name of the run its task, and by criterion the scores of items.
            reference: Name of the run that they are compared with.
        """
        judgement = Judgement(
            name=f"{mode}-judge-1",
            judge="judge-1",
            answered_by=("judge-1",),
            url="http://127.0.0.1",
            mode=mode,
            against=against,
            prompts_hash="0",
            limit=None,
            replies=9,
            tokens_in=9,
            tokens_out=9,
            errors=(),
            versions={},
            runs=tuple(
                _judged(run, task, self._items_sha256(run, reference), scores, rates or {})
                for run, (task, scores) in runs.items()
            ),
        )
        (self.folder / "judge").mkdir(exist_ok=True)
        write_judgement(self.folder, judgement)

    def _items_sha256(self, *runs):
        return {run: sha256_of(self.folder / f"{run}.items.jsonl") for run in runs if run is not None}


def _judged(run, task, items_sha256, scores, rates):
    score = Metric("score", "score")
    records = {
        name: [Record(item, "", {"score": x}, 1, 1) for item, x in found.items()] for name, found in scores.items()
    }
    means = {name: figures([score], found)[0]["score"] for name, found in records.items()}
    return JudgedRun(run, task, "facts", "", "", items_sha256, 1, 2, 0, scores, means, {}, {}, rates)


def right_or_wrong(right, name="match", *, may_skip=1, group=None, **shown):
    """Records of items that are right (1) or wrong (0). Other values that the task's metrics need are left out."""
    return [
        Record(
            f"item-{i}", group[i] if group else "", {name: float(x)}, 1, may_skip, {k: v[i] for k, v in shown.items()}
        )
        for i, x in enumerate(right)
    ]


def made_up(task, n, chance, seed, *, may_skip=1):
    """Records with all that the task's metrics need, the better the larger `chance`."""
    random = np.random.default_rng(seed)
    hard = np.random.default_rng(n).random(n)  # the same items for all runs
    groups = GROUPS.get(task, ("",))
    records = []
    for i in range(n):
        group = groups[i % len(groups)]
        values = {}
        for metric in TASKS[task].metrics:
            mean = chance * (1.5 - hard[i]) if metric.higher_is_better else (1 - chance) * (0.5 + hard[i])
            is_share = metric.value in ("match", "exact_match", "acc", "acc_norm", "known", "unfinished")
            values[metric.value] = float(random.random() < mean) if is_share else float(mean * random.uniform(0.9, 1.1))
            if metric.weight is not None:
                values[metric.weight] = 1.0
        shown = {"tokens": random.integers(0, 9, 5).tolist()} if task in ("factoid", "chat", "summarize") else {}
        shown = {"subject": SUBJECTS[group]} if task == "mmlu" else shown
        records.append(Record(f"item-{i}", group, values, 4, 4 * may_skip, shown))
    return records


def write_everything(folder: Path, model: str = MODEL, n: int = 24) -> Results:
    """All tasks under all methods, judged, one with other warm-ups, and one with prompts that skip."""
    results = Results(folder, model)
    runs = {}
    seed = 0
    for task in TASKS:
        for method, ratio in WRITTEN:
            seed += 1
            chance = 0.6 - (1.2 if method.startswith("random") else 0.5) * (ratio or 0)
            may_skip = int(method != "dense" and task not in ("mmlu", "choice"))
            records = made_up(task, n, chance, seed, may_skip=may_skip)
            name = results.add(task, records, method, ratio)
            if task in ("chat", "summarize"):
                grades = {record.id: float(round(10 * chance + i % 3)) for i, record in enumerate(records)}
                criteria = ("coherence", "fluency") if task == "summarize" else ("helpfulness",)
                runs[name] = (task, {criterion: grades for criterion in ("overall", *criteria)})
        results.add(task, made_up(task, n, 0.55, seed + 1000), "calibrated:tuned", skip_ratio=0.18)
        results.add(task, made_up(task, n, 0.5, seed + 2000), "file:made-up-q3", size_ratio=0.8)
    for warm_up in (0, 10):
        records = made_up("summarize", n, 0.3 + warm_up / 100, 7 + warm_up)
        results.add("summarize", records, "ffn_skip", 0.2, warm_up_index=warm_up)
    results.add("mmlu", made_up("mmlu", n, 0.4, 5), "ffn_skip", 0.2, skip_prompts=1)
    for method, ratio in WRITTEN:
        results.add_speed(method, ratio, tuple(1 + (ratio or 0) * x for x in (0.8, 0.7, 0.9)))
    results.add_speed("file:made-up-q3", speed_up=(1.2, 1.1, 1.3), size_ratio=0.8)
    results.judge(runs)
    return results
