"""How far settings, and other files of the same model (which run dense), are from the dense model, on the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..llama import Llama
from ..measure.quality import Quality, Reference, logits_of
from ..measure.text import Chunk
from ..skip_config import SkipConfig

__all__ = ["Measured", "measure_quality"]


@dataclass
class Measured:
    """Of one subject, past the warm-up."""

    quality: Quality = field(default_factory=Quality)
    n_skipped: int = 0
    """FFN blocks, of all rows."""


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
) -> tuple[npt.NDArray[np.float32], int]:
    """Logits of the rows compared, and the number of FFN blocks that they have skipped."""
    if isinstance(subject, Llama):
        return logits_of(subject, chunk, warm_up_index), 0
    with llm.skipping(subject), llm.trace() as trace:
        logits = logits_of(llm, chunk, warm_up_index)
    return logits, int(trace.skipped[: len(logits)].sum())
