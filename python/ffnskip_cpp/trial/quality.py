"""How far settings, and other files of the same model (which run dense), are from the dense model, on the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .._core import SkipConfig
from ..analysis.measure import skipping
from ..llama import Llama
from ..quality import Quality, compare
from .texts import Piece

__all__ = ["Measured", "measure_quality"]


@dataclass
class Measured:
    """Of one subject, past the warm-up."""

    quality: Quality = field(default_factory=Quality)
    pieces: list[tuple[int, float]] = field(default_factory=list)
    """Of each piece the number of rows, and the sum of their KL divergences."""
    n_skipped: int = 0
    """FFN blocks, of all rows."""

    @property
    def kl_error(self) -> float:
        """Standard error of the mean KL divergence, by how much pieces differ; NaN for less than two of them."""
        n, sums = np.array(self.pieces).T if self.pieces else (np.zeros(0), np.zeros(0))
        if len(n) < 2:
            return float("nan")
        off = sums - n * (sums.sum() / n.sum())
        return float(np.sqrt((off**2).sum() * len(n) / (len(n) - 1)) / n.sum())


def measure_quality(
    llm: Llama,
    subjects: Sequence[SkipConfig | Llama],
    pieces: Sequence[Piece],
    warm_up_index: int,
    is_over: Callable[[], bool] = lambda: False,
) -> Iterator[list[Measured]]:
    """Piece by piece, all subjects on each, until the time is over; on two pieces at least. What is known of each
    subject after each piece."""
    results = [Measured() for _ in subjects]
    for done, piece in enumerate(pieces):
        if done >= 2 and is_over():
            break
        first = piece.n_prompt + warm_up_index
        targets = piece.tokens[first + 1 :]
        with llm.dense():
            dense = llm.forward(piece.tokens)[first:-1]
        for subject, result in zip(subjects, results):
            logits, n_skipped = _evaluate(llm, subject, piece, warm_up_index)
            compared = compare(dense, logits[first:-1], targets)
            result.quality.add(compared)
            result.pieces.append((len(compared), float(compared.kl.sum())))
            result.n_skipped += n_skipped
        yield results


def _evaluate(llm: Llama, subject: SkipConfig | Llama, piece: Piece, warm_up_index: int) -> tuple[np.ndarray, int]:
    """Logits, and the number of FFN blocks that the rows compared have skipped."""
    if isinstance(subject, Llama):
        return subject.forward(piece.tokens), 0
    with skipping(llm, subject), llm.trace() as trace:
        logits = llm.forward(piece.tokens, piece.eligible(warm_up_index))
    return logits, int(trace.skipped[-piece.n_rows(warm_up_index) - 1 : -1].sum())
