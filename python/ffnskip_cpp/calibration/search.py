"""The search for settings: of each policy the one that costs least where blocks that are left out save a given share.

1. A fixed set grows by greedy forward selection: in turn the block that adds least to the KL divergence for what it
   saves (costs.py). Blocks race for each place (race.py), at first all of them alone. Then blocks of the set are
   exchanged while that helps.
2. Settings of Algorithm 1 are simulated on recorded similarities by the hundred: region, max_skip, and the threshold
   that saves as much as is wanted. The sum of the costs of the blocks that a token would skip ranks them.
3. The best ranked of each policy race, and the threshold of the winner is corrected by what skipping itself does to the
   similarities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..measure.similarity import NEVER_TRIPS
from ..skip_config import SkipConfig
from .costs import ATTENTION, FFN, PerBlock
from .effort import Effort
from .evaluation import Evaluator, Score
from .race import Race
from .race import cost as race_cost
from .simulation import Region, ranks, skipped, solve, thresholds_at_rank, trips

__all__ = ["Block", "Candidate", "Model", "Search", "fixed_set"]

Block = tuple[int, int]
"""Layer and kind (costs.py): an index into `PerBlock`."""

SAME = 0.05  # share of the blocks skipped by which two settings differ that are worth measuring both
SHARE_TOLERANCE = 0.005  # of what is simulated or measured on the text of the search, from what is wanted
SWAPPED = 3  # blocks of the fixed set that may be exchanged at a time, and as many that may take their places
RANKED_ON = 512  # rows at most; thresholds of settings that are measured are solved on all


@dataclass(frozen=True)
class Model:
    """What the search has to know of a model."""

    n_layer: int
    skippable: tuple[Block, ...]
    """Those that may be left out, in ascending order."""
    share: PerBlock
    """What leaving out each block saves, as a share of what all of them cost."""
    cold_regions: tuple[int, int]
    """cold_s and cold_e as the similarity curve has them."""
    warm_up_index: int
    whole: frozenset[Block] = frozenset()
    """Those that may be left out of every row, prompts included."""

    def saved(self, blocks: Iterable[Block]) -> float:
        """The share that leaving out these saves."""
        return float(sum(self.share[block] for block in blocks))

    @property
    def typical(self) -> float:
        """The share that one block saves, on average."""
        return self.saved(self.skippable) / len(self.skippable)

    def ffn_beside(self, blocks: Sequence[Block]) -> list[int]:
        """Layers whose FFN block may be left out and is not among `blocks`."""
        return [il for il, kind in self.skippable if kind == FFN and (il, kind) not in blocks]


@dataclass(frozen=True)
class Adaptive:
    """Algorithm 1 over a region, beside a fixed set that may be empty."""

    fixed: tuple[Block, ...]
    region: Region
    per_layer: bool
    similarity: npt.NDArray[np.float32]
    """[n_rows, n_layer] that thresholds are solved on: of the model without the fixed set."""

    def thresholds(self, share: float, model: Model, *, at_most: int | None = None) -> tuple[list[float], float]:
        """Of each layer of the region, so that a token saves a share by skipping blocks of it; and what it then saves.
        Solved on `at_most` rows."""
        step = 1 if at_most is None else -(-len(self.similarity) // at_most)
        layers = list(self.region.layers)
        rows, gains = self.similarity[::step, layers], model.share[layers, FFN]
        threshold, found = solve(ranks(rows) if self.per_layer else rows, self.region.max_skip, gains, share)
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
            return SkipConfig(layer_thresholds=every, **common)
        return SkipConfig(sim_threshold=thresholds[0], **_fields(self.fixed), **common)


@dataclass(frozen=True)
class Candidate:
    """A setting, what it costs on the pieces, and what its thresholds were solved with."""

    config: SkipConfig
    score: Score
    adaptive: Adaptive | None = None
    share: float = 0.0
    """That the adaptive blocks save, as the thresholds were solved."""

    def saving_more(self, share: float, model: Model) -> Candidate:
        """The same with thresholds that save a share more, or less if negative; not measured anew."""
        if self.adaptive is None:
            return self
        share = max(self.share + share, 0.0)
        thresholds, _ = self.adaptive.thresholds(share, model)
        return replace(self, config=self.adaptive.config(thresholds, model), share=share)


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
    def block_costs(self) -> dict[Block, float]:
        """KL divergence where a block is left out alone."""
        self._greedy.blocks(1)
        return self._greedy.alone

    @property
    def ffn_alone(self) -> Score:
        """The FFN block that costs least alone."""
        self._greedy.blocks(1)
        return self._greedy.ffn_alone

    def fixed(self, n: int) -> Score:
        """What the greedy set of n blocks costs."""
        return self._greedy.score(n)

    def saved(self, n: int) -> float:
        """The share that the greedy set of n blocks saves."""
        return self._model.saved(self._greedy.blocks(n))

    def candidates(self, share: float, tolerance: float) -> list[Candidate]:
        """The best setting found of each policy. A policy may have none.

        Args:
            share: To be saved.
            tolerance: By how much less a fixed set may save.
        """
        fixed = self._exchanged(self._greedy.saving(share - tolerance), share - tolerance)
        found = [self._best([self._dense(per_layer)], share) for per_layer in (False, True)[: 1 + self._effort.wide]]
        found.append(self._best(self._remainders(share), share))
        return [Candidate(fixed.config, fixed), *(candidate for candidate in found if candidate is not None)]

    def n_expected(self, share: float) -> int:
        """Blocks of the fixed set that saves so much, about."""
        n = int(np.ceil(share / self._model.typical - 1e-9))
        return min(max(1, n), len(self._model.skippable))

    def n_evaluations(self, share: float, tolerance: float) -> int:
        """Of chunks, about, that `candidates` takes where nothing is known yet."""
        n, n_chunks, first = self.n_expected(share - tolerance), len(self.race.chunks), self.race.first
        for_places = race_cost(len(self._model.skippable), n_chunks, first)
        for_places += (n - 1) * race_cost(self._effort.n_blocks, n_chunks, first)
        exchanges = self._effort.n_swaps * race_cost(self._n_exchanges(n), n_chunks, first)
        n_policies = 2 + self._effort.wide
        policies = n_policies * (race_cost(self._effort.n_ranked, n_chunks, first) + 2 * n_chunks)
        return for_places + exchanges + policies

    # ---- the fixed set ----

    def _n_exchanges(self, n: int) -> int:
        return min(n, SWAPPED) * min(len(self._model.skippable) - n, SWAPPED)

    def _exchanged(self, n: int, share: float) -> Score:
        """The greedy set of n with blocks exchanged one by one, those that were added last for those that nearly were,
        where it still saves the share."""
        score, blocks = self._greedy.score(n), self._greedy.blocks(n)
        left = self._greedy.left_after(n)
        for _ in range(self._effort.n_swaps):
            added_last = [block for block in reversed(self._greedy.blocks(n)) if block in blocks][:SWAPPED]
            sets = (
                [*(block for block in blocks if block != out), new]
                for out in added_last
                for new in [block for block in left if block not in blocks][:SWAPPED]
            )
            others = {fixed_set(s, self._model): s for s in sets if self._model.saved(s) >= share - 1e-9}
            if not others:
                break
            best = self.race.run(list(others), _kl)[0]
            if best.quality.kl >= score.quality.kl:
                break
            score, blocks = best, others[best.config]
        return score

    # ---- Algorithm 1 ----

    def _dense(self, per_layer: bool) -> Family:
        similarity = np.concatenate([self._evaluator.similarity(chunk) for chunk in self.race.chunks])
        return Family((), per_layer, self._similarity, similarity)

    def _remainders(self, share: float) -> list[Family]:
        """A fixed set of one block less than saves the share, or two, beside which Algorithm 1 skips the rest."""
        most = self._greedy.saving(share) - 1
        sizes = range(max(1, most - self._effort.wide), most + 1)
        sets = [tuple(sorted(self._greedy.blocks(n))) for n in sizes]
        # With less than two FFN blocks left there is none to check and one to skip.
        return [self._beside(fixed) for fixed in sets if len(self._model.ffn_beside(fixed)) >= 2]

    def _beside(self, fixed: tuple[Block, ...]) -> Family:
        free = tuple(il for il in range(self._model.n_layer - 1) if (il, FFN) not in fixed)
        checks_only = Adaptive(fixed, Region(free, 1), False, self._similarity).config([NEVER_TRIPS], self._model)
        similarity = self._evaluator.score(checks_only, self.race.chunks).similarity
        return Family(fixed, False, similarity, similarity)

    def _best(self, families: Sequence[Family], share: float) -> Candidate | None:
        """The winner of those that the simulation ranks first."""
        ranked = [entry for family in families for entry in self._ranked(family, share)]
        settings: dict[SkipConfig, Adaptive] = {}
        for entry in _first_different(ranked, self._effort.n_ranked):
            thresholds, _ = entry.setting.thresholds(share - self._model.saved(entry.setting.fixed), self._model)
            settings.setdefault(entry.setting.config(thresholds, self._model), entry.setting)
        if not settings:
            return None
        score = self.race.run(list(settings), Score.kl_per_saved)[0]
        setting = settings[score.config]
        candidate = Candidate(score.config, score, setting, share - self._model.saved(setting.fixed))
        return self._corrected(candidate, share)

    def _ranked(self, family: Family, share: float) -> list[Ranked]:
        free = self._model.ffn_beside(family.fixed)
        costs = self._greedy.costs_beside(family.fixed)
        similarity = family.of_race[: len(costs)]
        of_fixed = self._greedy.cost(len(family.fixed))
        share -= self._model.saved(family.fixed)
        ranked = []
        for region in _regions(free, share, self._model):
            setting = Adaptive(family.fixed, region, family.per_layer, family.similarity)
            thresholds, saved = setting.thresholds(share, self._model, at_most=RANKED_ON)
            if abs(saved - share) <= SHARE_TOLERANCE:
                skips = setting.skips(thresholds, similarity)
                saved = float((skips * self._model.share[:, FFN]).sum())
                cost = float(costs[skips].sum()) / max(saved, 1e-9) * share + of_fixed
                ranked.append(Ranked(cost, setting.checks(thresholds, similarity), setting, skips))
        return ranked

    def _corrected(self, candidate: Candidate, share: float) -> Candidate:
        """With the threshold that makes up for what it saves too much or too little."""
        lacking = share - candidate.score.saved
        if abs(lacking) <= SHARE_TOLERANCE:
            return candidate
        other = candidate.saving_more(lacking, self._model)
        other = replace(other, score=self.race.score(other.config))
        return min(candidate, other, key=lambda found: abs(found.score.saved - share))


def _kl(score: Score) -> npt.NDArray[np.float64]:
    return score.kl


@dataclass(frozen=True)
class Family:
    """Settings of Algorithm 1 that differ in region, max_skip and thresholds."""

    fixed: tuple[Block, ...]
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


def _regions(free: Sequence[int], share: float, model: Model) -> Iterator[Region]:
    """Regions that may save a share: from each layer on, and up to where only a trip in the first layer skips max_skip,
    a little further, to where the similarity falls, and to the end."""
    most = max((float(model.share[il, FFN]) for il in free), default=0.0)
    least = max(1, int(np.ceil(share / most - 1e-9))) if most > 0.0 else len(free)
    for first in range(len(free) - least):
        for max_skip in range(least, min(2 * least + 2, len(free) - first)):
            ends = {first + max_skip + 1, first + max_skip + 3, len(free)}
            ends.add(sum(il < model.cold_regions[1] for il in free))
            for end in sorted(ends):
                if first + max_skip < end <= len(free):
                    yield Region(tuple(free[first:end]), max_skip)


# ---- the fixed set ----


def fixed_set(blocks: Sequence[Block], model: Model) -> SkipConfig:
    return SkipConfig(**_fields(blocks), max_skip=0, warm_up_index=model.warm_up_index)


def _fields(blocks: Sequence[Block]) -> dict[str, Any]:
    """Of the setting that leaves out these."""
    of_kind = {"attention_layers": ATTENTION, "layers": FFN}
    found = {name: sorted(il for il, of in blocks if of == kind) for name, kind in of_kind.items()}
    return {name: layers for name, layers in found.items() if layers}


class GreedySet:
    """Greedy forward selection on what a block adds to the KL divergence for what it saves, as far as it is asked for.

    For the first place all blocks race; for each other one those that added least when they were measured last.

    Args:
        n_blocks: That race for a place.
    """

    def __init__(self, model: Model, race: Race, n_blocks: int):
        self._model = model
        self._race = race
        self._n_blocks = n_blocks
        self._added: list[Block] = []
        self._scores: list[Score] = []  # after each
        self._left: list[list[Block]] = []  # after each, by what they add
        self._costs: dict[Block, npt.NDArray[np.float64]] = {}  # [n_rows] of each block, when it was measured last
        self.alone: dict[Block, float] = {}
        self.ffn_alone: Score

    def blocks(self, n: int) -> list[Block]:
        """The set of n."""
        while len(self._added) < n:
            self._add()
        return self._added[:n]

    def saving(self, share: float) -> int:
        """Blocks of the smallest set that saves so much; of the largest, where none does."""
        n = 1
        while n < len(self._model.skippable) and self._model.saved(self.blocks(n)) < share - 1e-9:
            n += 1
        return n

    def score(self, n: int) -> Score:
        self.blocks(n)
        return self._scores[n - 1]

    def cost(self, n: int) -> float:
        """KL divergence of the set of n blocks, which may be 0."""
        return self.score(n).quality.kl if n else 0.0

    def left_after(self, n: int) -> list[Block]:
        """The blocks that are not in the set of n, by what they were last seen to add for what they save."""
        self.blocks(n)
        return self._left[n - 1]

    def costs_beside(self, fixed: Sequence[Block]) -> npt.NDArray[np.float64]:
        """float64 [n_rows, n_layer]: what each FFN block adds to the KL divergence of each row that all were measured
        on; infinite where it can't be skipped."""
        self.blocks(max(1, len(fixed)))
        of_ffn = {il: cost for (il, kind), cost in self._costs.items() if kind == FFN}
        n_rows = min(len(cost) for cost in of_ffn.values())
        costs = np.full((n_rows, self._model.n_layer), np.inf)
        for il, cost in of_ffn.items():
            costs[:, il] = cost[:n_rows]
        return costs

    def _add(self) -> None:
        left = self._left[-1] if self._added else list(self._model.skippable)
        racing = left[: self._n_blocks] if self._added else left
        by_config = {fixed_set([*self._added, block], self._model): block for block in racing}

        def added(score: Score) -> npt.NDArray[np.float64]:
            return score.kl - self._scores[-1].kl[: len(score.kl)] if self._added else score.kl

        scores = self._race.run(
            list(by_config), lambda score: added(score) / self._model.share[by_config[score.config]]
        )
        self._costs.update({by_config[score.config]: added(score) for score in scores})
        if not self._added:
            self.alone = {block: float(self._costs[block].mean()) for block in left}
            self.ffn_alone = next((score for score in scores if by_config[score.config][1] == FFN), scores[0])
        best = by_config[scores[0].config]
        self._added.append(best)
        self._scores.append(scores[0])
        self._left.append(sorted((block for block in left if block != best), key=self._cost_for_saved))

    def _cost_for_saved(self, block: Block) -> float:
        return float(self._costs[block].mean() / self._model.share[block])
