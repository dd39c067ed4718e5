"""The course of a calibration: what text is for what, what is recorded, searched and compared, and what is chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..llama import Llama
from ..measure.similarity import QUANTILES, cold_regions, skipping
from ..measure.text import Chunk
from ..skip_config import SkipConfig
from .choice import TOLERANCE, Row, beats, best, most_within, row_of
from .effort import EFFORTS, SEARCHED_ROWS, Effort
from .evaluation import Evaluator, Progress
from .race import Race
from .search import Candidate, Model, Search

__all__ = ["Found", "Parts", "Work", "check_reachable"]

HELD_OUT = 0.3  # of the text
RECORDED_TOKENS = 8192  # at most, for the similarities of the dense model
PIECE_ROWS = 128  # tokens past the warm-up of a chunk of the search: many short chunks say more than a few long ones
TINY = 1e-12  # nats, in place of a KL divergence of 0 where its logarithm is taken
RATIOS_COMPARED = 4  # on held-out text, to find the highest one within a KL divergence
RATIOS_COST = 2  # times what one of them takes: they have most of their fixed sets in common
TYPICAL_RATIO = 0.25
N_COMPARED = 7  # settings, about: the best of each policy, one corrected, and the references

# What calibration is to be better than.
REFERENCES = {
    "ffn_skip, uncalibrated": "ffn_skip",
    "random in adaptive region": "random_adaptive_region",
    "random": "random",
}


# ---- the text ----


class Parts:
    """What the chunks of a text are for.

    Args:
        seed: Of the choice of what is held out.
    """

    def __init__(self, chunks: Sequence[Chunk], seed: int):
        order = [chunks[i] for i in np.random.default_rng(seed).permutation(len(chunks))]
        n_held_out = min(max(1, round(HELD_OUT * len(order))), len(order) - 1)
        self._held_out, self.recorded = order[:n_held_out], order[n_held_out:]

    def compared(self, n_tokens: int) -> list[Chunk]:
        """Held-out chunks of about so many tokens."""
        return _first(self._held_out, n_tokens)

    def searched(self, n_rows: int, warm_up_index: int) -> list[Chunk]:
        """The beginnings of chunks, with so many tokens together that may skip, if there are as many: of each chunk
        alike, and of no more chunks than it takes."""
        of_each = max(PIECE_ROWS, -(-n_rows // len(self.recorded)))
        pieces, n = [], 0
        for chunk in self.recorded:
            if n >= n_rows:
                break
            pieces.append(_beginning(chunk, of_each, warm_up_index))
            n += n_compared(pieces[-1], warm_up_index)
        return pieces


def _first(chunks: Sequence[Chunk], n_tokens: int) -> list[Chunk]:
    """Whole chunks, at least one, of about so many tokens."""
    lengths = np.cumsum([len(chunk) for chunk in chunks])
    return list(chunks[: max(1, int(np.searchsorted(lengths, n_tokens * 1.05, side="right")))])


def n_compared(chunk: Chunk, warm_up_index: int) -> int:
    """Tokens of a chunk that may skip and predict a known one."""
    return sum(chunk.eligible(warm_up_index)[:-1])


def _beginning(chunk: Chunk, n_rows: int, warm_up_index: int) -> Chunk:
    rows = np.flatnonzero(chunk.eligible(warm_up_index))[:n_rows]
    end = int(rows[-1]) + 2  # with the token that the last one predicts
    return Chunk(chunk.tokens[:end], chunk.generated[:end])


# ---- the work ----


def check_reachable(llm: Llama, skip_ratio: float) -> None:
    """Raises ValueError where the model has too few FFN blocks that can be skipped."""
    most = _skippable(llm).size / len(llm.ffn_map)
    if skip_ratio > most + TOLERANCE:
        raise ValueError(
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

    Args:
        effort: A name of EFFORTS, or seconds.
        skip_ratio: That will be searched for, if one is given; else several will.
    Raises:
        ValueError: The seconds are too few.
    """

    def __init__(
        self,
        llm: Llama,
        evaluator: Evaluator,
        parts: Parts,
        warm_up_index: int,
        effort: str | float,
        skip_ratio: float | None,
        progress: Progress,
        notes: list[str],
    ):
        started = time.monotonic()
        self._llm = llm
        self._evaluator = evaluator
        self._progress = progress
        self.notes = notes

        skippable = _skippable(llm).tolist()
        recorded = _first(parts.recorded, RECORDED_TOKENS)
        self._progress.expect(sum(map(len, recorded)))
        similarity = np.concatenate([evaluator.similarity(chunk) for chunk in recorded])
        self.similarity = _statistics(similarity)
        self.cold_regions = cold_regions(self.similarity[:, 0])
        self._model = Model(llm.n_layer, len(llm.ffn_map), tuple(skippable), self.cold_regions, warm_up_index)

        def search(level: Effort) -> Search:
            race = Race(evaluator, parts.searched(level.searched_rows, warm_up_index), level.first_chunks)
            return Search(evaluator, self._model, similarity, race, level)

        def n_tokens(level: Effort) -> int:
            n = self._n_tokens(search(level), parts.compared(level.compared_tokens), skip_ratio or TYPICAL_RATIO)
            return n if skip_ratio else RATIOS_COST * n

        if isinstance(effort, str):
            level = EFFORTS[effort]
        else:
            level = self._affordable(effort, started, parts, n_tokens)
        self._compared = parts.compared(level.compared_tokens)
        self.search = search(level)
        n_rows = sum(n_compared(chunk, warm_up_index) for chunk in parts.searched(SEARCHED_ROWS, warm_up_index))
        if n_rows < SEARCHED_ROWS:
            self.notes.append(
                f"the text has {n_rows} tokens to search with; with less than {SEARCHED_ROWS} the settings may suit "
                "this text alone: give more of it"
            )

    def _affordable(self, seconds: float, started: float, parts: Parts, n_tokens: Callable[[Effort], int]) -> Effort:
        """The greatest effort that takes no longer than `seconds`, by the speed of the first evaluations."""
        probed = parts.searched(1, self._model.warm_up_index)
        alone = SkipConfig("fixed", layers=self._model.skippable[:1], warm_up_index=self._model.warm_up_index)
        self._evaluator.score(alone, probed)
        speed = self._evaluator.tokens_per_second
        left = seconds - (time.monotonic() - started)
        takes = {name: n_tokens(level) / speed if speed else 0.0 for name, level in EFFORTS.items()}
        fitting = [name for name in takes if takes[name] <= left]
        if not fitting:
            least = takes["quick"] + seconds - left
            raise ValueError(f"effort: {seconds:g} seconds are too few here; the least takes about {least:.0f}")
        self.notes.append(f"effort: {fitting[-1]}, which fits {seconds:g} seconds")
        return EFFORTS[fitting[-1]]

    def at_ratio(self, skip_ratio: float) -> Found:
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

    def within_kl(self, max_kl: float) -> Found:
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
            raise ValueError(_out_of_reach(max_kl, min(rows, key=lambda row: row.kl)))
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
        for name, policy in REFERENCES.items():
            config = SkipConfig(policy, skip_ratio=skip_ratio, warm_up_index=self._model.warm_up_index)
            try:
                with skipping(self._llm, config):
                    found[name] = config
            except ValueError as error:  # the default regions are too small for it
                if (note := f"{name}: {error}") not in self.notes:
                    self.notes.append(note)
        return found


def _out_of_reach(max_kl: float, least: Row) -> str:
    return (
        f"max-kl: {max_kl:g} can't be reached; skipping {least.skip_ratio:.1%} of the FFN blocks costs {least.kl:.3g}"
    )


def _statistics(similarity: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """[n_layer, 3]: mean and quantiles over tokens; NaN where a layer was not checked."""
    result = np.full((similarity.shape[1], 3), np.nan)
    seen = ~np.isnan(similarity).all(axis=0)
    values = similarity[:, seen].astype(np.float64)
    result[seen, 0] = np.nanmean(values, axis=0)
    result[seen, 1:] = np.nanquantile(values, QUANTILES, axis=0).T
    return result
