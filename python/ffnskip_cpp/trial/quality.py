"""How far settings, and other files of the same model (which run dense), are from the dense model, on the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .._core import RowKind
from ..blocks import ffn_blocks
from ..llama import Llama
from ..measure.quality import Quality, Reference, logits_of
from ..measure.text import Chunk
from ..skip_config import SkipConfig

__all__ = ["Measured", "measure_quality"]


@dataclass
class Measured:
    """Of one subject, past the warm-up."""

    quality: Quality = field(default_factory=Quality)
    n_skipped: float = 0.0
    """Rows that would have skipped as much if they had skipped all of their FFN."""


def measure_quality(
    llm: Llama,
    subjects: Sequence[SkipConfig | Llama],
    chunks: Sequence[Chunk],
    warm_up_index: int,
    is_over: Callable[[], bool] = lambda: False,
) -> Iterator[list[Measured]]:
    """Chunk by chunk, all subjects on each, until the time is over; on two chunks at least. What is known of each
    subject after each chunk."""
    results = [Measured() for _ in subjects]
    for done, chunk in enumerate(chunks):
        if done >= 2 and is_over():
            break
        dense = Reference.of(llm, chunk, warm_up_index)
        for subject, result in zip(subjects, results):
            logits, n_skipped = _evaluate(llm, subject, chunk, warm_up_index)
            result.quality.add(dense.compare(logits))
            result.n_skipped += n_skipped
        yield results


def _evaluate(
    llm: Llama, subject: SkipConfig | Llama, chunk: Chunk, warm_up_index: int
) -> tuple[npt.NDArray[np.float32], float]:
    """Logits of the rows compared, and `n_skipped` of them."""
    if isinstance(subject, Llama):
        return logits_of(subject, chunk, warm_up_index), 0.0
    with llm.skipping(subject):
        if subject.policy == "channels":
            return _leave_out(llm, chunk, warm_up_index)
        with llm.trace() as trace:
            logits = logits_of(llm, chunk, warm_up_index)
    return logits, float(trace.skipped[: len(logits)].sum()) / len(ffn_blocks(llm.blocks))


def _leave_out(llm: Llama, chunk: Chunk, warm_up_index: int) -> tuple[npt.NDArray[np.float32], float]:
    """The same of channels: rows of the warm-up are decoded as such, with outputs, since they tell the thresholds."""
    llm.reset_stats()
    kinds = chunk.kinds(warm_up_index)
    generated = [i for i, kind in enumerate(kinds) if kind != RowKind.prompt]
    rows = chunk.rows(warm_up_index)
    logits = llm.forward(chunk.tokens, kinds, rows=generated)[np.searchsorted(generated, rows)]
    stats = llm.stats
    n_skipped = stats.bytes_left_out * stats.tokens / stats.bytes_total
    return logits, n_skipped * len(rows) / max(1, kinds.count(RowKind.skippable))
