"""Quality against what is skipped: several settings next to the dense model, on the same rows of the same text.

    points = measure_quality(llm, chunks, [SkipConfig(skip_ratio=0.1), SkipConfig(skip_ratio=0.25)])
    print([(point.skip_ratio, point.quality.kl) for point in points])

Teacher-forced; a chunk is taken for one generation from its first token on, as `Llama.forward` does. Logits are held of
one chunk at a time, those of the dense model and of one other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..llama import Llama
from ..progress import Told, nobody
from ..skip_config import SkipConfig
from .quality import Comparison, Quality, compare

__all__ = ["QualityPoint", "measure_quality"]

Row = dict[str, Any]


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
    _skipped: int = 0
    _total: int = 0
    _checks: int = 0

    def add(self, rows: Comparison, stats: Any) -> None:
        self.quality.add(rows[self.first_row :])
        self.whole.add(rows)
        self._n_may_skip += max(stats.tokens - self.config.n_full, 0)
        self._n_tokens += stats.tokens
        by_bytes = stats.bytes_total > 0
        self._skipped += stats.bytes_left_out if by_bytes else stats.ffn_skipped
        self._total += stats.bytes_total if by_bytes else stats.ffn_total
        self._checks += stats.checks

    @property
    def skip_ratio(self) -> float:
        """Of the FFN blocks of the tokens that may skip; of channels, of the weight bytes."""
        n_may_skip = self._n_may_skip * self._total / self._n_tokens
        return self._skipped / n_may_skip if n_may_skip else 0.0

    def row(self) -> Row:
        return {
            "policy": self.name or self.config.label,
            "skip_ratio_target": None if self.name else self.config.ratio,
            "warm_up_index": self.config.warm_up_index,
            "skip_ratio": self.skip_ratio,
            "skip_ratio_with_warm_up": self._skipped / self._total,
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
    progress: Told = nobody,
) -> list[QualityPoint]:
    """Teacher-forced quality of each setting next to the dense model, on the same rows.

    Row i of a chunk may skip if i >= n_full of its setting, and predicts token i + 1.

    Args:
        first_row: Rows from this one on are compared. None: for each setting those that may skip. Figure 5 gives the
            longest warm-up, so that the settings differ in what came before the rows compared and in nothing else.
    Raises:
        ValueError: A setting does not fit the model.
    """
    points = [QualityPoint(config, config.n_full if first_row is None else first_row) for config in configs]
    for config in configs:  # before any work is done
        with llm.skipping(config):
            pass
    for chunk in chunks:
        _compare_chunk(llm, chunk, points, progress)
    return points


def _compare_chunk(llm: Llama, chunk: Sequence[int], points: Sequence[QualityPoint], progress: Told) -> None:
    with llm.dense():
        dense = llm.forward(chunk)
    progress(len(chunk))
    for point in points:
        with llm.skipping(point.config):
            llm.reset_stats()
            # No name for the logits: they are freed before those of the next setting are made.
            rows = compare(dense, llm.forward(chunk), chunk[1:])
            point.add(rows, llm.stats)
        progress(len(chunk))
