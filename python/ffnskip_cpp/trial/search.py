"""A quick search for the FFN blocks that cost least together: greedy, and with a result whenever its time is over.

`ffnskip calibrate` searches more settings on more text; this says in half a minute about what it would find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..llama import Llama
from ..measure.chat import PROMPT
from ..measure.quality import Reference, logits_of
from ..measure.similarity import measure_similarity
from ..measure.text import Chunk
from ..skip_config import SkipConfig

__all__ = ["by_similarity", "cost_on", "grow", "some_of"]

WARM_UP = 12  # tokens of what is searched on that run in full; a trial measures with more
LEAST_ROWS = 32  # tokens past them
MOST_TOKENS = 1024
MEASURED_AGAIN = 3  # blocks, on average, before one is added to the set


def by_similarity(llm: Llama, chunks: Sequence[Chunk]) -> list[int]:
    """The layers whose FFN block can be skipped, the one that changes the residual least first."""
    mean = np.nan_to_num(measure_similarity(llm, [chunk.tokens for chunk in chunks]).mean, nan=-1.0)
    return sorted(np.flatnonzero(llm.skippable).tolist(), key=lambda il: -mean[il])


def some_of(chunks: Sequence[Chunk], n_tokens: int) -> list[Chunk]:
    """About n_tokens of what is generated, LEAST_ROWS past WARM_UP at least; without the prompts, which take time."""
    found: list[Chunk] = []
    least = WARM_UP + LEAST_ROWS + 1
    for chunk in chunks:
        if found and n_tokens < least:
            break
        first, n = max(chunk.n_prompt, 1), max(n_tokens, least)
        tokens = [chunk.tokens[0], *chunk.tokens[first : first + n]]  # the first: a start token, or what stands for one
        generated = [PROMPT, *chunk.generated[first : first + n]]
        part = Chunk(tokens, generated)
        if part.rows(WARM_UP):
            found.append(part)
            n_tokens -= len(part)
    return found


def cost_on(llm: Llama, chunks: Sequence[Chunk]) -> Callable[[Sequence[int]], float]:
    """The mean KL divergence of fixed sets of blocks on these chunks, as a function of their layers."""
    dense = [Reference.of(llm, chunk, WARM_UP) for chunk in chunks]

    def cost(layers: Sequence[int]) -> float:
        with llm.skipping(SkipConfig("fixed", layers=sorted(layers))):
            kl = [reference.compare(logits_of(llm, chunk, WARM_UP)).kl for reference, chunk in zip(dense, chunks)]
        return float(np.concatenate(kl).mean())

    return cost


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
