"""The search for channel thresholds: how much to leave out of each input of each layer.

What leaving out channels of one input costs grows with the energy of what is left out (reaches.py), and what several
inputs cost adds up. So with a cost for each input

    KL = sum over inputs of cost * energy(threshold)

is least, for what it saves, where threshold = factor * sqrt(what a channel saves / cost), with one factor for all
inputs: at its threshold a channel of each loses as much for what it saves, bytes or time (costs.py). One number for
each input remains to be measured.

Groups of neighbouring layers leave out a good part of the channels of one kind of input, the first and the last layer
by themselves, which are unlike all others. Layers of a group are taken to cost the same where they leave out the same
share, as they do, nearly: finer groups gain a percent. What results races (race.py) against equal shares in all layers.

Leaving out the least bit changes how every later layer's product rounds its input, which is a KL divergence of its own;
it is measured and taken off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..skip_config import SkipConfig
from ..stats import INPUT_KINDS
from .costs import PerInput
from .effort import Effort
from .evaluation import Evaluator, Score
from .race import Race
from .race import cost as race_cost
from .reaches import Inputs

__all__ = ["ChannelCandidate", "ChannelSearch", "groups"]

PROBED = np.array([0.5, 0.65, 0.45, 0.7])
"""Share of the channels left out where costs are measured, by kind: as much as makes them stand out of the rounding,
and what an input may come to."""
SLIGHTLY = 0.02  # share of the channels left out where it is the rounding that is measured
LEAST = 0.1  # part of a KL divergence that is not put down to rounding
EQUAL = 1.0 - 0.75 ** np.array([1.2, 1.35, 1.0, 2.0])
"""Shares left out, by kind, in the proportions that uncalibrated channels have: what is found is to be better."""
RATIO_TOLERANCE = 0.003  # of what a setting saves, from what is wanted
GROWTH = 3.0  # KL divergence grows with about this power of what is saved


@dataclass(frozen=True)
class ChannelCandidate:
    """Channel thresholds, perhaps beside a set of FFN blocks, and what they cost on the text of the search."""

    config: SkipConfig
    score: Score
    shape: PerInput
    """Thresholds in proportion."""
    ratio: float
    """That the thresholds were solved for."""


class ChannelSearch:
    """
    Args:
        race: Has the text that settings are measured on.
        warm_up_index: Of every setting.
    """

    def __init__(self, evaluator: Evaluator, inputs: Inputs, race: Race, effort: Effort, warm_up_index: int):
        self._evaluator = evaluator
        self._inputs = inputs
        self._race = race
        self._effort = effort
        self._warm_up_index = warm_up_index
        self._costs: PerInput | None = None
        self._shape: PerInput | None = None  # what won

    def candidate(self, ratio: float, layers: Sequence[int] = ()) -> ChannelCandidate | None:
        """The best thresholds found that save `ratio` where the FFN blocks of `layers` are skipped
        besides; None where that can't be."""
        shapes = self._first_shapes() if self._shape is None else [self._shape]
        racing = [found for shape in shapes if (found := self._solved(shape, ratio, layers)) is not None]
        if not racing:
            return None
        of_config = {candidate.config: candidate for candidate in racing}
        score = self._race.run(list(of_config), _kl_for_saved)[0]
        best = replace(of_config[score.config], score=score)
        self._shape = best.shape
        return self._corrected(best)

    def saving(self, candidate: ChannelCandidate, ratio: float) -> ChannelCandidate | None:
        """The same with other thresholds in the same proportions that save so much, or as much as can be, not measured
        anew; None where the blocks alone save more."""
        layers = candidate.config.layers or ()
        ratio = min(ratio, self._inputs.most(layers))
        thresholds = self._inputs.saving(candidate.shape, ratio, layers)
        if thresholds is None:
            return None
        config = candidate.config.replace(channel_thresholds=thresholds.ravel().tolist())
        return replace(candidate, config=config, ratio=ratio)

    def expected_ratio(self, max_kl: float) -> float:
        """What can be saved at a KL divergence, as far as the costs tell."""
        costs = np.where(self._inputs.usable, self.costs, 0.0)
        shape = np.sqrt(self._inputs.saved_per_channel / self.costs)
        factors = np.geomspace(1e-6, 1e6, 400)
        kl = [(costs * self._inputs.energy(factor * shape)).sum() for factor in factors]
        return min(self._inputs.saved(shape * float(np.interp(max_kl, kl, factors))), self._inputs.most())

    def n_evaluations(self) -> int:
        """Of chunks, about, that a candidate takes where nothing is known yet."""
        n_probes = 1 + sum(len(groups(kind, self._effort.group)) for kind in self._inputs.usable.T if kind.any())
        n_chunks = len(self._race.chunks)
        race = race_cost(2, n_chunks, self._race.first)
        return n_probes * self._n_probe_chunks() + race + n_chunks

    # ---- costs ----

    @property
    def costs(self) -> PerInput:
        """KL divergence for the energy left out of each input; infinite where nothing may be."""
        if self._costs is None:
            self._costs = self._measured_costs()
        return self._costs

    def _measured_costs(self) -> PerInput:
        chunks = self._race.chunks[: self._n_probe_chunks()]
        probed = self._inputs.below(PROBED)
        energy = self._inputs.energy(probed)
        probes = list(self._probes())
        configs = [self._config(np.where(probe, probed, 0.0)) for probe in probes]
        slightly = self._config(self._inputs.below(SLIGHTLY))
        rounding, *scores = self._evaluator.scores([slightly, *configs], chunks)
        costs = np.full(energy.shape, np.inf)
        for probe, score in zip(probes, scores):
            kl = max(score.quality.kl - rounding.quality.kl, LEAST * score.quality.kl)
            costs[probe] = kl / probe.sum() / np.maximum(energy[probe], 1e-30)
        return costs

    def _probes(self) -> Iterator[npt.NDArray[np.bool_]]:
        """bool [n_layer, 4]: the inputs that leave out channels together to be measured."""
        usable = self._inputs.usable
        for kind in range(len(INPUT_KINDS)):
            for group in groups(usable[:, kind], self._effort.group):
                probe = np.zeros(usable.shape, np.bool_)
                probe[group, kind] = True
                yield probe

    def _n_probe_chunks(self) -> int:
        return min(self._effort.probed_chunks, len(self._race.chunks))

    # ---- shapes ----

    def _first_shapes(self) -> list[PerInput]:
        """What the costs say, and equal shares."""
        return [np.sqrt(self._inputs.saved_per_channel / self.costs), self._inputs.below(EQUAL)]

    # ---- settings ----

    def _config(self, thresholds: PerInput, layers: Sequence[int] = ()) -> SkipConfig:
        return SkipConfig(
            "channels",
            channel_thresholds=thresholds.ravel().tolist(),
            layers=list(layers) or None,
            warm_up_index=self._warm_up_index,
        )

    def _solved(self, shape: PerInput, ratio: float, layers: Sequence[int]) -> ChannelCandidate | None:
        thresholds = self._inputs.saving(shape, ratio, layers)
        if thresholds is None:
            return None
        return ChannelCandidate(config := self._config(thresholds, layers), Score(config), shape, ratio)

    def _corrected(self, candidate: ChannelCandidate) -> ChannelCandidate:
        """With thresholds that make up for what it saves too much or too little, as what is left out changes how far
        the channels of later layers reach."""
        lacking = candidate.ratio - candidate.score.saved
        other = self.saving(candidate, candidate.ratio + lacking) if abs(lacking) > RATIO_TOLERANCE else None
        if other is None:
            return candidate
        other = replace(other, score=self._race.score(other.config))
        return min(candidate, other, key=lambda found: abs(found.score.saved - candidate.ratio))


def _kl_for_saved(score: Score) -> npt.NDArray[np.float64]:
    """Settings that were meant to save the same save a little more or less on some text."""
    saved = np.float64(max(score.saved, 1e-9))
    return score.kl / saved**GROWTH


def groups(usable: npt.NDArray[np.bool_], size: int) -> list[list[int]]:
    """Of the layers where `usable`, [n_layer], the first, the last, and those between in groups of about `size`."""
    layers = np.flatnonzero(usable)
    if len(layers) < 3:
        return [[int(il)] for il in layers]
    middle = np.array_split(layers[1:-1], -(-(len(layers) - 2) // size))
    return [[int(layers[0])], *(group.tolist() for group in middle), [int(layers[-1])]]
