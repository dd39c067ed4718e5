"""What a setting costs on some text, teacher-forced: KL divergence, agreement, perplexity, next to the dense model."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..llama import Llama
from ..measure.policies import all_kept
from ..measure.quality import Comparison, Quality, Reference, logits_of
from ..measure.similarity import check_everything, layer_similarity
from ..measure.text import Chunk
from ..memory import available_memory
from ..skip_config import SkipConfig, TensorsName
from ..stats import Trace
from .cache import Arrays, Cache
from .costs import ATTENTION, FFN, FFN_INPUTS, KEYS_AND_VALUES, Costs, LeftOut
from .progress import Bar
from .timing import measure_costs

__all__ = ["Evaluator", "Score"]

KEPT_BYTES = 2**31  # of the dense model's predictions at most, and a quarter of the memory that is free


@dataclass
class Score:
    """What a setting does on some text. Rows are the tokens that may skip and predict a known one."""

    config: SkipConfig
    quality: Quality = field(default_factory=Quality)
    kl: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """float64 [n_rows]: KL(dense || this), nats."""
    chunk: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 [n_rows]: the chunk that a row is of."""
    similarity: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """float32 [n_rows, n_layer]; NaN where unchecked."""
    channels_kept: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 4)))
    """float64 [n_layer, 4]: share kept of the channels of each input; NaN where none may be left out. No layers but
    with policy "channels"."""
    saved: float = 0.0
    """What is left out: a share of the costs of all blocks, which is what the search is about."""
    skip_ratio: float = 0.0
    """The same as a share of their bytes."""
    speed_up: float = 1.0
    """That the costs foretell."""

    @property
    def checks(self) -> float:
        """Similarities computed per token."""
        return float((~np.isnan(self.similarity)).sum(axis=1).mean())

    def kl_per_saved(self) -> npt.NDArray[np.float64]:
        """float64 [n_rows]: settings that were meant to save the same save a little more or less on some text."""
        return self.kl / max(self.saved, 1e-9)


class Evaluator:
    """Evaluates settings on chunks of text. What it measured is in a cache, and not measured again.

    Args:
        warm_up_index: Of every setting.
    """

    def __init__(self, llm: Llama, cache: Cache, warm_up_index: int, progress: Bar):
        self._llm = llm
        self._cache = cache
        self._warm_up_index = warm_up_index
        self._progress = progress
        self._known: dict[tuple[object, ...], Arrays] = {}
        self._kept: dict[str, Reference] = {}
        self._room = min(KEPT_BYTES, available_memory() / 4)
        self._n_measured, self._seconds = 0, 0.0
        self._input_bytes = np.empty((0, 4, 2))  # where channels may be left out
        self._n_done = 0  # tokens that were measured, or found in the cache

    @property
    def tokens_per_second(self) -> float:
        """Of what was compared so far; 0 where nothing was."""
        return self._n_measured / self._seconds if self._seconds else 0.0

    @contextlib.contextmanager
    def at_most(self, n_tokens: int) -> Iterator[None]:
        """What is evaluated within the block was expected to be so many tokens, and may turn out to be fewer."""
        before = self._n_done
        yield
        self._progress.found(max(n_tokens - (self._n_done - before), 0))

    def weigh(self, n_bytes: Costs, costs: Costs) -> None:
        """From here on what settings leave out is measured by these."""
        self._n_bytes, self._costs = n_bytes, costs

    def costs(self, n_bytes: Costs, channels: TensorsName | None, n_depth: int) -> Costs:
        """On this machine, as `measure_costs` has them: when a calibration goes on, those that it began with."""
        key = ("costs", self._llm.n_threads, n_bytes.as_dict(), channels, n_depth)
        found = self._cache.find(*key)
        if found is None:
            measured = measure_costs(self._llm, n_bytes, channels=channels, n_depth=n_depth)
            self._cache.add({name: np.asarray(value) for name, value in vars(measured).items()}, *key)
            return measured
        return Costs(float(found["per_token"]), found["per_block"], found["per_byte"], float(found["per_check"]))

    def inputs(self, tensors: TensorsName) -> npt.NDArray[np.float64]:
        """float64 [n_layer, 4, 2]: the bytes that the products of each input read with none of its channels and with
        all; 0 where none may be left out.

        Raises:
            UnsupportedModelError: No channels can be left out.
        """
        with self._llm.skipping(self._no_channels_left_out(tensors)):
            self._input_bytes = self._llm.input_bytes.astype(np.float64)
        return self._input_bytes

    def reaches(self, tensors: TensorsName, chunk: Chunk) -> npt.NDArray[np.uint64]:
        """uint64 [n_layer, 4, n_bins]: of the dense model, how far channels reach, as `Trace.reaches` has it."""
        config = self._no_channels_left_out(tensors)
        key = ("reaches", config, self._digest(chunk))
        found = self._find(key, chunk)
        if found is None:
            with self._llm.skipping(config), self._llm.trace(reaches=True) as trace:
                self._llm.forward(chunk.tokens, chunk.eligible(self._warm_up_index), rows=())
            found = {"reaches": trace.reaches}
            self._add(found, key, chunk)
        return found["reaches"]

    def _no_channels_left_out(self, tensors: TensorsName) -> SkipConfig:
        return all_kept(self._llm.n_layer, tensors, self._warm_up_index)

    def similarity(self, chunk: Chunk) -> npt.NDArray[np.float32]:
        """float32 [n_rows, n_layer]: of the dense model, at every layer but the last."""
        config = check_everything(self._llm.n_layer, self._warm_up_index)
        key = ("similarity", config, self._digest(chunk))
        found = self._find(key, chunk)
        if found is None:
            with self._llm.skipping(config), self._llm.trace() as trace:
                # Without logits, which take most of the time of small models.
                self._llm.forward(chunk.tokens, chunk.eligible(self._warm_up_index), rows=())
            found = {"similarity": trace.similarity[: len(chunk.rows(self._warm_up_index))]}
            self._add(found, key, chunk)
        return found["similarity"]

    def layer_similarity(self, chunk: Chunk) -> npt.NDArray[np.float32]:
        """float32 [n_rows, n_layer]: of the dense model, what goes into a layer and what comes out of it."""
        config = check_everything(self._llm.n_layer, self._warm_up_index)
        key = ("layer similarity", config, self._digest(chunk))
        found = self._find(key, chunk)
        if found is None:
            found = {"layer_similarity": layer_similarity(self._llm, chunk, self._warm_up_index)}
            self._add(found, key, chunk)
        return found["layer_similarity"]

    def score(self, config: SkipConfig, chunks: Sequence[Chunk]) -> Score:
        """Raises ValueError where the setting does not fit the model."""
        return self.scores([config], chunks)[0]

    def scores(self, configs: Sequence[SkipConfig], chunks: Sequence[Chunk]) -> list[Score]:
        """Chunk by chunk, so that the dense model is evaluated once for all of them."""
        parts = [self._of_chunk(configs, chunk) for chunk in chunks]
        return [self._sum(config, of_config) for config, of_config in zip(configs, zip(*parts))]

    def _sum(self, config: SkipConfig, parts: Sequence[Arrays]) -> Score:
        score = Score(config)
        for part in parts:
            score.quality.add(Comparison(part["kl"], part["same_top1"], part["nll_dense"], part["nll"]))
        score.kl, score.similarity = (np.concatenate([part[name] for part in parts]) for name in ("kl", "similarity"))
        n_rows = [len(part["kl"]) for part in parts]
        score.channels_kept, blocks, n_bytes = (
            np.average([part[name] for part in parts], axis=0, weights=n_rows)
            for name in ("channels_kept", "blocks_left_out", "bytes_left_out")
        )
        left_out = LeftOut(blocks, n_bytes, score.checks)
        score.saved, score.speed_up = self._costs.share(left_out), self._costs.speed_up(left_out)
        score.skip_ratio = self._n_bytes.share(left_out)
        score.chunk = np.repeat(np.arange(len(parts)), n_rows)
        return score

    def _of_chunk(self, configs: Sequence[SkipConfig], chunk: Chunk) -> list[Arrays]:
        reference: Reference | None = None
        result = []
        for config in configs:
            key = ("measured", config, self._digest(chunk))
            found = self._find(key, chunk)
            if found is None:
                reference = reference or self._reference(chunk)
                found = self._measure(config, chunk, reference)
                self._add(found, key, chunk)
            result.append(found)
        return result

    def _find(self, key: tuple[object, ...], chunk: Chunk) -> Arrays | None:
        if key not in self._known:
            found = self._cache.find(*key)
            if found is None:
                return None
            self._known[key] = found
            self._n_done += len(chunk)
            self._progress.found(len(chunk))
        return self._known[key]

    def _add(self, measured: Arrays, key: tuple[object, ...], chunk: Chunk) -> None:
        self._known[key] = measured
        self._cache.add(measured, *key)
        self._n_done += len(chunk)
        self._progress(len(chunk))

    def _measure(self, config: SkipConfig, chunk: Chunk, reference: Reference) -> Arrays:
        started = time.monotonic()
        with self._llm.skipping(config), self._llm.trace() as trace:
            compared = reference.compare(logits_of(self._llm, chunk, self._warm_up_index))
        self._seconds += time.monotonic() - started
        self._n_measured += len(chunk)
        n = len(chunk.rows(self._warm_up_index))
        skipped = trace.skipped[:n]
        blocks = np.zeros((self._llm.n_layer, 3))
        blocks[:, FFN] = skipped.mean(axis=0)
        blocks[:, ATTENTION] = trace.attention_skipped[:n].mean(axis=0)
        if config.every_row or config.policy == "skip_decode":
            blocks[:, KEYS_AND_VALUES] = blocks[:, ATTENTION]
        kept, n_bytes = np.empty((0, 4)), np.zeros((self._llm.n_layer, 4))
        if config.policy == "channels":
            kept, n_bytes = self._channels(trace, skipped)
        return {
            **vars(compared),
            "similarity": trace.similarity[:n],
            "blocks_left_out": blocks,
            "bytes_left_out": n_bytes,
            "channels_kept": kept,
        }

    def _channels(
        self, trace: Trace, skipped: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Both [n_layer, 4]: the share kept of the channels of each input, and the bytes of those left out. None is
        kept of a block that is skipped, and its bytes are the block's."""
        kept = trace.kept[: len(skipped)].astype(np.float64)
        left_out = 1.0 - kept
        for values in (kept, left_out):
            values[..., FFN_INPUTS] = np.where(skipped[..., None], 0.0, values[..., FFN_INPUTS])
        return kept.mean(axis=0), np.nan_to_num(left_out.mean(axis=0)) * np.ptp(self._input_bytes, axis=-1)

    def _reference(self, chunk: Chunk) -> Reference:
        """Kept while there is room: the first chunks are those that are needed most."""
        key = self._digest(chunk)
        if key in self._kept:
            return self._kept[key]
        reference = Reference.of(self._llm, chunk, self._warm_up_index)
        self._progress(len(chunk))
        if sum(kept.nbytes for kept in self._kept.values()) + reference.nbytes <= self._room:
            self._kept[key] = reference
        return reference

    def _digest(self, chunk: Chunk) -> str:
        tokens, eligible = np.array(chunk.tokens, np.int32), np.array(chunk.eligible(self._warm_up_index))
        return hashlib.sha256(tokens.tobytes() + eligible.tobytes()).hexdigest()
