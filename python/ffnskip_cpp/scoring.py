"""Texts that are there already, through the skipping model: logits of their rows, and how likely continuations are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
import numpy.typing as npt

from . import llama_cpp_internals as internals
from ._core import RowKind
from .checked import CheckedLlama, token_ids
from .decoding import Decoder

__all__ = ["Rows", "forward"]

Rows = Union[slice, Sequence[int], "npt.NDArray[np.integer]", None]


def forward(
    llm: CheckedLlama, decoder: Decoder, tokens: Sequence[int], eligible: Sequence[bool] | None, rows: Rows, keep: int
) -> npt.NDArray[np.float32]:
    """`Llama.forward`."""
    ids = token_ids(tokens)
    _check_tokens(llm, ids, eligible)
    _check_kept(llm, ids, keep)
    wanted = _indices(rows, len(ids), keep)
    kinds = _kinds(decoder, len(ids), eligible)
    logits = np.empty((len(wanted), llm.n_vocab()), np.float32)
    decoder.generation = None
    begin = _start(llm, keep)
    decoder.sampled = None
    while begin < len(ids):
        end = min(begin + llm.n_batch, len(ids))
        here = np.flatnonzero((wanted >= begin) & (wanted < end))
        only_last = bool((wanted[here] == end - 1).all())  # which is always there
        decoder.controller.decode(decoder.context, ids[begin:end], begin, kinds[begin:end], all_logits=not only_last)
        if len(here) > 0:
            given = internals.logits(llm, 1 if only_last else end - begin)
            logits[here] = given[0 if only_last else wanted[here] - begin]
        llm.input_ids[begin:end] = ids[begin:end]
        llm.n_tokens = begin = end
    internals.require_eval(llm, False)
    if internals.wants_all_logits(llm):
        llm.scores[wanted] = logits
    return logits


def _start(llm: CheckedLlama, keep: int) -> int:
    """The position that evaluation begins at; what is behind it is taken out of the context."""
    if keep == 0 or not internals.go_back(llm, keep):
        llm.reset()
        return 0
    llm.n_tokens = keep
    return keep


def _kinds(decoder: Decoder, n_tokens: int, eligible: Sequence[bool] | None) -> list[RowKind]:
    if eligible is None:
        return [decoder.controller.row_kind(i) for i in range(n_tokens)]
    return [RowKind.skippable if may_skip else RowKind.prompt for may_skip in eligible]


def _check_tokens(llm: CheckedLlama, ids: list[int], eligible: Sequence[bool] | None) -> None:
    if not 1 <= len(ids) <= internals.n_context(llm):
        raise ValueError(f"tokens: {len(ids)} given; 1 to n_ctx={internals.n_context(llm)} can be evaluated")
    if min(ids) < 0 or max(ids) >= llm.n_vocab():
        raise ValueError(f"tokens: ids must be in [0, {llm.n_vocab()}); got {min(ids)} to {max(ids)}")
    if eligible is not None and len(eligible) != len(ids):
        raise ValueError(f"eligible: {len(eligible)} entries for {len(ids)} tokens")


def _check_kept(llm: CheckedLlama, ids: list[int], keep: int) -> None:
    if not 0 <= keep < len(ids):
        raise ValueError(f"keep: {keep} is not in [0, {len(ids)}): the last of the tokens is always evaluated")
    if keep > llm.n_tokens:
        raise ValueError(f"keep: {keep} tokens are to be kept; the context holds {llm.n_tokens}")
    differs = np.flatnonzero(llm.input_ids[:keep] != ids[:keep])
    if len(differs) > 0:
        i = int(differs[0])
        raise ValueError(f"keep: token {i} of the context is {llm.input_ids[i]}, and tokens[{i}] is {ids[i]}")


def _indices(rows: Rows, n_tokens: int, keep: int) -> npt.NDArray[np.intp]:
    """Of the rows that `rows` means."""
    every = np.arange(n_tokens)
    if rows is None:
        return every[keep:]
    try:
        chosen = every[rows if isinstance(rows, (slice, np.ndarray)) else list(rows)]
    except (IndexError, TypeError) as error:
        raise ValueError(f"rows: {rows!r} is no slice and no indices of {n_tokens} rows: {error}") from error
    if len(chosen) > 0 and chosen.min() < keep:
        raise ValueError(f"rows: row {chosen.min()} is one of the keep={keep} that are not evaluated")
    return chosen
