"""How little FFN blocks change the residual: the similarities that Algorithm 1 decides by (Figure 2 of FFN-SkipLLM).

chunks = chunks_of_tokens(llm, read_texts(["text.txt"]), n_ctx=512)
similarity = measure_similarity(llm, chunks)
print(similarity.mean, similarity.cold_regions)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..llama import Llama
from ..progress import Told, nobody
from ..skip_config import SkipConfig
from .cold_regions import cold_regions
from .text import Chunk

__all__ = [
    "ALWAYS_TRIPS",
    "NEVER_TRIPS",
    "LayerSimilarity",
    "block_influence",
    "check_everything",
    "layer_similarity",
    "measure_similarity",
]

# Thresholds; a cosine is neither below -1 nor above 1.
ALWAYS_TRIPS = -2.0
NEVER_TRIPS = 2.0

QUANTILES = (0.1, 0.9)

Row = dict[str, Any]


def check_everything(n_layer: int, warm_up_index: int = 0) -> SkipConfig:
    """Every layer is checked but the last, and nothing is skipped."""
    return SkipConfig(sim_threshold=NEVER_TRIPS, cold_s=0, cold_e=n_layer - 1, warm_up_index=warm_up_index, max_skip=1)


@dataclass(frozen=True)
class LayerSimilarity:
    """Cosine of the residual before and after the FFN block of each layer; NaN where there is none to check."""

    mean: npt.NDArray[np.float64]  # [n_layer]
    low: npt.NDArray[np.float64]  # [n_layer], the 10 % quantile over tokens
    high: npt.NDArray[np.float64]  # [n_layer], the 90 % quantile
    n_tokens: int

    @property
    def cold_regions(self) -> tuple[int, int]:
        """`cold_regions` of the mean."""
        return cold_regions(self.mean)

    @staticmethod
    def of(similarity: npt.NDArray[np.float32]) -> LayerSimilarity:
        """Of similarities [n_tokens, n_layer], NaN where unchecked."""
        seen = ~np.isnan(similarity).all(axis=0)
        values = similarity[:, seen].astype(np.float64)
        mean, low, high = (np.full(similarity.shape[1], np.nan) for _ in range(3))
        mean[seen] = np.nanmean(values, axis=0)
        low[seen], high[seen] = np.nanquantile(values, QUANTILES, axis=0)
        return LayerSimilarity(mean, low, high, len(similarity))

    def rows(self) -> list[Row]:
        return [
            {"layer": il, "mean": float(mean), "quantile_10": float(low), "quantile_90": float(high)}
            for il, (mean, low, high) in enumerate(zip(self.mean, self.low, self.high))
        ]


def measure_similarity(llm: Llama, chunks: Sequence[Sequence[int]], progress: Told = nobody) -> LayerSimilarity:
    """Figure 2: similarity of every layer but the last (which llama.cpp evaluates for some rows only) and every token.

    Teacher-forced and without skipping. The first token of each chunk counts as a prompt: it is an outlier in most
    models, and no generation starts with nothing.

    Raises:
        ValueError: The model has no FFN block to check.
    """
    values = []
    with llm.skipping(check_everything(llm.n_layer)):
        for chunk in chunks:
            with llm.trace() as trace:
                llm.forward(chunk, [i > 0 for i in range(len(chunk))], rows=())
            values.append(trace.similarity)
            progress(len(chunk))
    return LayerSimilarity.of(np.concatenate(values))


# ---- whole layers ----


def layer_similarity(llm: Llama, chunk: Chunk, warm_up_index: int) -> npt.NDArray[np.float32]:
    """Of the dense model: cosine of what goes into a layer and what comes out of it.

    Returns:
        float32 [n_rows, n_layer], of the tokens of the chunk that may skip; NaN where there is no FFN block to check.
    """
    with llm.skipping(check_everything(llm.n_layer, warm_up_index)), llm.trace(layers=True) as trace:
        llm.forward(chunk.tokens, chunk.eligible(warm_up_index), rows=())
    return trace.layer_similarity[: len(chunk.rows(warm_up_index))]


def block_influence(similarity: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """float64 [n_layer]: 1 - the mean of `layer_similarity`, [n_rows, n_layer] (Men et al. 2024); NaN where there is
    none."""
    seen = ~np.isnan(similarity).all(axis=0)
    influence = np.full(similarity.shape[1], np.nan)
    influence[seen] = 1.0 - np.nanmean(similarity[:, seen], axis=0, dtype=np.float64)
    return influence
