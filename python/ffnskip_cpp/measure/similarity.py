"""The numbers behind the pictures of `ffnskip analyze`, after Figures 2 and 5 and Table 6 of FFN-SkipLLM.

    chunks = chunks_of_tokens(llm, read_texts(["text.txt"]), n_ctx=512)
    similarity = measure_similarity(llm, chunks)
    print(similarity.mean, similarity.cold_regions)

Every function takes an open `Llama`, gives it back with the `skip` it had, and returns an object with `rows()`, the
numbers as they go to a CSV file. None holds logits of more than one chunk (those of the dense model and of one other).
Teacher-forced evaluation takes a chunk for one generation from its first token on, as `Llama.forward` does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..llama import Llama
from ..skip_config import SkipConfig
from .quality import Comparison, Quality, compare

__all__ = [
    "Generation",
    "LayerSimilarity",
    "NeverTripped",
    "QualityPoint",
    "check_everything",
    "cold_regions",
    "measure_generation",
    "measure_never_tripped",
    "measure_quality",
    "measure_similarity",
    "skipping",
]

NEVER_TRIPS = 2.0  # a cosine is never above 1
QUANTILES = (0.1, 0.9)
FALL = 0.01  # of the mean similarity, from its maximum on: a "decreasing trend" rather than noise
GREEDY = {"temp": 0.0, "repeat_penalty": 1.0}

Row = dict[str, Any]
Progress = Callable[[int], Any]
"""Called with the number of tokens that were evaluated."""


def _no_progress(n_tokens: int) -> None:
    pass


def skipping(llm: Llama, config: SkipConfig) -> contextlib.AbstractContextManager[None]:
    """Within the block the model skips as `config` says. Raises ValueError where that does not fit the model."""
    return llm.skipping(config)


def check_everything(n_layer: int, warm_up_index: int = 0) -> SkipConfig:
    """Every layer is checked but the last, and nothing is skipped."""
    return SkipConfig(sim_threshold=NEVER_TRIPS, cold_s=0, cold_e=n_layer - 1, warm_up_index=warm_up_index, max_skip=1)


# ---- Figure 2: similarity per layer ----


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

    def rows(self) -> list[Row]:
        return [
            {"layer": il, "mean": float(mean), "quantile_10": float(low), "quantile_90": float(high)}
            for il, (mean, low, high) in enumerate(zip(self.mean, self.low, self.high))
        ]


def measure_similarity(
    llm: Llama, chunks: Sequence[Sequence[int]], progress: Progress = _no_progress
) -> LayerSimilarity:
    """Figure 2: similarity of every layer but the last (which llama.cpp evaluates for some rows only) and every token.

    Teacher-forced and without skipping. The first token of each chunk counts as a prompt: it is an outlier in most
    models, and no generation starts with nothing.

    Raises:
        ValueError: The model has no FFN block to check.
    """
    values = []
    with skipping(llm, check_everything(llm.n_layer)):
        for chunk in chunks:
            with llm.trace() as trace:
                llm.forward(chunk, [i > 0 for i in range(len(chunk))])
            values.append(trace.similarity)
            progress(len(chunk))
    similarity = np.concatenate(values).astype(np.float64)
    seen = ~np.isnan(similarity).all(axis=0)
    mean, low, high = (np.full(similarity.shape[1], np.nan) for _ in range(3))
    mean[seen] = np.nanmean(similarity[:, seen], axis=0)
    low[seen], high[seen] = np.nanquantile(similarity[:, seen], QUANTILES, axis=0)
    return LayerSimilarity(mean, low, high, len(similarity))


def cold_regions(mean: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Cold regions from the ends of the mean curve where it is not rising (FFN-SkipLLM, observation 3 and section 3.2).

    At the beginning, up to and including the lowest layer of the first half of those checked: from there on the curve
    rises. At the end, from where it has fallen by more than 0.01 below its maximum for good.

    Args:
        mean: float [n_layer], mean similarity; NaN where a layer was not checked, as the last one never is.
    Returns:
        cold_s and cold_e: layers [0, cold_s) and [cold_e, n_layer) are cold. 0 <= cold_s < cold_e < n_layer.
    Raises:
        ValueError: Fewer than two layers, or none of them checked.
    """
    layers = np.flatnonzero(~np.isnan(mean))
    layers = layers[layers < len(mean) - 1]
    if len(layers) == 0:
        raise ValueError("no layer was checked")
    first_half = layers[: len(layers) // 2]
    cold_s = int(first_half[mean[first_half].argmin()]) + 1 if len(first_half) else 0
    rest = layers[layers >= cold_s]
    high = rest[mean[rest] >= mean[rest].max() - FALL]
    return cold_s, int(high[-1]) + 1


# ---- Table 6: tokens that never trip ----


@dataclass(frozen=True)
class NeverTripped:
    """Of each generation and each of its tokens, whether it might have skipped and never reached the threshold."""

    never: npt.NDArray[np.bool_]  # [n_prompts, n_generated]
    warm_up_index: int

    def share(self) -> npt.NDArray[np.float64]:
        """float64 [n_generated]: up to and including each token, of the tokens that might have skipped; NaN before."""
        n_may_skip = np.maximum(np.arange(1, self.never.shape[1] + 1) - self.warm_up_index, 0) * len(self.never)
        with np.errstate(invalid="ignore"):
            return self.never.sum(axis=0).cumsum() / n_may_skip

    def rows(self, lengths: Sequence[int]) -> list[Row]:
        """For the first n generated tokens, for each n of `lengths`."""
        return [self._row(n) for n in lengths]

    def _row(self, n: int) -> Row:
        never, n_prompts = int(self.never[:, :n].sum()), len(self.never)
        may_skip = n_prompts * max(n - self.warm_up_index, 0)
        return {
            "generated_tokens": n,
            "prompts": n_prompts,
            "tokens_that_may_skip": may_skip,
            "never_tripped": never,
            "share_never_tripped": never / may_skip if may_skip else float("nan"),
            "share_of_all_tokens": never / (n_prompts * n),
        }

    def curve(self) -> list[Row]:
        """`share` token by token."""
        return [{"generated_tokens": n, "share_never_tripped": float(x)} for n, x in enumerate(self.share(), 1)]


def measure_never_tripped(
    llm: Llama,
    prompts: Sequence[Sequence[int]],
    n_generated: int,
    config: SkipConfig,
    progress: Progress = _no_progress,
) -> NeverTripped:
    """Table 6: greedy generation from each prompt, past end tokens, by Algorithm 1.

    Args:
        n_generated: Tokens of each generation that are fed back to the model.
        config: With the policy "ffn_skip".
    Raises:
        ValueError: A prompt and its generation do not fit the context.
    """
    never = np.zeros((len(prompts), n_generated), np.bool_)
    for i, prompt in enumerate(prompts):
        _, similarity, _ = _generate(llm, prompt, n_generated, config, progress)
        tripped = (similarity >= np.float32(config.sim_threshold)).any(axis=1)  # NaN, where unchecked, is not
        never[i, config.warm_up_index :] = ~tripped[config.warm_up_index :]
    return NeverTripped(never, config.warm_up_index)


def _generate(
    llm: Llama, prompt: Sequence[int], n: int, config: SkipConfig, progress: Progress
) -> tuple[list[int], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """n tokens and what happened when each was fed back: similarity and skipped, [n, n_layer]."""
    if len(prompt) + n > llm.n_ctx():
        raise ValueError(f"a prompt of {len(prompt)} and {n} tokens do not fit n_ctx={llm.n_ctx()}")
    tokens: list[int] = []
    with skipping(llm, config), llm.trace() as trace:
        llm.reset()
        for token in llm.generate(prompt, max_tokens=n + 1, **GREEDY):  # the last one is not fed back
            tokens.append(token)
            progress(1)
    return tokens[:n], trace.similarity, trace.skipped


# ---- one generation, token by layer ----


@dataclass(frozen=True)
class Generation:
    """A greedy generation: what Algorithm 1 did, and the similarities the same tokens have where nothing is skipped."""

    prompt: str
    pieces: list[str]  # text of each token, [n_tokens]
    similarity: npt.NDArray[np.float32]  # [n_tokens, n_layer]; NaN where unchecked
    skipped: npt.NDArray[np.bool_]  # [n_tokens, n_layer]
    full: npt.NDArray[np.float32]  # [n_tokens, n_layer]: similarity without skipping; NaN in the last layer
    warm_up_index: int

    def rows(self) -> list[Row]:
        return [
            {
                "token": i,
                "text": piece,
                "layer": il,
                "warm_up": int(i < self.warm_up_index),
                "similarity": float(self.similarity[i, il]),
                "skipped": int(self.skipped[i, il]),
                "similarity_without_skipping": float(self.full[i, il]),
            }
            for i, piece in enumerate(self.pieces)
            for il in range(self.similarity.shape[1])
        ]


def measure_generation(
    llm: Llama, prompt: Sequence[int], n_generated: int, config: SkipConfig, progress: Progress = _no_progress
) -> Generation:
    """The heat map: greedy generation from a prompt, then the generated tokens teacher-forced without skipping.

    Raises:
        ValueError: Prompt and generation do not fit the context.
    """
    tokens, similarity, skipped = _generate(llm, prompt, n_generated, config, progress)
    eligible = [False] * len(prompt) + [True] * len(tokens)
    with skipping(llm, check_everything(llm.n_layer)), llm.trace() as trace:
        llm.forward([*prompt, *tokens], eligible)
    progress(len(eligible))
    pieces = [llm.detokenize([token], special=True).decode("utf-8", "replace") for token in tokens]
    text = llm.detokenize(list(prompt), special=True).decode("utf-8", "replace")
    return Generation(text, pieces, similarity, skipped, trace.similarity, config.warm_up_index)


# ---- Figure 5, quality against skip ratio ----


@dataclass
class QualityPoint:
    """What one setting costs, and how much it skips."""

    config: SkipConfig
    first_row: int
    """Of each chunk, rows from this one on are compared, all of which may skip."""
    name: str | None = None
    """Of a setting that is not one policy at one ratio."""
    quality: Quality = field(default_factory=Quality)
    whole: Quality = field(default_factory=Quality)
    """Of all rows, the warm-up included."""
    _n_may_skip: int = 0
    _n_tokens: int = 0
    _ffn_skipped: int = 0
    _ffn_total: int = 0
    _checks: int = 0

    def add(self, rows: Comparison, stats: Any) -> None:
        self.quality.add(rows[self.first_row :])
        self.whole.add(rows)
        self._n_may_skip += max(stats.tokens - self.config.warm_up_index, 0)
        self._n_tokens += stats.tokens
        self._ffn_skipped += stats.ffn_skipped
        self._ffn_total += stats.ffn_total
        self._checks += stats.checks

    @property
    def skip_ratio(self) -> float:
        """Of the FFN blocks of the tokens that may skip."""
        n_may_skip = self._n_may_skip * self._ffn_total / self._n_tokens
        return self._ffn_skipped / n_may_skip if n_may_skip else 0.0

    def row(self) -> Row:
        return {
            "policy": self.name or self.config.label,
            "skip_ratio_target": None if self.name else self.config.skip_ratio,
            "warm_up_index": self.config.warm_up_index,
            "skip_ratio": self.skip_ratio,
            "skip_ratio_with_warm_up": self._ffn_skipped / self._ffn_total,
            "checks_per_token": self._checks / self._n_may_skip if self._n_may_skip else 0.0,
            "first_row": self.first_row,
            **_means(self.quality, ""),
            **_means(self.whole, "_all_rows"),
        }


def _means(quality: Quality, suffix: str) -> Row:
    names = ("n_rows", "kl", "top1_agreement", "perplexity", "perplexity_dense", "perplexity_ratio")
    return {f"{name}{suffix}": getattr(quality, name) for name in names}


def measure_quality(
    llm: Llama,
    chunks: Sequence[Sequence[int]],
    configs: Sequence[SkipConfig],
    first_row: int | None = None,
    progress: Progress = _no_progress,
) -> list[QualityPoint]:
    """Teacher-forced quality of each setting next to the dense model, on the same rows.

    Row i of a chunk may skip if i >= warm_up_index, and predicts token i + 1.

    Args:
        first_row: Rows from this one on are compared. None: for each setting those that may skip. Figure 5 gives the
            longest warm-up, so that the settings differ in what came before the rows compared and in nothing else.
    Raises:
        ValueError: A setting does not fit the model.
    """
    points = [QualityPoint(config, config.warm_up_index if first_row is None else first_row) for config in configs]
    for config in configs:  # before any work is done
        with skipping(llm, config):
            pass
    for chunk in chunks:
        _compare_chunk(llm, chunk, points, progress)
    return points


def _compare_chunk(llm: Llama, chunk: Sequence[int], points: Sequence[QualityPoint], progress: Progress) -> None:
    with llm.dense():
        dense = llm.forward(chunk)
    progress(len(chunk))
    for point in points:
        with skipping(llm, point.config):
            llm.reset_stats()
            # No name for the logits: they are freed before those of the next setting are made.
            rows = compare(dense, llm.forward(chunk), chunk[1:])
            point.add(rows, llm.stats)
        progress(len(chunk))
