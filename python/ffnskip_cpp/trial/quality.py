"""How far settings, and other files of the same model (which run dense), are from the dense model, on the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..calibration.evaluation import standard_error
from ..llama import Llama
from ..measure.quality import Quality, Reference
from ..measure.text import Chunk
from ..skip_config import SkipConfig
from .texts import rows_of

__all__ = ["Measured", "measure_quality"]


@dataclass
class Measured:
    """Of one subject, past the warm-up."""

    quality: Quality = field(default_factory=Quality)
    kl: list[npt.NDArray[np.float64]] = field(default_factory=list)
    """Of each chunk, float64 [n_rows]."""
    n_skipped: int = 0
    """FFN blocks, of all rows."""

    @property
    def kl_error(self) -> float:
        """Standard error of the mean KL divergence, over chunks; NaN for less than two of them."""
        chunk = np.repeat(np.arange(len(self.kl)), [len(kl) for kl in self.kl])
        return standard_error(np.concatenate(self.kl), chunk) if self.kl else float("nan")


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
        rows = rows_of(chunk, warm_up_index)
        with llm.dense():
            dense = Reference(llm.forward(chunk.tokens)[rows], [chunk.tokens[i + 1] for i in rows])
        for subject, result in zip(subjects, results):
            logits, n_skipped = _evaluate(llm, subject, chunk, warm_up_index)
            compared = dense.compare(logits[rows])
            result.quality.add(compared)
            result.kl.append(compared.kl)
            result.n_skipped += n_skipped
        yield results


def _evaluate(
    llm: Llama, subject: SkipConfig | Llama, chunk: Chunk, warm_up_index: int
) -> tuple[npt.NDArray[np.float32], int]:
    """Logits, and the number of FFN blocks that the rows compared have skipped."""
    if isinstance(subject, Llama):
        return subject.forward(chunk.tokens), 0
    with llm.skipping(subject), llm.trace() as trace:
        logits = llm.forward(chunk.tokens, chunk.eligible(warm_up_index))
    return logits, int(trace.skipped[: len(rows_of(chunk, warm_up_index))].sum())
