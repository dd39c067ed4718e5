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

__all__ = ["Found", "Parts", "Progress", "Row", "Work"]

TOLERANCE = 0.01  # of a skip ratio, from the one that is wanted

# Shares of the text's tokens that are evaluated, so that all of it takes less than evaluating the text twice: recording
# without computing logits, the search, and seven settings and the dense model on held-out text.
HELD_OUT = 0.3
SEARCHED = 0.5
COMPARED = 1 / 16
LEAST_COMPARED = 1024  # tokens
TYPICAL_RATIO = 0.25
MEASURED_AGAIN = 3  # blocks, on average, before one is added to the fixed set

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

        skippable = np.flatnonzero(llm._controller.skippable).tolist()
        self.n_ffn = len(llm.ffn_map)
        self.most = len(skippable) / self.n_ffn
        self._progress.expect(sum(map(len, parts.recorded)))
        similarity = np.concatenate([evaluator.similarity(chunk) for chunk in parts.recorded])
        self.similarity = _statistics(similarity)
        self.cold_regions = cold_regions(self.similarity[:, 0])
        self._model = Model(llm._controller.n_layer, self.n_ffn, tuple(skippable), self.cold_regions, warm_up_index)

        self._n_settings = len(skippable) + MEASURED_AGAIN * round(TYPICAL_RATIO * self.n_ffn) + 4 * N_MEASURED + 2
        pieces = parts.searched(self._n_settings, 4 * llm.n_vocab(), warm_up_index)
        self.n_searched = sum(map(len, pieces))
        self.search = Search(evaluator, self._model, similarity, pieces)

    def at_ratio(self, skip_ratio: float) -> Found:
        """The setting of that skip ratio with the least KL divergence."""
        if skip_ratio > self.most + TOLERANCE:
            raise ValueError(
                f"skip-ratio: {skip_ratio:g} can't be reached; at most {self.most:.3f}, which is every FFN block that "
                "can be skipped"
            )
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
        """The setting that skips most at no higher KL divergence."""
        self._expect(2 * self._n_settings)
        percent = self._highest_percent(max_kl)
        while True:
            rows, references = self._compare(self.search.candidates(percent / 100), percent / 100)
            within = [row for row in rows if row.kl <= max_kl]
            if within:
                chosen = max(within, key=lambda row: (round(row.skip_ratio, 3), -row.kl))
                return Found(chosen, [*rows, *references])
            if percent == 1:
                raise ValueError(_out_of_reach(max_kl, min(row.kl for row in rows)))
            percent -= 1

    def tried(self) -> list[Row]:
        """Every setting that was measured in the search."""
        return [_row(score, score.config.policy, "calibration") for score in self.search.tried]

    def block_kl(self) -> npt.NDArray[np.float64]:
        """float64 [n_layer]: KL divergence where the FFN block of a layer is left out alone; NaN where it can't be."""
        result = np.full(self._model.n_layer, np.nan)
        for il, cost in self.search.block_costs.items():
            result[il] = cost
        return result

    def _highest_percent(self, max_kl: float) -> int:
        """By what the search sees, which is not the held-out text. KL divergence grows with the ratio."""

        def best_kl(percent: int) -> float:
            candidates = self.search.candidates(percent / 100)
            near = [c.score for c in candidates if abs(c.score.skip_ratio - percent / 100) <= 2 * TOLERANCE]
            return min((score.quality.kl for score in near), default=np.inf)

        n_fixed, most = 0, round(self.most * self.n_ffn)
        while n_fixed < most and self.search.fixed(n_fixed + 1).quality.kl <= max_kl:
            n_fixed += 1
        low = int(100 * n_fixed / self.n_ffn)
        high = min(int(100 * self.most), int(100 * (n_fixed + 3) / self.n_ffn))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if best_kl(middle) <= max_kl else (low, middle - 1)
        if low == 0:
            raise ValueError(_out_of_reach(max_kl, best_kl(1)))
        return low

    def _compare(self, candidates: Sequence[Candidate], skip_ratio: float) -> tuple[list[Row], list[Row]]:
        """The candidates on held-out text, and what they are to be better than. A threshold of a candidate that skips
        more or less of it is corrected, once."""
        references = self._references(skip_ratio)
        configs = [*(candidate.config for candidate in candidates), *references.values()]
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
            [_row(score, name, "held out") for name, score in zip(references, others)],
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


def _out_of_reach(max_kl: float, least: float) -> str:
    return f"max-kl: {max_kl:g} can't be reached; skipping 1 % of the FFN blocks costs {least:.3g}"


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
