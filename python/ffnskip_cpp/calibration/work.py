"""The course of a calibration: what is recorded, searched and compared, and what is chosen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import TargetUnreachableError, UnsupportedModelError
from ..llama import Llama
from ..measure.similarity import LayerSimilarity, block_influence
from ..measure.text import Chunk
from ..skip_config import SkipConfig
from .channels import GROWTH, ChannelCandidate, ChannelSearch
from .choice import TOLERANCE, Row, beats, best, most_within, row_of
from .costs import BLOCK_KINDS, FFN, Costs, byte_costs_of, read_costs
from .effort import EFFORTS, SEARCHED_ROWS, Effort
from .evaluation import Evaluator, Score
from .layers import short_gpt, skip_decode
from .parts import Parts
from .progress import Bar
from .race import Race
from .reaches import Inputs
from .search import Candidate, Model, Search, fixed_set
from .wanted import MEASURED, Wanted

__all__ = ["Found", "Work"]

RECORDED_TOKENS = 8192  # at most, for the similarities of the dense model
REACHED_TOKENS = 4096  # at most, for how far its channels reach
TINY = 1e-12  # nats, in place of a KL divergence of 0 where its logarithm is taken
RATIOS_COMPARED = 4  # on held-out text, to find the highest one within a KL divergence
RATIOS_COST = 2  # times what one of them takes: they have most of their fixed sets in common
NEARLY = 0.95  # of a KL divergence that is not to be exceeded: near enough to it
TYPICAL_RATIO = 0.25
N_COMPARED = 7  # settings, about: the best of each policy, one corrected, and the references
BEHIND = 2.0  # times what channels cost: blocks that cost more for less are not worth a search

# What calibration is to be better than.
REFERENCES = {
    "ffn_skip, uncalibrated": SkipConfig(),
    "random in adaptive region": SkipConfig("random", region="adaptive"),
    "random": SkipConfig("random"),
}
UNCALIBRATED = "channels, uncalibrated"


@dataclass(frozen=True)
class Found:
    """The end of a calibration."""

    chosen: Row
    rows: list[Row]
    """On held-out text: the best setting of each policy, then those they are compared with."""


class Work:
    """Records what the dense model does, then looks for settings; `notes` gets what is to be said about it.

    Skip ratios are shares of what the blocks of `wanted.tensors` cost: their weight bytes, where nothing else is given.

    Raises:
        ValueError: The effort is in seconds, and these are too few; no channels can be left out, and nothing else is to
            be tried (`UnsupportedModelError`).
    """

    def __init__(
        self,
        llm: Llama,
        evaluator: Evaluator,
        parts: Parts,
        wanted: Wanted,
        progress: Bar,
        notes: list[str],
    ):
        started = time.monotonic()
        self._llm = llm
        self._evaluator = evaluator
        self._parts = parts
        self._wanted = wanted
        self._progress = progress
        self.notes = notes

        input_bytes = self._input_bytes() if wanted.tries("channels") or wanted.tries("blocks+channels") else None
        n_bytes = byte_costs_of(llm, input_bytes)
        self.costs = self._found_costs(n_bytes, input_bytes is not None).of(wanted.tensors)
        """What is saved."""
        evaluator.weigh(n_bytes.of(wanted.tensors), self.costs)
        share = self.costs.share_per_block
        self._ffn_share = float(share[:, FFN].sum())
        whole = frozenset((block.layer, BLOCK_KINDS[block.kind]) for block in llm.blocks if block.skippable)
        skippable = tuple(sorted(block for block in whole if share[block] > 0))
        self._check_reachable(float(sum(share[block] for block in skippable)))

        recorded = parts.recorded(RECORDED_TOKENS)
        progress.expect(sum(map(len, recorded)))
        self._recorded = np.concatenate([evaluator.similarity(chunk) for chunk in recorded])
        self.similarity = LayerSimilarity.of(self._recorded)
        cold = self.similarity.cold_regions
        self._model = Model(llm.n_layer, skippable, share, cold, wanted.warm_up_index, whole)
        self._inputs = None if input_bytes is None else self._found_inputs(input_bytes)

        effort = wanted.effort
        level = EFFORTS[effort] if isinstance(effort, str) else self._affordable(effort, started)
        self._effort = level
        self._compared = parts.compared(level.compared_tokens)
        race = self._race_of(level)
        self.search = self._search(level, race)
        self._channels = self._channel_search(level, race)
        self._blocks_are_behind = False  # and are not searched for further
        n_rows = sum(len(chunk.rows(wanted.warm_up_index)) for chunk in self._searched(SEARCHED_ROWS))
        if n_rows < SEARCHED_ROWS:
            self.notes.append(
                f"the text has {n_rows} tokens to search with; with less than {SEARCHED_ROWS} the settings may suit "
                "this text alone: give more of it"
            )

    def _found_costs(self, n_bytes: Costs, channels: bool) -> Costs:
        wanted = self._wanted
        if wanted.costs is None:
            return n_bytes
        if wanted.costs != MEASURED:
            return read_costs(wanted.costs, self._llm)
        started = time.monotonic()
        costs = self._evaluator.costs(n_bytes, wanted.tensors if channels else None, wanted.n_depth)
        self.notes.append(f"costs measured in {time.monotonic() - started:.0f} seconds: {costs}")
        return costs

    def _check_reachable(self, most: float) -> None:
        wanted = self._wanted
        if wanted.policies == ("blocks",) and (wanted.skip_ratio or 0.0) > most + TOLERANCE:
            raise TargetUnreachableError(
                f"skip-ratio: {wanted.skip_ratio:g} can't be reached; at most {most:.3f}, which is every block that "
                "can be skipped"
            )

    def _input_bytes(self) -> npt.NDArray[np.float64] | None:
        """As `Evaluator.inputs` has them; None where no channels can be left out, and blocks are to be tried."""
        try:
            return self._evaluator.inputs(self._wanted.tensors)
        except UnsupportedModelError as error:
            if not self._wanted.tries("blocks"):
                raise
            self.notes.append(f"only blocks were tried: {error}")
            return None

    def _found_inputs(self, n_bytes: npt.NDArray[np.float64]) -> Inputs:
        chunks = self._parts.recorded(REACHED_TOKENS)
        self._progress.expect(sum(map(len, chunks)))
        counts = sum(self._evaluator.reaches(self._wanted.tensors, chunk).astype(np.float64) for chunk in chunks)
        n_rows = sum(len(chunk.rows(self._wanted.warm_up_index)) for chunk in chunks)
        return Inputs(n_bytes, np.asarray(counts), n_rows, self.costs)

    def _searched(self, n_rows: int) -> list[Chunk]:
        return self._parts.searched(n_rows, self._wanted.warm_up_index)

    def _race_of(self, level: Effort) -> Race:
        return Race(self._evaluator, self._searched(level.searched_rows), level.first_chunks)

    def _search(self, level: Effort, race: Race) -> Search:
        return Search(self._evaluator, self._model, self._recorded, race, level)

    def _channel_search(self, level: Effort, race: Race) -> ChannelSearch | None:
        if self._inputs is None:
            return None
        return ChannelSearch(self._evaluator, self._inputs, race, level, self._wanted.warm_up_index)

    def _affordable(self, seconds: float, started: float) -> Effort:
        """The greatest effort that takes no longer than `seconds`, by the speed of the first evaluations."""
        alone = fixed_set(self._model.skippable[:1], self._model)
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

    def found(self) -> Found:
        """What is chosen for the target.

        Raises:
            TargetUnreachableError: Every setting costs more than the KL divergence that is wanted, or none saves as
                much as is.
        """
        wanted = self._wanted
        return self._within_kl(wanted.limit) if wanted.limit is not None else self._at_ratio(wanted.skip_ratio or 0.0)

    def tried(self) -> list[Row]:
        """Every setting that was measured in the search, by all the text that it saw."""
        return [row_of(score, score.config.label, "calibration") for score in self.search.tried]

    def block_kl(self) -> npt.NDArray[np.float64]:
        """float64 [n_layer]: KL divergence where the FFN block of a layer is left out alone; NaN where it can't be, or
        was not tried."""
        result = np.full(self._model.n_layer, np.nan)
        if self._wanted.tries("blocks"):
            for (il, kind), cost in self.search.block_costs.items():
                if kind == FFN:
                    result[il] = cost
        return result

    # ---- at a ratio ----

    def _at_ratio(self, skip_ratio: float) -> Found:
        """The setting that saves so much or more with the least KL divergence."""
        self._progress.expect(self._n_tokens(self._effort, skip_ratio))
        channels = self._channel_candidates(skip_ratio)
        blocks = self._block_candidates(skip_ratio, channels) if self._wanted.tries("blocks") else []
        layers = self._layer_candidates(skip_ratio)
        if not blocks and not channels and not layers:
            raise TargetUnreachableError(f"skip-ratio: {skip_ratio:g} can't be reached by what is to be tried")
        rows, references = self._compare([*blocks, *channels, *layers], skip_ratio)
        chosen = best([*rows, *references], skip_ratio)
        if chosen.saved < skip_ratio - TOLERANCE:
            self.notes.append(f"no setting saves {skip_ratio:.1%} of held-out text; one that saves most was chosen")
        self._check_references(chosen, references)
        return Found(chosen, [*rows, *references])

    def _layer_candidates(self, skip_ratio: float) -> list[Candidate]:
        """Of each policy that leaves out whole layers."""
        configs: list[SkipConfig | None] = []
        if self._wanted.tries("short_gpt"):
            configs.append(short_gpt(self.layer_influence(), skip_ratio - TOLERANCE, self._model))
        if self._wanted.tries("skip_decode"):
            configs.append(skip_decode(skip_ratio, self._model))
        return [Candidate(config, Score(config)) for config in configs if config is not None]

    def layer_influence(self) -> npt.NDArray[np.float64]:
        """float64 [n_layer]: 1 - the mean cosine of what goes into a layer and what comes out of it; NaN of the last,
        and of all where policy short_gpt was not tried."""
        if not self._wanted.tries("short_gpt"):
            return np.full(self._model.n_layer, np.nan)
        recorded = self._parts.recorded(RECORDED_TOKENS)
        return block_influence(np.concatenate([self._evaluator.layer_similarity(chunk) for chunk in recorded]))

    def _channel_candidates(self, skip_ratio: float) -> list[ChannelCandidate]:
        """Channels alone, and beside the FFN block that costs least."""
        if self._channels is None:
            return []
        sets: list[Sequence[int]] = [()] if self._wanted.tries("channels") else []
        if self._wanted.tries("blocks+channels") and skip_ratio > self._model.typical:
            sets.append(self.search.ffn_alone.config.layers or ())
        found = [self._channels.candidate(skip_ratio, layers) for layers in sets]
        return [candidate for candidate in found if candidate is not None]

    def _block_candidates(self, skip_ratio: float, channels: Sequence[ChannelCandidate]) -> list[Candidate]:
        """Of each policy that leaves out blocks; the fixed set alone where it costs far more before that."""
        if skip_ratio > self._model.saved(self._model.skippable) + TOLERANCE:
            self.notes.append(f"all {self._blocks} together have less than {skip_ratio:.1%} of the cost")
            return []
        limit = BEHIND * min((candidate.score.quality.kl for candidate in channels), default=np.inf)
        for n in range(1, 1 if self._effort.wide else len(self._model.skippable)):
            if self.search.saved(n) >= skip_ratio - TOLERANCE:
                break
            if self.search.fixed(n).quality.kl > limit:
                self._give_up_blocks(
                    f"{n} of the {self.search.n_expected(skip_ratio - TOLERANCE)} {self._blocks} that would be needed "
                    f"cost more than {BEHIND:g} times what channels do; more were not tried"
                )
                return [self._fixed(n)]
        candidates = self.search.candidates(skip_ratio, TOLERANCE)
        if not any(candidate.config.label == "ffn_skip" for candidate in candidates):
            self.notes.append("Algorithm 1 can't skip that much")
        return candidates

    @property
    def _blocks(self) -> str:
        return "FFN blocks" if self._wanted.tensors == "ffn" else "blocks"

    def _fixed(self, n: int) -> Candidate:
        score = self.search.fixed(n)
        return Candidate(score.config, score)

    def _give_up_blocks(self, why: str) -> None:
        """All that is left is to compare a few settings."""
        self._blocks_are_behind = True
        self.notes.append(why)
        self._progress.expect(N_COMPARED * sum(map(len, self._compared)))

    # ---- within a KL divergence ----

    def _within_kl(self, max_kl: float) -> Found:
        """The setting that saves most at no higher KL divergence."""
        self._progress.expect(RATIOS_COST * self._n_tokens(self._effort, TYPICAL_RATIO))
        rows = self._channels_within(max_kl)
        if self._wanted.tries("blocks"):
            rows += self._blocks_within(max_kl, most_within(rows, max_kl))
        found = most_within(rows, max_kl)
        if found is None:
            rows = rows or self._compare([self._fixed(1)], 0.0, references=False)[0]
            raise TargetUnreachableError(_out_of_reach(max_kl, min(rows, key=lambda row: row.kl)))
        _, references = self._compare([], found.saved)
        chosen = most_within([*rows, *references], max_kl) or found
        self._check_references(chosen, references)
        return Found(chosen, [*rows, *references])

    def _channels_within(self, max_kl: float) -> list[Row]:
        """Channels alone, and beside the FFN block that costs least: what was compared on held-out text."""
        channels = self._channels
        if channels is None:
            return []
        rows: list[Row] = []
        ratio = channels.expected_ratio(max_kl)
        if self._wanted.tries("channels"):
            rows += self._saving_most(channels, max_kl, ratio, ())
            ratio = max((row.saved for row in rows if row.kl <= max_kl), default=ratio)
        if self._wanted.tries("blocks+channels") and self.search.ffn_alone.quality.kl < max_kl:
            rows += self._saving_most(channels, max_kl, ratio, self.search.ffn_alone.config.layers or ())
        return rows

    def _saving_most(self, channels: ChannelSearch, max_kl: float, ratio: float, layers: Sequence[int]) -> list[Row]:
        """The row of the channel thresholds that save most within the limit, or cost least, in the proportions that are
        best at `ratio`; for other ratios until it is nearly met. No row where nothing can be saved."""
        candidate = channels.candidate(ratio, layers)
        rows: list[Row] = []
        while candidate is not None and len(rows) < RATIOS_COMPARED:
            score = self._evaluator.score(candidate.config, self._compared)
            rows.append(row := row_of(score, score.config.label, "held out"))
            if NEARLY * max_kl <= row.kl <= max_kl:
                break
            towards = (1 + NEARLY) / 2 * max_kl
            factor = float(np.clip((towards / max(row.kl, TINY)) ** (1 / GROWTH), 0.5, 2.0))
            candidate = channels.saving(candidate, candidate.ratio + row.saved * (factor - 1))
        best_of_all = most_within(rows, max_kl) or min(rows, key=lambda row: row.kl, default=None)
        return [] if best_of_all is None else [best_of_all]

    def _blocks_within(self, max_kl: float, channels: Row | None) -> list[Row]:
        """Blocks: where so many save less than half of what channels do, the fixed set alone.

        KL divergence grows with what is saved. Where the two meet is foretold by the fixed sets, and corrected by what
        is seen on held-out text.
        """
        n, expected = self._set_at(max_kl)
        if channels is not None and BEHIND * expected < channels.saved and not self._effort.wide:
            none = self.search.fixed(1).quality.kl > max_kl
            one = self._blocks.removesuffix("s")
            which = (
                f"one {one} alone costs more" if none else f"about {expected:.0%} of the {self._blocks} cost as much"
            )
            self._give_up_blocks(f"{which}; other policies that skip blocks were not tried")
            return self._compare([self._fixed(n)], 0.0, references=False)[0]
        low, high = 0, int(100 * self._model.saved(self._model.skippable)) + 1  # percent: within, and not
        percent = min(max(round(100 * expected), low + 1), high - 1)
        compared: list[Row] = []
        n_compared = 0
        while high - low > 1 and (n_compared < RATIOS_COMPARED or most_within(compared, max_kl) is None):
            candidates = self.search.candidates(percent / 100, TOLERANCE)
            rows, _ = self._compare(candidates, percent / 100, references=False)
            n_compared += 1
            compared += rows
            met = any(row.kl <= max_kl and row.saved >= percent / 100 - TOLERANCE for row in rows)
            low, high = (percent, high) if met else (low, percent)
            percent += self._percent_to_go(max_kl, percent, rows, met)
            if not low < percent < high or n_compared >= RATIOS_COMPARED:
                percent = (low + high) // 2
        return compared

    def _percent_to_go(self, max_kl: float, percent: int, rows: Sequence[Row], met: bool) -> int:
        """By what the share changes between their KL divergence and the one that is wanted; at least one block down,
        as held-out text tends to cost more than the text that the sets were made for."""
        near = [row.kl for row in rows if abs(row.saved - percent / 100) <= 2 * TOLERANCE]
        step = round(100 * (self._set_at(max_kl)[1] - self._set_at(min(near))[1])) if near else 0
        return max(step, 1) if met else min(step, -round(100 * self._model.typical), -1)

    def _set_at(self, kl: float) -> tuple[int, float]:
        """The blocks of the largest fixed set within some KL divergence on the calibration text, one at least; and the
        share that is saved at it, between two sets by interpolation."""
        n = 1
        while n < len(self._model.skippable) and self.search.fixed(n).quality.kl <= kl:
            n += 1
        sets = range(1, n + 1)
        known = np.maximum.accumulate([max(self.search.fixed(i).quality.kl, TINY) for i in sets])
        share = float(np.interp(np.log(max(kl, TINY)), np.log(known), [self.search.saved(i) for i in sets]))
        return max(1, n if self.search.fixed(n).quality.kl <= kl else n - 1), share

    # ---- on held-out text ----

    def _compare(
        self, candidates: Sequence[Candidate | ChannelCandidate], skip_ratio: float, *, references: bool = True
    ) -> tuple[list[Row], list[Row]]:
        """The candidates on held-out text, and what they are to be better than. A threshold of a candidate that skips
        more or less of it is corrected, once."""
        named = self._references(skip_ratio) if references else {}
        configs = [*(candidate.config for candidate in candidates), *named.values()]
        scores = self._evaluator.scores(configs, self._compared)
        own, others = scores[: len(candidates)], scores[len(candidates) :]
        for i, (candidate, score) in enumerate(zip(candidates, own)):
            corrected = self._saving_more(candidate, skip_ratio - score.saved)
            if corrected is not None:
                again = self._evaluator.score(corrected, self._compared)
                own[i] = min(score, again, key=lambda s: abs(s.saved - skip_ratio))
        return (
            [row_of(score, score.config.label, "held out") for score in own],
            [row_of(score, name, "held out") for name, score in zip(named, others)],
        )

    def _saving_more(self, candidate: Candidate | ChannelCandidate, lacking: float) -> SkipConfig | None:
        """The candidate with what it lacks of a ratio; None where it is to stay as it is."""
        if isinstance(candidate, ChannelCandidate):
            if self._channels is None or abs(lacking) <= TOLERANCE / 4:
                return None
            other = self._channels.saving(candidate, candidate.ratio + lacking)
            return None if other is None else other.config
        if candidate.adaptive is None or abs(lacking) <= TOLERANCE / 2:
            return None
        return candidate.saving_more(lacking, self._model).config

    def _references(self, skip_ratio: float) -> dict[str, SkipConfig]:
        """Those that can skip so much of this model, by name."""
        references: dict[str, SkipConfig] = {}
        if self._wanted.tries("blocks") and not self._blocks_are_behind:
            ratio = min(skip_ratio / self._ffn_share, 1.0)
            references.update({name: reference.replace(skip_ratio=ratio) for name, reference in REFERENCES.items()})
        if self._channels is not None:
            references[UNCALIBRATED] = SkipConfig("channels", skip_ratio=skip_ratio, tensors=self._wanted.tensors)
        found = {}
        for name, reference in references.items():
            config = reference.replace(warm_up_index=self._model.warm_up_index)
            try:
                with self._llm.skipping(config):
                    found[name] = config
            except ValueError as error:  # the default regions are too small for it
                if (note := f"{name}: {error}") not in self.notes:
                    self.notes.append(note)
        return found

    def _check_references(self, chosen: Row, references: Sequence[Row]) -> None:
        for row in references:
            if beats(row, chosen):
                self.notes.append(f"{row.policy} is better, and no profile holds it; give more text to search with")

    # ---- what it takes ----

    def _n_tokens_at(self, level: Effort) -> int:
        """That are evaluated with this effort where nothing is known yet."""
        n = self._n_tokens(level, self._wanted.skip_ratio or TYPICAL_RATIO)
        return n if self._wanted.skip_ratio else RATIOS_COST * n

    def _n_tokens(self, level: Effort, skip_ratio: float) -> int:
        """That are evaluated for a ratio where nothing is known yet."""
        race = self._race_of(level)
        search, channels = self._search(level, race), self._channel_search(level, race)
        mean = sum(map(len, race.chunks)) / len(race.chunks)
        n = 0
        if self._wanted.tries("blocks"):
            n += search.n_evaluations(skip_ratio, TOLERANCE)
        if channels is not None:
            n += 2 * channels.n_evaluations()
        return round(mean * n) + (N_COMPARED + 1) * sum(map(len, self._parts.compared(level.compared_tokens)))


def _out_of_reach(max_kl: float, least: Row) -> str:
    return f"max-kl: {max_kl:g} can't be reached; skipping {least.skip_ratio:.1%} of the weights costs {least.kl:.3g}"
