"""One tensor of the GGUF, how it is made from tensors of the checkpoint, and whether those are there.

A tensor is a sequence of rows. What llama.cpp wants differs from what transformers saves in which rows there are and
in which order (rotary pairs, fused projections, stacked experts), rarely in the values; so a plan is a choice of rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .checkpoint import BYTES_PER_ELEMENT, Checkpoint


@dataclass(frozen=True, eq=False)
class Planned:
    """One tensor of the GGUF and the tensors of the checkpoint it comes from."""

    name: str
    shape: tuple[int, ...]  # in the GGUF, NumPy's order
    sources: tuple[str, ...]  # taken together: their rows, one source after the other
    source_shape: tuple[int, ...]  # of each of them
    order: np.ndarray | None = None  # row i of this tensor is row order[i] of the sources; None: all, in order
    transposed: bool = False  # the source, a matrix, is stored (n_in, n_out)
    shift: float = 0.0  # added to every value


def planned(
    name: str,
    source: str | Iterable[str],
    shape: tuple[int, ...],
    source_shape: tuple[int, ...] | None = None,
    order: np.ndarray | None = None,
    *,
    transposed: bool = False,
    shift: float = 0.0,
) -> Planned:
    """As `Planned`, for one source or several; the source has the shape of the result unless told otherwise."""
    sources = (source,) if isinstance(source, str) else tuple(source)
    return Planned(name, shape, sources, source_shape or shape, order, transposed, shift)


# ----------------------------------------------------------------------------------------------------------------------
# Orders of rows. Cached: every layer has the same, and those of experts are long.


@functools.lru_cache
def interleaved_halves(n_head: int, head_dim: int) -> np.ndarray:
    """transformers rotates row i of a head with row i + head_dim/2, some of llama.cpp rotate row 2i with 2i + 1.

    0 1 2 | 3 4 5  ->  0 3 | 1 4 | 2 5
    """
    return np.arange(n_head * head_dim).reshape(n_head, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)


@functools.lru_cache
def ungrouped_qkv(n_head: int, n_head_kv: int, head_dim: int) -> np.ndarray:
    """A fused projection stored group by group becomes all of q, all of k, all of v.

    q q k v | q q k v  ->  q q q q | k k | v v
    """
    groups = np.arange((n_head + 2 * n_head_kv) * head_dim).reshape(n_head_kv, n_head // n_head_kv + 2, head_dim)
    q, k, v = groups[:, :-2], groups[:, -2], groups[:, -1]
    return np.concatenate([part.reshape(-1) for part in (q, k, v)])


@functools.lru_cache
def part_of_each(n_rows: int, n_expert: int, first: int, last: int) -> np.ndarray:
    """Rows [first, last) of each expert, where an expert has `n_rows` rows, as in a fused gate and up."""
    return (np.arange(n_expert)[:, None] * n_rows + np.arange(first, last)).reshape(-1)


# ----------------------------------------------------------------------------------------------------------------------
# Against the checkpoint


def check_plan(plan: list[Planned], checkpoint: Checkpoint, passed_over: Callable[[str], bool]) -> None:
    """Every planned source is there with its shape and a known type, and nothing else is but what may be passed over.

    Raises:
        ValueError: Names the first tensor that is missing, misshapen, of another type, or unknown, and its file.
    """
    sources = {source: entry for entry in plan for source in entry.sources}
    for source, entry in sources.items():
        stored = checkpoint.tensors.get(source)
        if stored is None:
            hint = ""
            if entry.name == "output.weight":
                hint = "; the model was saved without it, and config.json does not say tie_word_embeddings"
            raise ValueError(f"{checkpoint.origin}: tensor {source!r} is missing{hint}")
        if stored.shape != entry.source_shape:
            raise ValueError(
                f"{stored.path}: tensor {source!r} has shape {list(stored.shape)}; "
                f"config.json calls for {list(entry.source_shape)}"
            )
        if stored.dtype not in BYTES_PER_ELEMENT:
            raise ValueError(
                f"{stored.path}: tensor {source!r} is {stored.dtype}; expected {', '.join(BYTES_PER_ELEMENT)}"
            )
    for name, stored in checkpoint.tensors.items():
        if name not in sources and not passed_over(name):
            raise ValueError(
                f"{stored.path}: tensor {name!r} has no place in this architecture; refusing to leave it out"
            )


def n_values(entry: Planned) -> int:
    return math.prod(entry.shape)
