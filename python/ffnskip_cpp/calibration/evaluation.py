"""What a setting costs on some text, teacher-forced: KL divergence, agreement, perplexity, next to the dense model."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core import SkipConfig
from ..analysis.measure import check_everything, skipping
from ..llama import Llama
from ..quality import Comparison, Quality, compare
from .journal import Journal

__all__ = ["Evaluator", "Score"]

CACHED_BYTES = 2**29  # of the dense model's logits

Tokens = Sequence[int]


@dataclass
class Score:
    """What a setting does on some text. Rows are the tokens that may skip, past the warm-up."""

    config: SkipConfig
    n_ffn: int
    quality: Quality = field(default_factory=Quality)
    kl: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """float64 [n_rows]: KL(dense || this), nats."""
    similarity: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """float32 [n_rows, n_layer]; NaN where unchecked."""
    skipped: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty((0, 0), np.bool_))
    """bool [n_rows, n_layer]."""

    @property
    def skip_ratio(self) -> float:
        """Skipped over all FFN blocks of the tokens that may skip."""
        return float(self.skipped.sum(axis=1).mean() / self.n_ffn)

    @property
    def checks(self) -> float:
        """Similarities computed per token."""
        return float((~np.isnan(self.similarity)).sum(axis=1).mean())


class Evaluator:
    """Evaluates settings on pieces of text. What it measured is in a journal, and not measured again.

    Args:
        warm_up_index: Of every setting: rows from this one on are compared.
        progress: Called with a number of tokens when they were evaluated, or found in the journal.
    """

    def __init__(self, llm: Llama, journal: Journal, warm_up_index: int, progress: Callable[[int], Any]):
        self._llm = llm
        self._journal = journal
        self._warm_up_index = warm_up_index
        self._progress = progress
        self._dense: OrderedDict[str, npt.NDArray[np.float32]] = OrderedDict()

    def similarity(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        """float32 [n_rows, n_layer]: of the dense model, at every layer but the last."""
        config = check_everything(self._llm.n_layer, self._warm_up_index)
        found = self._journal.find("similarity", config, _digest(tokens))
        if found is None:
            with skipping(self._llm, config), self._llm.trace() as trace:
                self._llm._evaluate(tokens, self._kinds(tokens))
            found = {"similarity": trace.similarity[self._warm_up_index : -1]}
            self._journal.add(found, "similarity", config, _digest(tokens))
        self._progress(len(tokens))
        return found["similarity"]

    def score(self, config: SkipConfig, pieces: Sequence[Tokens]) -> Score:
        """Raises ValueError where the setting does not fit the model."""
        return self.scores([config], pieces)[0]

    def scores(self, configs: Sequence[SkipConfig], pieces: Sequence[Tokens]) -> list[Score]:
        """Piece by piece, so that the dense model is evaluated once for all of them."""
        parts = [[self._compare(config, piece) for config in configs] for piece in pieces]
        n_ffn = len(self._llm.ffn_map)
        return [_sum(Score(config, n_ffn), of_config) for config, of_config in zip(configs, zip(*parts))]

    def _compare(self, config: SkipConfig, tokens: Tokens) -> dict[str, npt.NDArray[Any]]:
        found = self._journal.find("comparison", config, _digest(tokens))
        if found is None:
            found = self._measure(config, tokens)
            self._journal.add(found, "comparison", config, _digest(tokens))
        self._progress(len(tokens))
        return found

    def _measure(self, config: SkipConfig, tokens: Tokens) -> dict[str, npt.NDArray[Any]]:
        rows = slice(self._warm_up_index, -1)  # the last one predicts what is not known
        dense = self._dense_logits(tokens)
        with skipping(self._llm, config), self._llm.trace() as trace:
            compared = compare(dense, self._llm.forward(tokens)[rows], tokens[self._warm_up_index + 1 :])
        return {**vars(compared), "similarity": trace.similarity[rows], "skipped": trace.skipped[rows]}

    def _dense_logits(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        """[n_rows, n_vocab] of the rows that may skip; the last ones used are kept."""
        key = _digest(tokens)
        logits = self._dense.pop(key, None)
        if logits is None:
            with self._llm.dense():
                logits = self._llm.forward(tokens)[self._warm_up_index : -1]
            self._progress(len(tokens))
        self._dense[key] = logits
        while len(self._dense) > 1 and sum(kept.nbytes for kept in self._dense.values()) > CACHED_BYTES:
            self._dense.popitem(last=False)
        return logits

    def _kinds(self, tokens: Tokens) -> list[int]:
        return [self._llm._controller.row_kind(i) for i in range(len(tokens))]


def _digest(tokens: Tokens) -> str:
    return hashlib.sha256(np.array(tokens, np.int32).tobytes()).hexdigest()


def _sum(score: Score, parts: Sequence[dict[str, npt.NDArray[Any]]]) -> Score:
    for part in parts:
        score.quality.add(Comparison(part["kl"], part["same_top1"], part["nll_dense"], part["nll"]))
    score.kl, score.similarity, score.skipped = (
        np.concatenate([part[name] for part in parts]) for name in ("kl", "similarity", "skipped")
    )
    return score
