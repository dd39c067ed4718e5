"""The course of a calibration: what is recorded, searched and compared, and what is chosen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import TargetUnreachableError
from ..llama import Llama
from ..measure.similarity import LayerSimilarity
from ..measure.text import Chunk
from ..skip_config import SkipConfig
from .choice import TOLERANCE, Row, beats, best, most_within, row_of
from .effort import EFFORTS, SEARCHED_ROWS, Effort
from .evaluation import Evaluator
from .parts import Parts
from .progress import Bar
from .race import Race
from .search import Candidate, Model, Search
from .wanted import Wanted

__all__ = ["Found", "Work", "check_reachable"]

RECORDED_TOKENS = 8192  # at most, for the similarities of the dense model
TINY = 1e-12  # nats, in place of a KL divergence of 0 where its logarithm is taken
RATIOS_COMPARED = 4  # on held-out text, to find the highest one within a KL divergence
RATIOS_COST = 2  # times what one of them takes: they have most of their fixed sets in common
TYPICAL_RATIO = 0.25
N_COMPARED = 7  # settings, about: the best of each policy, one corrected, and the references

# What calibration is to be better than.
REFERENCES = {
    "ffn_skip, uncalibrated": SkipConfig(),
    "random in adaptive region": SkipConfig("random", region="adaptive"),
    "random": SkipConfig("random"),
}


def check_reachable(llm: Llama, skip_ratio: float) -> None:
    """Raises TargetUnreachableError where the model has too few FFN blocks that can be skipped."""
    most = _skippable(llm).size / len(llm.ffn_map)
    if skip_ratio > most + TOLERANCE:
        raise TargetUnreachableError(
            f"skip-ratio: {skip_ratio:g} can't be reached; at most {most:.3f}, which is every FFN block that can be "
            "skipped"
        )


def _skippable(llm: Llama) -> npt.NDArray[np.int64]:
    return np.flatnonzero(llm.skippable)


@dataclass(frozen=True)
class Found:
    """The end of a calibration."""

    chosen: Row
    rows: list[Row]
    """On held-out text: the best setting of each policy, then those they are compared with."""


class Work:
    """Records what the dense model does, then looks for settings; `notes` gets what is to be said about it.

    Raises:
        ValueError: The effort is in seconds, and these are too few.
    """

    def __init__(self, llm: Llama, evaluator: Evaluator, parts: Parts, wanted: Wanted, progress: Bar, notes: list[str]):
        started = time.monotonic()
        self._llm = llm
        self._evaluator = evaluator
        self._parts = parts
        self._wanted = wanted
        self._progress = progress
        self.notes = notes

        recorded = parts.recorded(RECORDED_TOKENS)
        progress.expect(sum(map(len, recorded)))
        self._recorded = np.concatenate([evaluator.similarity(chunk) for chunk in recorded])
        self.similarity = LayerSimilarity.of(self._recorded)
        skippable = tuple(_skippable(llm).tolist())
        cold = self.similarity.cold_regions
        self._model = Model(llm.n_layer, len(llm.ffn_map), skippable, cold, wanted.warm_up_index)

        effort = wanted.effort
        level = EFFORTS[effort] if isinstance(effort, str) else self._affordable(effort, started)
        self._compared = parts.compared(level.compared_tokens)
        self.search = self._search(level)
        n_rows = sum(len(chunk.rows(wanted.warm_up_index)) for chunk in self._searched(SEARCHED_ROWS))
        if n_rows < SEARCHED_ROWS:
            self.notes.append(
                f"the text has {n_rows} tokens to search with; with less than {SEARCHED_ROWS} the settings may suit "
                "this text alone: give more of it"
            )

    def _searched(self, n_rows: int) -> list[Chunk]:
        return self._parts.searched(n_rows, self._wanted.warm_up_index)

    def _search(self, level: Effort) -> Search:
        race = Race(self._evaluator, self._searched(level.searched_rows), level.first_chunks)
        return Search(self._evaluator, self._model, self._recorded, race, level)

    def _affordable(self, seconds: float, started: float) -> Effort:
        """The greatest effort that takes no longer than `seconds`, by the speed of the first evaluations."""
        alone = SkipConfig("fixed", layers=self._model.skippable[:1], warm_up_index=self._model.warm_up_index)
        self._evaluator.score(alone, self._searched(1))
        speed = self._evaluator.tokens_per_second
        left = seconds - (time.monotonic() - started)
        takes = {name: self._n_tokens_at(level) / speed if speed else 0.0 for name, level in EFFORTS.items()}
        fitting = [name for name in takes if takes[name] <= left]
        if not fitting:
            least = takes["quick"] + seconds - left
            raise ValueError(f"effort: {seconds:g} seconds are too few here; the least takes about {least:.0f}")
        self.notes.append(f"effort: {fitting[-1]}, which fits {seconds:g} seconds")
        return EFFORTS[fitting[-1]]

    def _n_tokens_at(self, level: Effort) -> int:
        """That are evaluated with this effort where nothing is known yet."""
        compared = self._parts.compared(level.compared_tokens)
        n = self._n_tokens(self._search(level), compared, self._wanted.ratio or TYPICAL_RATIO)
        return n if self._wanted.ratio else RATIOS_COST * n

    def found(self) -> Found:
        """What is chosen for the target.

        Raises:
            TargetUnreachableError: Every setting costs more than the KL divergence that is wanted.
        """
        wanted = self._wanted
        return self._within_kl(wanted.max_kl) if wanted.max_kl is not None else self._at_ratio(wanted.ratio or 0.0)

    def _at_ratio(self, skip_ratio: float) -> Found:
        """The setting that skips so much or more with the least KL divergence."""
        self._progress.expect(self._n_tokens(self.search, self._compared, skip_ratio))
        candidates = self.search.candidates(skip_ratio, TOLERANCE)
        rows, references = self._compare(candidates, skip_ratio)
        chosen = best([*rows, *references], skip_ratio)
        if chosen.skip_ratio < skip_ratio - TOLERANCE:
            self.notes.append(f"no setting skips {skip_ratio:.1%} of held-out text; one that skips most was chosen")
        self._check_references(chosen, references)
        return Found(chosen, [*rows, *references])

    def _check_references(self, chosen: Row, references: Sequence[Row]) -> None:
        for row in references:
            if beats(row, chosen):
                self.notes.append(f"{row.policy} is better, and no profile holds it; give more text to search with")

    def _n_tokens(self, search: Search, compared: Sequence[Chunk], skip_ratio: float) -> int:
        """That are evaluated for a ratio where nothing is known yet."""
        searched = search.race.chunks
        mean = sum(map(len, searched)) / len(searched)
        n_compared = (N_COMPARED + 1) * sum(map(len, compared))
        return round(mean * search.n_evaluations(skip_ratio, TOLERANCE)) + n_compared

    def _within_kl(self, max_kl: float) -> Found:
        """The setting that skips most at no higher KL divergence.

        KL divergence grows with the ratio. Where the two meet is foretold by the fixed sets, and corrected by what is
        seen on held-out text.
        """
        self._progress.expect(RATIOS_COST * self._n_tokens(self.search, self._compared, TYPICAL_RATIO))
        low, high = 0, int(100 * len(self._model.skippable) / self._model.n_ffn) + 1  # percent: within, and not
        percent = min(max(round(100 * self._ratio_at(max_kl)), low + 1), high - 1)
        compared: list[Row] = []
        n_compared = 0
        while high - low > 1 and (n_compared < RATIOS_COMPARED or most_within(compared, max_kl) is None):
            candidates = self.search.candidates(percent / 100, TOLERANCE)
            rows, _ = self._compare(candidates, percent / 100, references=False)
            n_compared += 1
            compared += rows
            met = any(row.kl <= max_kl and row.skip_ratio >= percent / 100 - TOLERANCE for row in rows)
            low, high = (percent, high) if met else (low, percent)
            percent += self._percent_to_go(max_kl, percent, rows, met)
            if not low < percent < high or n_compared >= RATIOS_COMPARED:
                percent = (low + high) // 2
        found = most_within(compared, max_kl)
        if found is None:
            raise TargetUnreachableError(_out_of_reach(max_kl, min(rows, key=lambda row: row.kl)))
        _, references = self._compare([], found.skip_ratio)
        chosen = most_within([*compared, *references], max_kl) or found
        self._check_references(chosen, references)
        return Found(chosen, [*compared, *references])

    def tried(self) -> list[Row]:
        """Every setting that was measured in the search, by all the text that it saw."""
        return [row_of(score, score.config.label, "calibration") for score in self.search.tried]

    def block_kl(self) -> npt.NDArray[np.float64]:
        """float64 [n_layer]: KL divergence where the FFN block of a layer is left out alone; NaN where it can't be."""
        result = np.full(self._model.n_layer, np.nan)
        for il, cost in self.search.block_costs.items():
            result[il] = cost
        return result

    def _percent_to_go(self, max_kl: float, percent: int, rows: Sequence[Row], met: bool) -> int:
        """By what the ratio changes between their KL divergence and the one that is wanted; at least one block down,
        as held-out text tends to cost more than the text that the sets were made for."""
        near = [row.kl for row in rows if abs(row.skip_ratio - percent / 100) <= 2 * TOLERANCE]
        step = round(100 * (self._ratio_at(max_kl) - self._ratio_at(min(near)))) if near else 0
        return max(step, 1) if met else min(step, -round(100 / self._model.n_ffn), -1)

    def _ratio_at(self, kl: float) -> float:
        """The share of FFN blocks that fixed sets skip at some KL divergence on the calibration text, between two of
        them by interpolation."""
        n = 1
        while n < len(self._model.skippable) and self.search.fixed(n).quality.kl <= kl:
            n += 1
        known = np.maximum.accumulate([max(self.search.fixed(i).quality.kl, TINY) for i in range(1, n + 1)])
        return float(np.interp(np.log(max(kl, TINY)), np.log(known), np.arange(1, n + 1))) / self._model.n_ffn

    def _compare(
        self, candidates: Sequence[Candidate], skip_ratio: float, *, references: bool = True
    ) -> tuple[list[Row], list[Row]]:
        """The candidates on held-out text, and what they are to be better than. A threshold of a candidate that skips
        more or less of it is corrected, once."""
        named = self._references(skip_ratio) if references else {}
        configs = [*(candidate.config for candidate in candidates), *named.values()]
        scores = self._evaluator.scores(configs, self._compared)
        own, others = scores[: len(candidates)], scores[len(candidates) :]
        for i, (candidate, score) in enumerate(zip(candidates, own)):
            lacking = skip_ratio - score.skip_ratio
            if candidate.adaptive is not None and abs(lacking) > TOLERANCE / 2:
                corrected = candidate.skipping_more(lacking, self._model)
                again = self._evaluator.score(corrected.config, self._compared)
                own[i] = min(score, again, key=lambda s: abs(s.skip_ratio - skip_ratio))
        return (
            [row_of(score, score.config.label, "held out") for score in own],
            [row_of(score, name, "held out") for name, score in zip(named, others)],
        )

    def _references(self, skip_ratio: float) -> dict[str, SkipConfig]:
        """Those that can skip so much of this model, by name."""
        found = {}
        for name, reference in REFERENCES.items():
            config = reference.replace(skip_ratio=skip_ratio, warm_up_index=self._model.warm_up_index)
            try:
                with self._llm.skipping(config):
                    found[name] = config
            except ValueError as error:  # the default regions are too small for it
                if (note := f"{name}: {error}") not in self.notes:
                    self.notes.append(note)
        return found


def _out_of_reach(max_kl: float, least: Row) -> str:
    return (
        f"max-kl: {max_kl:g} can't be reached; skipping {least.skip_ratio:.1%} of the FFN blocks costs {least.kl:.3g}"
    )
