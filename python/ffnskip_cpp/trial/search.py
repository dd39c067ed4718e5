"""A quick search for the FFN blocks that cost least together: greedy, and with a result whenever its time is over.

`ffnskip calibrate` searches more settings on more text; this says in half a minute about what it would find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .._core import SkipConfig
from ..analysis.measure import check_everything, skipping
from ..llama import Llama
from ..quality import kl_divergence
from .texts import Piece

__all__ = ["by_similarity", "cost_on", "grow", "some_of"]

OUTLIERS = 4  # tokens at the start of a context, which are like no others
LEAST_TOKENS = 48
MOST_TOKENS = 512
MEASURED_AGAIN = 3  # blocks, on average, before one is added to the set


def by_similarity(llm: Llama, pieces: Sequence[Piece]) -> list[int]:
    """The layers whose FFN block can be skipped, the one that changes the residual least first."""
    parts = []
    with skipping(llm, check_everything(llm._controller.n_layer)):
        for piece in pieces:
            with llm.trace() as trace:
                llm.forward(piece.tokens, [True] * len(piece.tokens))
            parts.append(trace.similarity[OUTLIERS:])
    mean = np.nan_to_num(np.concatenate(parts).astype(np.float64), nan=-1.0).mean(axis=0)
    return sorted(np.flatnonzero(llm._controller.skippable).tolist(), key=lambda il: -mean[il])


def some_of(pieces: Iterable[Piece], n_tokens: int) -> list[Piece]:
    """About so many tokens of the pieces, in the same part of each."""
    pieces = list(pieces)
    each = max(n_tokens // len(pieces), LEAST_TOKENS)
    return [Piece(p.tokens[: p.n_prompt + each], p.n_prompt) for p in pieces[: max(n_tokens // each, 1)]]


def cost_on(llm: Llama, pieces: Sequence[Piece]) -> Callable[[Sequence[int]], float]:
    """The mean KL divergence of fixed sets of blocks on these pieces, as a function of their layers. Every token but
    the prompts and the very first ones skips them, whatever the warm-up."""
    rows = [slice(max(piece.n_prompt, OUTLIERS), len(piece.tokens)) for piece in pieces]
    with llm.dense():
        dense = [llm.forward(piece.tokens)[part] for piece, part in zip(pieces, rows)]

    def cost(layers: Sequence[int]) -> float:
        with skipping(llm, SkipConfig("fixed", layers=sorted(layers), warm_up_index=0)):
            kl = [
                kl_divergence(of_dense, llm.forward(piece.tokens, _all_of(part, piece))[part])
                for of_dense, piece, part in zip(dense, pieces, rows)
            ]
        return float(np.concatenate(kl).mean())

    return cost


def _all_of(part: slice, piece: Piece) -> list[bool]:
    return [i >= part.start for i in range(len(piece.tokens))]


def grow(
    order: Sequence[int],
    cost: Callable[[Sequence[int]], float],
    n: int,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[list[int], bool]:
    """Greedy forward selection: n layers in the order they were added, and whether there was time for all of it.

    A block's cost beside the set of an earlier round is taken for a lower bound of its cost now, so that few are
    measured again in each round (Minoux 1978). When time is over the set is filled up by what is known: the cost when
    it was measured last, or else the place in `order`.
    """
    last: dict[int, float] = {}
    added: list[int] = []
    total = 0.0
    while len(added) < n:
        left = [il for il in order if il not in added]
        measured: dict[int, float] = {}
        best = left[0]
        while not is_over():
            best = min(left, key=lambda il: last.get(il, -math.inf))
            if best in measured:
                break
            measured[best] = cost([*added, best])
            last[best] = measured[best] - total
        else:
            rest = sorted(left, key=lambda il: last.get(il, math.inf))
            return [*added, *rest][:n], False
        added.append(best)
        total = measured[best]
    return added, True
