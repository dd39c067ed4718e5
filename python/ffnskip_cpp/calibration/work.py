"""The course of a calibration: what text is for what, what is recorded, searched and compared, and what is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .._core import SkipConfig
from ..analysis.measure import QUANTILES, cold_regions, skipping
from ..llama import Llama
from .evaluation import CACHED_BYTES, Evaluator, Score, Tokens
from .search import N_MEASURED, Candidate, Model, Search

__all__ = ["Found", "Parts", "Progress", "Row", "Work", "check_reachable"]

TOLERANCE = 0.01  # of a skip ratio, from the one that is wanted

# Shares of the text's tokens that are evaluated, so that all of it takes less than evaluating the text twice: recording
# without computing logits, the search, and seven settings and the dense model on held-out text.
HELD_OUT = 0.3
SEARCHED = 0.5
COMPARED = 1 / 16
LEAST_COMPARED = 1024  # tokens
TYPICAL_RATIO = 0.25
MEASURED_AGAIN = 3  # blocks, on average, before one is added to the fixed set
TINY = 1e-12  # nats, in place of a KL divergence of 0 where its logarithm is taken
RATIOS_COMPARED = 4  # on held-out text, to find the highest one within a KL divergence

# What calibration is to be better than.
REFERENCES = {
    "ffn_skip, uncalibrated": "ffn_skip",
    "random_adaptive_region": "random_adaptive_region",
    "random": "random",
}


class Progress(Protocol):
    """Told how many tokens are still to be evaluated, as far as that is known, and how many were."""

    def expect(self, n_tokens: int) -> None: ...
    def __call__(self, n_tokens: int) -> None: ...


@dataclass(frozen=True)
class Row:
    """A setting and what it does on some text, past the warm-up."""

    policy: str
    text: str
    """"held out" or "calibration"."""
    skip_ratio: float
    kl: float
    """KL divergence from the dense model, nats per token."""
    top1_agreement: float
    perplexity_ratio: float
    checks: float
    """Per token."""
    n_tokens: int
    config: SkipConfig = field(repr=False)


# ---- the text ----


class Parts:
    """What the chunks of a text are for."""

    def __init__(self, chunks: Sequence[Tokens], seed: int):
        self.n_tokens = sum(map(len, chunks))
        order = [chunks[i] for i in np.random.default_rng(seed).permutation(len(chunks))]
        n_held_out = min(max(1, round(HELD_OUT * len(order))), len(order) - 1)
        self._held_out, self.recorded = order[:n_held_out], order[n_held_out:]

    def compared(self) -> list[Tokens]:
        """Held-out text that the candidates are compared on."""
        return _first(self._held_out, max(LEAST_COMPARED, round(COMPARED * self.n_tokens)))

    def searched(self, n_settings: int, n_row_bytes: int, warm_up_index: int) -> list[Tokens]:
        """Text that `n_settings` are measured on, as often as there is time for. The dense model's logits of it are
        kept."""
        n_tokens = min(round(SEARCHED * self.n_tokens / n_settings), CACHED_BYTES // n_row_bytes)
        shortest = 4 * (warm_up_index + 2)  # or much of it would be warm-up
        n_pieces = min(max(1, n_tokens // shortest), len(self.recorded))
        length = max(shortest, n_tokens // n_pieces)
        return [chunk[:length] for chunk in self.recorded[:n_pieces]]


def _first(chunks: Sequence[Tokens], n_tokens: int) -> list[Tokens]:
    """Whole chunks, at least one, of about so many tokens."""
    lengths = np.cumsum([len(chunk) for chunk in chunks])
    return list(chunks[: max(1, int(np.searchsorted(lengths, n_tokens * 1.05, side="right")))])


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
    """Records what the dense model does, then looks for settings; `notes` gets what is to be said about it."""

    def __init__(
        self, llm: Llama, evaluator: Evaluator, parts: Parts, warm_up_index: int, progress: Progress, notes: list[str]
    ):
        self._llm = llm
        self._evaluator = evaluator
        self._progress = progress
        self._compared = parts.compared()
        self.notes = notes

        skippable = _skippable(llm).tolist()
        self._progress.expect(sum(map(len, parts.recorded)))
        similarity = np.concatenate([evaluator.similarity(chunk) for chunk in parts.recorded])
        self.similarity = _statistics(similarity)
        self.cold_regions = cold_regions(self.similarity[:, 0])
        self._model = Model(llm.n_layer, len(llm.ffn_map), tuple(skippable), self.cold_regions, warm_up_index)

        self._n_settings = (
            len(skippable) + MEASURED_AGAIN * round(TYPICAL_RATIO * self._model.n_ffn) + 4 * N_MEASURED + 2
        )
        pieces = parts.searched(self._n_settings, 4 * llm.n_vocab(), warm_up_index)
        self.n_searched = sum(map(len, pieces))
        self.search = Search(evaluator, self._model, similarity, pieces)

    def at_ratio(self, skip_ratio: float) -> Found:
        """The setting of that skip ratio with the least KL divergence."""
        self._expect(self._n_settings)
        rows, references = self._compare(self.search.candidates(skip_ratio), skip_ratio)
        meeting = [row for row in rows if abs(row.skip_ratio - skip_ratio) <= TOLERANCE]
        if meeting:
            chosen = min(meeting, key=lambda row: row.kl)
        else:
            chosen = min(rows, key=lambda row: abs(row.skip_ratio - skip_ratio))
            self.notes.append(f"no setting skips {skip_ratio:.1%} of held-out text; the nearest one was chosen")
        return Found(chosen, [*rows, *references])

    def within_kl(self, max_kl: float) -> Found:
        """The setting that skips most at no higher KL divergence.

        KL divergence grows with the ratio. Where the two meet is foretold by the fixed sets, and corrected by what is
        seen on held-out text.
        """
        self._expect(2 * self._n_settings)
        low, high = 0, int(100 * len(self._model.skippable) / self._model.n_ffn) + 1  # percent: within, and not
        percent = min(max(round(100 * self._ratio_at(max_kl)), low + 1), high - 1)
        within: list[tuple[Row, list[Row]]] = []
        n_compared = 0
        while high - low > 1 and (n_compared < RATIOS_COMPARED or not within):
            rows, _ = self._compare(self.search.candidates(percent / 100), percent / 100, references=False)
            n_compared += 1
            found = [row for row in rows if row.kl <= max_kl]
            within += [(row, rows) for row in found]
            met = any(row.skip_ratio >= percent / 100 - TOLERANCE for row in found)
            low, high = (percent, high) if met else (low, percent)
            percent += self._percent_to_go(max_kl, percent, rows, met)
            if not low < percent < high or n_compared >= RATIOS_COMPARED:
                percent = (low + high) // 2
        if not within:
            raise ValueError(_out_of_reach(max_kl, min(rows, key=lambda row: row.kl)))
        chosen, rows = max(within, key=lambda pair: (round(pair[0].skip_ratio, 3), -pair[0].kl))
        _, references = self._compare([], chosen.skip_ratio)
        return Found(chosen, [*rows, *references])

    def tried(self) -> list[Row]:
        """Every setting that was measured in the search."""
        return [_row(score, score.config.policy, "calibration") for score in self.search.tried]

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
            [_row(score, score.config.policy, "held out") for score in own],
            [_row(score, name, "held out") for name, score in zip(named, others)],
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

    def _expect(self, n_settings: int) -> None:
        self._progress.expect(n_settings * self.n_searched + 8 * sum(map(len, self._compared)))


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


def _row(score: Score, name: str, text: str) -> Row:
    quality = score.quality
    return Row(
        name,
        text,
        score.skip_ratio,
        quality.kl,
        quality.top1_agreement,
        quality.perplexity_ratio,
        score.checks,
        quality.n_rows,
        score.config,
    )
