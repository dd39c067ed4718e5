"""Texts that are there already, through the skipping model: logits of their rows, and how likely continuations are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from . import llama_cpp_internals as internals
from ._core import RowKind
from .checked import CheckedLlama, token_ids, whole
from .decoding import Decoder
from .generation import prompt_tokens
from .plain import plain

__all__ = ["Eligible", "Rows", "Score", "Text", "check_ids", "divided", "forward", "prompt_length", "score"]

Eligible = Union[Sequence[bool], Sequence[RowKind], None]
Rows = Union[slice, Sequence[int], "npt.NDArray[np.integer]", None]
Text = Union[str, Sequence[int]]


# ---- rows ----


def forward(
    llm: CheckedLlama, decoder: Decoder, tokens: Sequence[int], eligible: Eligible, rows: Rows, keep: int
) -> npt.NDArray[np.float32]:
    """`Llama.forward`."""
    ids = token_ids(tokens)
    _check_tokens(llm, ids, eligible)
    _check_kept(llm, ids, keep)
    wanted = _indices(rows, len(ids), keep)
    begin = _start(llm, keep)
    decoder.generation = decoder.sampled = None
    ascending, which = np.unique(wanted, return_inverse=True)
    logits = decoder.session.forward(
        ids[begin:], begin, _kinds(decoder, len(ids), eligible)[begin:], (ascending - begin).tolist()
    )
    if len(ascending) < len(wanted) or (ascending != wanted).any():
        logits = logits[which]
    llm.input_ids[begin : len(ids)] = ids[begin:]
    llm.n_tokens = len(ids)
    internals.require_eval(llm, False)
    if internals.wants_all_logits(llm):
        llm.scores[wanted] = logits
        decoder.follow(None)
    return logits


def _start(llm: CheckedLlama, keep: int) -> int:
    """The position that evaluation begins at; what is behind it is taken out of the context."""
    if keep == 0 or not internals.go_back(llm, keep):
        llm.reset()
        return 0
    llm.n_tokens = keep
    return keep


def _kinds(decoder: Decoder, n_tokens: int, eligible: Eligible) -> list[RowKind]:
    if eligible is None:
        warm_up_index = decoder.controller.resolved["warm_up_index"]
        return [RowKind.skippable if i >= warm_up_index else RowKind.warm_up for i in range(n_tokens)]
    return [
        given if isinstance(given, RowKind) else RowKind.skippable if given else RowKind.prompt for given in eligible
    ]


def _check_tokens(llm: CheckedLlama, ids: list[int], eligible: Eligible) -> None:
    if not 1 <= len(ids) <= internals.n_context(llm):
        raise ValueError(f"tokens: {len(ids)} given; 1 to n_ctx={internals.n_context(llm)} can be evaluated")
    check_ids(llm, "tokens", ids)
    if eligible is not None and len(eligible) != len(ids):
        raise ValueError(f"eligible: {len(eligible)} entries for {len(ids)} tokens")


def check_ids(llm: CheckedLlama, name: str, ids: list[int]) -> None:
    if ids and (min(ids) < 0 or max(ids) >= llm.n_vocab()):
        raise ValueError(f"{name}: ids must be in [0, {llm.n_vocab()}); got {min(ids)} to {max(ids)}")


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


# ---- continuations ----


@dataclass(frozen=True, eq=False)
class Score:
    """How likely continuations of a text are; element i is of continuation i."""

    log_likelihood: npt.NDArray[np.float64]
    """float64 [n]: natural logarithm of its probability, the sum over its tokens."""
    is_greedy: npt.NDArray[np.bool_]
    """bool [n]: every token of it is the one that the model finds most likely."""
    n_tokens: npt.NDArray[np.int64]
    """int64 [n]: its length."""
    n_may_skip: npt.NDArray[np.int64]
    """int64 [n]: of its tokens, those predicted by a row that may skip."""

    def __post_init__(self) -> None:
        for values in (self.log_likelihood, self.is_greedy, self.n_tokens, self.n_may_skip):
            values.setflags(write=False)

    def as_dict(self) -> dict[str, Any]:
        """Of plain values."""
        return plain(self)  # type: ignore[no-any-return]


def score(
    llm: CheckedLlama, decoder: Decoder, prefix: list[int], continuations: list[list[int]], n_prompt: int
) -> Score:
    """`Llama.score` of what `divided` gave; tokens of the prefix from `n_prompt` on count as generated."""
    decoder.generation = None
    try:
        log_likelihood, is_greedy, _ = decoder.session.score(prefix, continuations, n_prompt)
    finally:
        llm.reset()
    first = len(prefix) - 1  # the row that predicts the first token of each
    n_may_skip = [decoder.controller.n_may_skip(first, first + len(tokens), n_prompt) for tokens in continuations]
    n_tokens = [len(tokens) for tokens in continuations]
    return Score(log_likelihood, is_greedy, np.array(n_tokens, np.int64), np.array(n_may_skip, np.int64))


def prompt_length(n_tokens: int, skip_prompts: int | None) -> int:
    """Of a prefix of `n_tokens`, those that run as a prompt. Raises ValueError where it has fewer."""
    if skip_prompts is None:
        return n_tokens
    if not 0 <= whole("skip_prompts", skip_prompts) <= n_tokens:
        raise ValueError(f"skip_prompts: {skip_prompts} is outside [0, {n_tokens}], the tokens of the prefix")
    return skip_prompts


def divided(llm: CheckedLlama, prefix: Text, continuations: Sequence[Text]) -> tuple[list[int], list[list[int]]]:
    """Token ids of the prefix, and of each continuation; ValueError where they can't be scored."""
    ids, following = _tokenised(llm, prefix, continuations)
    if not ids:
        raise ValueError("prefix: it has no tokens; one at least predicts the first token of a continuation")
    check_ids(llm, "prefix", ids)
    for tokens in following:
        check_ids(llm, "continuations", tokens)
    longest = max(map(len, following), default=0)
    needed, n_ctx = len(ids) + max(longest - 1, 0), internals.n_context(llm)
    if needed > n_ctx:
        raise ValueError(
            f"continuations: one of {longest} tokens after a prefix of {len(ids)} needs room for {needed}, the context "
            f"has {n_ctx}"
        )
    return ids, following


def _tokenised(llm: CheckedLlama, prefix: Text, continuations: Sequence[Text]) -> tuple[list[int], list[list[int]]]:
    if isinstance(continuations, str):
        raise TypeError(f"continuations: {continuations[:20]!r} is one text; give a list of them")
    if not isinstance(prefix, str):
        return token_ids(prefix), [_alone(llm, text) for text in continuations]
    # Spaces at its end begin the words that follow: to most vocabularies they are part of them.
    stem = prefix.rstrip() if all(isinstance(text, str) for text in continuations) else prefix
    stem = stem or prefix
    ids = prompt_tokens(llm, stem)
    return ids, [_behind(llm, stem, ids, prefix[len(stem) :], text) for text in continuations]


def _behind(llm: CheckedLlama, stem: str, ids: list[int], spaces: str, text: Text) -> list[int]:
    """The tokens that a text has behind `stem`, which has `ids`; those it has alone where none ends between the two."""
    if not isinstance(text, str):
        return token_ids(text)
    both = prompt_tokens(llm, stem + spaces + text)
    return both[len(ids) :] if both[: len(ids)] == ids else _alone(llm, spaces + text)


def _alone(llm: CheckedLlama, text: Text) -> list[int]:
    return llm.tokenize(text.encode("utf-8"), add_bos=False, special=True) if isinstance(text, str) else token_ids(text)
