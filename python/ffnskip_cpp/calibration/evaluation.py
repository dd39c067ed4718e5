"""What a setting costs on some text, teacher-forced: KL divergence, agreement, perplexity, next to the dense model."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..llama import Llama
from ..measure.quality import Comparison, Quality, Reference, logits_of
from ..measure.similarity import check_everything
from ..measure.text import Chunk
from ..memory import available_memory
from ..skip_config import SkipConfig
from .cache import Arrays, Cache
from .progress import Bar

__all__ = ["Evaluator", "Score"]

KEPT_BYTES = 2**31  # of the dense model's predictions at most, and a quarter of the memory that is free


@dataclass
class Score:
    """What a setting does on some text. Rows are the tokens that may skip and predict a known one."""

    config: SkipConfig
    n_ffn: int
    quality: Quality = field(default_factory=Quality)
    kl: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """float64 [n_rows]: KL(dense || this), nats."""
    chunk: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 [n_rows]: the chunk that a row is of."""
    similarity: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """float32 [n_rows, n_layer]; NaN where unchecked."""
    skipped: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty((0, 0), np.bool_))
    """bool [n_rows, n_layer]."""

    @cached_property
    def skip_ratio(self) -> float:
        """Skipped over all FFN blocks of the tokens that may skip."""
        return float(self.skipped.sum(axis=1).mean() / self.n_ffn)

    @property
    def checks(self) -> float:
        """Similarities computed per token."""
        return float((~np.isnan(self.similarity)).sum(axis=1).mean())

    def kl_per_block(self) -> npt.NDArray[np.float64]:
        """float64 [n_rows]: settings that were meant to skip the same skip a little more or less on some text."""
        return self.kl / max(self.skip_ratio, 1e-9)


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

    def score(self, config: SkipConfig, chunks: Sequence[Chunk]) -> Score:
        """Raises ValueError where the setting does not fit the model."""
        return self.scores([config], chunks)[0]

    def scores(self, configs: Sequence[SkipConfig], chunks: Sequence[Chunk]) -> list[Score]:
        """Chunk by chunk, so that the dense model is evaluated once for all of them."""
        parts = [self._of_chunk(configs, chunk) for chunk in chunks]
        n_ffn = len(self._llm.ffn_map)
        return [_sum(Score(config, n_ffn), of_config) for config, of_config in zip(configs, zip(*parts))]

    def _of_chunk(self, configs: Sequence[SkipConfig], chunk: Chunk) -> list[Arrays]:
        reference: Reference | None = None
        result = []
        for config in configs:
            key = ("comparison", config, self._digest(chunk))
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
        return {**vars(compared), "similarity": trace.similarity[:n], "skipped": trace.skipped[:n]}

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


def _sum(score: Score, parts: Sequence[Arrays]) -> Score:
    for part in parts:
        score.quality.add(Comparison(part["kl"], part["same_top1"], part["nll_dense"], part["nll"]))
    score.kl, score.similarity, score.skipped = (
        np.concatenate([part[name] for part in parts]) for name in ("kl", "similarity", "skipped")
    )
    score.chunk = np.repeat(np.arange(len(parts)), [len(part["kl"]) for part in parts])
    return score
