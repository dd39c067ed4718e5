"""The search for settings: of each policy the one that costs least where it skips a given share of the FFN blocks.

1. A fixed set grows by greedy forward selection: in turn the block that adds least to the KL divergence. Blocks race
   for each place (race.py), at first all of them alone. Then blocks of the set are exchanged while that helps.
2. Settings of Algorithm 1 are simulated on recorded similarities by the hundred: region, max_skip, and the threshold
   that skips as much as is wanted. The sum of the costs of the blocks that a token would skip ranks them.
3. The best ranked of each policy race, and the threshold of the winner is corrected by what skipping itself does to the
   similarities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..measure.similarity import NEVER_TRIPS
from ..skip_config import SkipConfig
from .effort import Effort
from .evaluation import Evaluator, Score
from .race import Race
from .race import cost as race_cost
from .simulation import Region, ranks, skipped, solve, thresholds_at_rank, trips

__all__ = ["Candidate", "Model", "Search"]

SAME = 0.05  # share of the blocks skipped by which two settings differ that are worth measuring both
RATIO_TOLERANCE = 0.005  # of what is simulated or measured on the text of the search, from what is wanted
SWAPPED = 3  # blocks of the fixed set that may be exchanged at a time, and as many that may take their places
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
        race: Has the text that settings are measured on.
    """

    def __init__(
        self, evaluator: Evaluator, model: Model, similarity: npt.NDArray[np.float32], race: Race, effort: Effort
    ):
        self._evaluator = evaluator
        self._model = model
        self._similarity = similarity
        self.race = race
        self._effort = effort
        self._greedy = GreedySet(model, race, effort.n_blocks)

    @property
    def tried(self) -> list[Score]:
        """Every setting that was measured, in the order they were first, by all the text that it saw."""
        return list(self.race.seen.values())

    @property
    def block_costs(self) -> dict[int, float]:
        """KL divergence where the FFN block of a layer is left out alone, by layer."""
        self._greedy.layers(1)
        return self._greedy.alone

    def fixed(self, n: int) -> Score:
        """What the greedy set of n FFN blocks costs."""
        return self._greedy.score(n)

    def candidates(self, skip_ratio: float, tolerance: float) -> list[Candidate]:
        """The best setting found of each policy. A policy may have none.

        Args:
            tolerance: By how much less than `skip_ratio` a fixed set may skip.
        """
        wanted = skip_ratio * self._model.n_ffn
        n = self.n_fixed(skip_ratio, tolerance)
        fixed = self._exchanged(self.fixed(n), n)
        found = [self._best([self._dense(per_layer)], wanted) for per_layer in (False, True)[: 1 + self._effort.wide]]
        found.append(self._best(self._remainders(wanted), wanted))
        return [Candidate(fixed.config, fixed), *(candidate for candidate in found if candidate is not None)]

    def n_fixed(self, skip_ratio: float, tolerance: float) -> int:
        """Blocks of the fixed set that skips at least so much."""
        n = int(np.ceil((skip_ratio - tolerance) * self._model.n_ffn - 1e-9))
        return min(max(1, n), len(self._model.skippable))

    def n_evaluations(self, skip_ratio: float, tolerance: float) -> int:
        """Of chunks, about, that `candidates` takes where nothing is known yet."""
        n, n_chunks, first = self.n_fixed(skip_ratio, tolerance), len(self.race.chunks), self.race.first
        for_places = race_cost(len(self._model.skippable), n_chunks, first)
        for_places += (n - 1) * race_cost(self._effort.n_blocks, n_chunks, first)
        exchanges = self._effort.n_swaps * race_cost(self._n_exchanges(n), n_chunks, first)
        n_policies = 2 + self._effort.wide
        policies = n_policies * (race_cost(self._effort.n_ranked, n_chunks, first) + 2 * n_chunks)
        return for_places + exchanges + policies

    # ---- the fixed set ----

    def _n_exchanges(self, n: int) -> int:
        return min(n, SWAPPED) * min(len(self._model.skippable) - n, SWAPPED)

    def _exchanged(self, score: Score, n: int) -> Score:
        """A set with blocks exchanged one by one: those that were added last for those that nearly were."""
        left = self._greedy.left_after(n)
        for _ in range(self._effort.n_swaps):
            layers = score.config.layers or ()
            added_last = [il for il in reversed(self._greedy.layers(n)) if il in layers][:SWAPPED]
            others = [
                fixed_set([*(il for il in layers if il != out), new], self._model)
                for out in added_last
                for new in [il for il in left if il not in layers][:SWAPPED]
            ]
            if not others:
                break
            best = self.race.run(others, _kl)[0]
            if best.quality.kl >= score.quality.kl:
                break
            score = best
        return score

    # ---- Algorithm 1 ----

    def _dense(self, per_layer: bool) -> Family:
        similarity = np.concatenate([self._evaluator.similarity(chunk) for chunk in self.race.chunks])
        return Family((), per_layer, self._similarity, similarity)

    def _remainders(self, wanted: float) -> list[Family]:
        """A fixed set of one block less than wanted, or two, beside which Algorithm 1 skips the rest."""
        most = int(np.ceil(wanted - 1e-9)) - 1
        most = min(most, len(self._model.skippable) - 2)  # or nothing is left for it to check and skip
        sizes = range(max(1, most - self._effort.wide), most + 1)
        return [self._beside(tuple(sorted(self._greedy.layers(n)))) for n in sizes]

    def _beside(self, fixed: tuple[int, ...]) -> Family:
        everything = Region(tuple(il for il in range(self._model.n_layer - 1) if il not in fixed), 1)
        checks_only = Adaptive(fixed, everything, False, self._similarity).config([NEVER_TRIPS], self._model)
        similarity = self._evaluator.score(checks_only, self.race.chunks).similarity
        return Family(fixed, False, similarity, similarity)

    def _best(self, families: Sequence[Family], wanted: float) -> Candidate | None:
        """The winner of those that the simulation ranks first."""
        ranked = [entry for family in families for entry in self._ranked(family, wanted)]
        settings: dict[SkipConfig, Adaptive] = {}
        for entry in _first_different(ranked, self._effort.n_ranked):
            thresholds, _ = entry.setting.thresholds(wanted - len(entry.setting.fixed))
            settings.setdefault(entry.setting.config(thresholds, self._model), entry.setting)
        if not settings:
            return None
        score = self.race.run(list(settings), Score.kl_per_block)[0]
        setting = settings[score.config]
        return self._corrected(Candidate(score.config, score, setting, wanted - len(setting.fixed)), wanted)

    def _ranked(self, family: Family, wanted: float) -> list[Ranked]:
        free = [il for il in self._model.skippable if il not in family.fixed]
        costs = self._greedy.costs_beside(family.fixed)
        similarity = family.of_race[: len(costs)]
        wanted -= len(family.fixed)
        ranked = []
        for region in _regions(free, wanted, self._model):
            setting = Adaptive(family.fixed, region, family.per_layer, family.similarity)
            thresholds, n_skipped = setting.thresholds(wanted, at_most=RANKED_ON)
            if abs(n_skipped - wanted) <= RATIO_TOLERANCE * self._model.n_ffn:
                skips = setting.skips(thresholds, similarity)
                cost = float(costs[skips].sum() / max(skips.sum(), 1)) * wanted + self._greedy.cost(len(family.fixed))
                ranked.append(Ranked(cost, setting.checks(thresholds, similarity), setting, skips))
        return ranked

    def _corrected(self, candidate: Candidate, wanted: float) -> Candidate:
        """With the threshold that makes up for what it skips too much or too little."""
        ratio = wanted / self._model.n_ffn
        lacking = ratio - candidate.score.skip_ratio
        if abs(lacking) <= RATIO_TOLERANCE:
            return candidate
        other = candidate.skipping_more(lacking, self._model)
        other = replace(other, score=self.race.score(other.config))
        return min(candidate, other, key=lambda found: abs(found.score.skip_ratio - ratio))


def _kl(score: Score) -> npt.NDArray[np.float64]:
    return score.kl


@dataclass(frozen=True)
class Family:
    """Settings of Algorithm 1 that differ in region, max_skip and thresholds."""

    fixed: tuple[int, ...]
    per_layer: bool
    similarity: npt.NDArray[np.float32]
    """[n_rows, n_layer], beside the fixed set; that thresholds are solved on."""
    of_race: npt.NDArray[np.float32]
    """[n_rows, n_layer]: of the rows that settings are measured on."""


class Ranked(NamedTuple):
    """A setting and what the simulation says of it."""

    cost: float
    """KL divergence, as if what single blocks add to it added up."""
    checks: float
    setting: Adaptive
    skips: npt.NDArray[np.bool_]
    """[n_rows, n_layer]"""


def _first_different(ranked: list[Ranked], n: int) -> list[Ranked]:
    """The n cheapest that do not skip nearly the same; of those that skip the same the one that checks least."""
    found: list[Ranked] = []
    for entry in sorted(ranked, key=lambda entry: (entry.cost, entry.checks)):
        same = (_differ(entry, other) <= SAME * entry.skips.sum() for other in found)
        if not any(same):
            found.append(entry)
        if len(found) == n:
            break
    return found


def _differ(one: Ranked, other: Ranked) -> int:
    """In so many blocks of all rows, the fixed sets included."""
    beside = set(one.setting.fixed) ^ set(other.setting.fixed)
    return int((one.skips != other.skips).sum()) + len(beside) * len(one.skips)


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


def fixed_set(layers: Sequence[int], model: Model) -> SkipConfig:
    return SkipConfig("fixed", layers=sorted(layers), warm_up_index=model.warm_up_index)


class GreedySet:
    """Greedy forward selection on KL divergence, as far as it is asked for.

    For the first place all blocks race; for each other one those that added least when they were measured last.

    Args:
        n_blocks: That race for a place.
    """

    def __init__(self, model: Model, race: Race, n_blocks: int):
        self._model = model
        self._race = race
        self._n_blocks = n_blocks
        self._added: list[int] = []
        self._scores: list[Score] = []  # after each
        self._left: list[list[int]] = []  # after each, by what they add
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

    def cost(self, n: int) -> float:
        """KL divergence of the set of n blocks, which may be 0."""
        return self.score(n).quality.kl if n else 0.0

    def left_after(self, n: int) -> list[int]:
        """The blocks that are not in the set of n, by what they were last seen to add."""
        self.layers(n)
        return self._left[n - 1]

    def costs_beside(self, fixed: Sequence[int]) -> npt.NDArray[np.float64]:
        """float64 [n_rows, n_layer]: what each block adds to the KL divergence of each row that all were measured on;
        infinite where it can't be skipped."""
        self.layers(max(1, len(fixed)))
        n_rows = min(len(cost) for cost in self._costs.values())
        costs = np.full((n_rows, self._model.n_layer), np.inf)
        for il, cost in self._costs.items():
            costs[:, il] = cost[:n_rows]
        return costs

    def _add(self) -> None:
        left = self._left[-1] if self._added else list(self._model.skippable)
        racing = left[: self._n_blocks] if self._added else left
        by_config = {fixed_set([*self._added, il], self._model): il for il in racing}
        scores = self._race.run(list(by_config), _kl)
        for score in scores:
            before = self._scores[-1].kl[: len(score.kl)] if self._added else 0.0
            self._costs[by_config[score.config]] = score.kl - before
        if not self._added:
            self.alone = {il: self._mean_cost(il) for il in left}
        best = by_config[scores[0].config]
        self._added.append(best)
        self._scores.append(scores[0])
        self._left.append(sorted((il for il in left if il != best), key=self._mean_cost))

    def _mean_cost(self, il: int) -> float:
        return float(self._costs[il].mean())
