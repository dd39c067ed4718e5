"""The search for settings: of each policy the one that costs least where it skips a given share of the FFN blocks.

1. Each FFN block is left out alone, which yields its cost for every token.
2. A fixed set grows by greedy forward selection: in turn the block that adds least to the KL divergence.
3. Settings of Algorithm 1 are simulated on recorded similarities by the hundred: region, max_skip, and the threshold
   that skips as much as is wanted. The sum of the costs of the blocks that a token would skip ranks them.
4. The best ranked of each policy are measured, and the threshold of the best one is corrected by what skipping itself
   does to the similarities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._core import SkipConfig
from .evaluation import Evaluator, Score, Tokens
from .simulation import NEVER_TRIPS, Region, ranks, skipped, solve, thresholds_at_rank, trips

__all__ = ["Candidate", "Model", "Search"]

N_MEASURED = 3  # of the settings that are ranked, per policy
SAME = 0.05  # share of the blocks skipped by which two settings differ that are worth measuring both
RATIO_TOLERANCE = 0.005  # of what is simulated, from what is wanted
RANKED_ON = 512  # rows at most; thresholds of settings that are measured are solved on all


@dataclass(frozen=True)
class Model:
    """What the search has to know of a model."""

    n_layer: int
    n_ffn: int
    skippable: tuple[int, ...]
    """Layers whose FFN block can be skipped, in ascending order."""
    cold_regions: tuple[int, int]
    """cold_s and cold_e as the similarity curve has them."""
    warm_up_index: int


@dataclass(frozen=True)
class Adaptive:
    """Algorithm 1 over a region, beside a fixed set that may be empty."""

    fixed: tuple[int, ...]
    region: Region
    per_layer: bool
    similarity: npt.NDArray[np.float32]
    """[n_rows, n_layer] that thresholds are solved on: of the model without the fixed set."""

    def thresholds(self, n_skipped: float, *, at_most: int | None = None) -> tuple[list[float], float]:
        """Of each layer of the region, so that a token skips `n_skipped` blocks of it; and how many it then does.
        Solved on `at_most` rows."""
        step = 1 if at_most is None else -(-len(self.similarity) // at_most)
        rows = self.similarity[::step, list(self.region.layers)]
        threshold, found = solve(ranks(rows) if self.per_layer else rows, self.region.max_skip, n_skipped)
        if self.per_layer:
            return thresholds_at_rank(rows, threshold), found
        return [threshold] * len(self.region.layers), found

    def skips(self, thresholds: Sequence[float], similarity: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """bool [n_rows, n_layer]: the blocks of the region that rows with these similarities skip."""
        layers = list(self.region.layers)
        result = np.zeros(similarity.shape, np.bool_)
        result[:, layers] = skipped(trips(similarity[:, layers], thresholds), self.region)
        return result

    def checks(self, thresholds: Sequence[float], similarity: npt.NDArray[np.float32]) -> float:
        """Similarities computed per row, on average."""
        tripped = trips(similarity[:, list(self.region.layers)], thresholds)
        return float(np.minimum(tripped + 1, len(self.region.layers)).mean())

    def config(self, thresholds: Sequence[float], model: Model) -> SkipConfig:
        common: dict[str, Any] = {
            "cold_s": self.region.cold_s,
            "cold_e": self.region.cold_e,
            "warm_up_index": model.warm_up_index,
            "max_skip": self.region.max_skip,
        }
        if self.per_layer:
            of_layer = dict(zip(self.region.layers[:-1], thresholds))  # after the last one nothing is left to skip
            every = [of_layer.get(il, np.inf) for il in range(model.n_layer)]
            return SkipConfig("ffn_skip_per_layer", layer_thresholds=every, **common)
        if self.fixed:
            return SkipConfig("fixed_plus_ffn_skip", thresholds[0], layers=self.fixed, **common)
        return SkipConfig("ffn_skip", thresholds[0], **common)


@dataclass(frozen=True)
class Candidate:
    """A setting, what it costs on the pieces, and what its thresholds were solved with."""

    config: SkipConfig
    score: Score
    adaptive: Adaptive | None = None
    n_skipped: float = 0.0
    """Of the adaptive blocks, per token, as the thresholds were solved."""

    @property
    def cost_per_block(self) -> float:
        """Settings that were meant to skip the same skip a little more or less on some text."""
        ratio = self.score.skip_ratio
        return self.score.quality.kl / ratio if ratio > 0 else np.inf

    def skipping_more(self, ratio: float, model: Model) -> Candidate:
        """The same with thresholds for a skip ratio that is higher, or lower if negative; not measured anew."""
        if self.adaptive is None:
            return self
        n_skipped = max(self.n_skipped + ratio * model.n_ffn, 0.0)
        thresholds, _ = self.adaptive.thresholds(n_skipped)
        return replace(self, config=self.adaptive.config(thresholds, model), n_skipped=n_skipped)


class Search:
    """
    Args:
        similarity: float32 [n_rows, n_layer], of the dense model; of as much text as there is.
        pieces: Text to measure settings on.
    """

    def __init__(
        self, evaluator: Evaluator, model: Model, similarity: npt.NDArray[np.float32], pieces: Sequence[Tokens]
    ):
        self._evaluator = evaluator
        self._model = model
        self._similarity = similarity
        self._pieces = pieces
        self._greedy = GreedySet(model, self._measure)
        self.tried: list[Score] = []

    @property
    def block_costs(self) -> dict[int, float]:
        """KL divergence where the FFN block of a layer is left out alone, by layer."""
        self._greedy.layers(1)
        return self._greedy.alone

    def fixed(self, n: int) -> Score:
        """What the fixed set of n FFN blocks costs."""
        return self._greedy.score(n)

    def candidates(self, skip_ratio: float) -> list[Candidate]:
        """The best setting found of each policy; no two have the same one. A policy may have none."""
        wanted = skip_ratio * self._model.n_ffn
        fixed = self.fixed(min(max(1, round(wanted)), len(self._model.skippable)))
        found = [
            self._best(self._dense(per_layer=False), self._of_pieces, wanted),
            self._best(self._dense(per_layer=True), self._of_pieces, wanted),
            self._remainder(wanted),
        ]
        return [Candidate(fixed.config, fixed), *(candidate for candidate in found if candidate is not None)]

    def _measure(self, config: SkipConfig) -> Score:
        score = self._evaluator.score(config, self._pieces)
        self.tried.append(score)
        return score

    # ---- Algorithm 1 ----

    @cached_property
    def _of_pieces(self) -> npt.NDArray[np.float32]:
        return np.concatenate([self._evaluator.similarity(piece) for piece in self._pieces])

    def _dense(self, *, per_layer: bool) -> Callable[[Region], Adaptive]:
        return lambda region: Adaptive((), region, per_layer, self._similarity)

    def _remainder(self, wanted: float) -> Candidate | None:
        """A fixed set of one or two blocks less, and Algorithm 1 for the rest."""
        most = int(np.ceil(wanted - 1e-9)) - 1
        found = [self._beside(tuple(sorted(self._greedy.layers(n))), wanted - n) for n in (most - 1, most) if n > 0]
        return min((c for c in found if c is not None), key=lambda c: c.cost_per_block, default=None)

    def _beside(self, fixed: tuple[int, ...], wanted: float) -> Candidate | None:
        everything = Region(tuple(il for il in range(self._model.n_layer - 1) if il not in fixed), 0)
        checks_only = Adaptive(fixed, everything, False, self._similarity).config([NEVER_TRIPS], self._model)
        similarity = self._evaluator.score(checks_only, self._pieces).similarity
        return self._best(lambda region: Adaptive(fixed, region, False, similarity), similarity, wanted)

    def _best(
        self, adaptive: Callable[[Region], Adaptive], of_pieces: npt.NDArray[np.float32], wanted: float
    ) -> Candidate | None:
        """The best of those that the simulation ranks first. `of_pieces` are the similarities of the pieces' rows."""
        fixed = adaptive(Region((0,), 0)).fixed
        free = [il for il in self._model.skippable if il not in fixed]
        costs = self._greedy.costs_beside(fixed)
        ranked: list[Ranked] = []
        for region in _regions(free, wanted, self._model):
            setting = adaptive(region)
            thresholds, n_skipped = setting.thresholds(wanted, at_most=RANKED_ON)
            if abs(n_skipped - wanted) <= RATIO_TOLERANCE * self._model.n_ffn:
                skips = setting.skips(thresholds, of_pieces)
                cost = float(costs[skips].sum() / max(skips.sum(), 1))
                ranked.append(Ranked(cost, setting.checks(thresholds, of_pieces), setting, thresholds))
        measured = [self._measured(setting, of_pieces, wanted) for setting in _first_different(ranked, of_pieces)]
        return min(measured, key=lambda candidate: candidate.cost_per_block, default=None)

    def _measured(self, setting: Adaptive, of_pieces: npt.NDArray[np.float32], wanted: float) -> Candidate:
        thresholds, _ = setting.thresholds(wanted)
        score = self._measure(setting.config(thresholds, self._model))
        simulated = len(setting.fixed) + setting.skips(thresholds, of_pieces).sum(axis=1).mean()
        surplus = score.skip_ratio - simulated / self._model.n_ffn
        return Candidate(score.config, score, setting, wanted).skipping_more(-surplus, self._model)


class Ranked(NamedTuple):
    """A setting and what the simulation says of it."""

    cost: float
    """KL divergence of each block skipped, as if those of blocks left out alone added up."""
    checks: float
    setting: Adaptive
    thresholds: list[float]


def _first_different(ranked: list[Ranked], of_pieces: npt.NDArray[np.float32]) -> list[Adaptive]:
    """The cheapest settings that do not skip nearly the same; of those that skip the same the one that checks least."""
    found: list[Adaptive] = []
    seen: list[npt.NDArray[np.bool_]] = []
    for entry in sorted(ranked, key=lambda entry: (entry.cost, entry.checks)):
        skips = entry.setting.skips(entry.thresholds, of_pieces)
        if all((skips != other).sum() > SAME * skips.sum() for other in seen):
            found.append(entry.setting)
            seen.append(skips)
        if len(found) == N_MEASURED:
            break
    return found


def _regions(free: Sequence[int], wanted: float, model: Model) -> Iterator[Region]:
    """Regions that may skip as much as is wanted: from each layer on, and up to where only a trip in the first layer
    skips max_skip, a little further, to where the similarity falls, and to the end."""
    least = max(1, int(np.ceil(wanted - 1e-9)))
    for first in range(len(free) - least):
        for max_skip in range(least, min(2 * least + 2, len(free) - first)):
            ends = {first + max_skip + 1, first + max_skip + 3, len(free)}
            ends.add(sum(il < model.cold_regions[1] for il in free))
            for end in sorted(ends):
                if first + max_skip < end <= len(free):
                    yield Region(tuple(free[first:end]), max_skip)


# ---- the fixed set ----


class GreedySet:
    """Greedy forward selection on KL divergence, as far as it is asked for.

    A block's cost beside the set of an earlier round is taken for a lower bound of its cost now: blocks are measured
    again in that order, until the best one measured now is no worse than what the others had been (Minoux 1978).
    """

    def __init__(self, model: Model, measure: Callable[[SkipConfig], Score]):
        self._model = model
        self._measure = measure
        self._added: list[int] = []
        self._scores: list[Score] = []  # after each
        self._costs: dict[int, npt.NDArray[np.float64]] = {}  # [n_rows] of each block, when it was measured last
        self.alone: dict[int, float] = {}

    def layers(self, n: int) -> list[int]:
        """The set of n blocks."""
        while len(self._added) < n:
            self._add()
        return self._added[:n]

    def score(self, n: int) -> Score:
        self.layers(n)
        return self._scores[n - 1]

    def costs_beside(self, fixed: Sequence[int]) -> npt.NDArray[np.float64]:
        """float64 [n_rows, n_layer]: what each block adds to each row's KL divergence; infinite where it can't be
        skipped."""
        self.layers(max(1, len(fixed)))
        n_rows = len(next(iter(self._costs.values())))
        costs = np.full((n_rows, self._model.n_layer), np.inf)
        for il, cost in self._costs.items():
            costs[:, il] = cost
        return costs

    def _add(self) -> None:
        before = self._scores[-1].kl if self._scores else 0.0
        left = [il for il in self._model.skippable if il not in self._added]
        measured: dict[int, Score] = {}
        while True:
            best = min(left, key=lambda il: self._costs[il].mean() if il in self._costs else -np.inf)
            if best in measured:
                break
            measured[best] = self._measure(self._config([*self._added, best]))
            self._costs[best] = measured[best].kl - before
        if not self._added:
            self.alone = {il: float(cost.mean()) for il, cost in self._costs.items()}
        self._added.append(best)
        self._scores.append(measured[best])

    def _config(self, layers: Sequence[int]) -> SkipConfig:
        return SkipConfig("fixed", layers=sorted(layers), warm_up_index=self._model.warm_up_index)
