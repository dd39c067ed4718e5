"""The text of a calibration: in chunks, and what each of them is for."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from ..llama import Llama
from ..measure.chat import Chat, answered, tokens_of_chat
from ..measure.text import MIN_TOKENS, Chunk, Text, chunks_of_text
from .cache import Cache

__all__ = ["Parts", "all_answered", "useful_chunks"]

HELD_OUT = 0.3  # of the text
PIECE_ROWS = 128  # tokens past the warm-up of a chunk of the search: many short chunks say more than a few long ones


class Parts:
    """What the chunks of a text are for.

    Args:
        seed: Of the choice of what is held out.
    """

    def __init__(self, chunks: Sequence[Chunk], seed: int):
        self.n_tokens = sum(map(len, chunks))
        order = [chunks[i] for i in np.random.default_rng(seed).permutation(len(chunks))]
        n_held_out = min(max(1, round(HELD_OUT * len(order))), len(order) - 1)
        self._held_out, self._others = order[:n_held_out], order[n_held_out:]

    def compared(self, n_tokens: int) -> list[Chunk]:
        """Held-out chunks of about so many tokens."""
        return _first(self._held_out, n_tokens)

    def recorded(self, n_tokens: int) -> list[Chunk]:
        """Other chunks of about so many tokens."""
        return _first(self._others, n_tokens)

    def searched(self, n_rows: int, warm_up_index: int) -> list[Chunk]:
        """The beginnings of others, with so many tokens together that may skip, if there are as many: of each chunk
        alike, and of no more chunks than it takes."""
        of_each = max(PIECE_ROWS, -(-n_rows // len(self._others)))
        pieces: list[Chunk] = []
        n = 0
        for chunk in self._others:
            if n >= n_rows:
                break
            pieces.append(_beginning(chunk, of_each, warm_up_index))
            n += len(pieces[-1].rows(warm_up_index))
        return pieces


def _first(chunks: Sequence[Chunk], n_tokens: int) -> list[Chunk]:
    """Whole chunks, at least one, of about so many tokens."""
    lengths = np.cumsum([len(chunk) for chunk in chunks])
    return list(chunks[: max(1, int(np.searchsorted(lengths, n_tokens * 1.05, side="right")))])


def _beginning(chunk: Chunk, n_rows: int, warm_up_index: int) -> Chunk:
    rows = np.flatnonzero(chunk.eligible(warm_up_index))[:n_rows]
    end = int(rows[-1]) + 2  # with the token that the last one predicts
    return Chunk(chunk.tokens[:end], chunk.generated[:end])


def all_answered(llm: Llama, texts: Sequence[Text], max_tokens: int, cache: Cache) -> list[Text]:
    """The texts, with answers to what is without one, as many as there are tokens for."""
    result: list[Text] = []
    n_tokens = 0
    for text in texts:
        if isinstance(text, str):
            result.append(text)
        elif n_tokens < max_tokens:
            result.append(whole := _answered(llm, text, cache))
            n_tokens += len(tokens_of_chat(llm, whole)[0])
    return result


def _answered(llm: Llama, chat: Chat, cache: Cache) -> Chat:
    found = cache.find("answers", chat.messages)
    if found is not None:
        return Chat(tuple(json.loads(found["messages"].tobytes())), chat.where)
    whole = answered(llm, chat)
    as_bytes = json.dumps(whole.messages).encode("utf-8")
    cache.add({"messages": np.frombuffer(as_bytes, np.uint8)}, "answers", chat.messages)
    return whole


def useful_chunks(llm: Llama, texts: Sequence[Text], n_ctx: int, max_tokens: int, warm_up_index: int) -> list[Chunk]:
    """Those in which a token may skip and predict a known one.

    Raises:
        ValueError: There are no two, one to calibrate on and one to hold out.
    """
    if max_tokens < n_ctx:
        raise ValueError(f"max-tokens: {max_tokens} is less than the {n_ctx} of one chunk (n-ctx)")
    cut = chunks_of_text(llm, texts, n_ctx, max_tokens=max_tokens, min_tokens=max(MIN_TOKENS, warm_up_index + 2))
    useful = [chunk for chunk in cut if chunk.rows(warm_up_index)]
    n_tokens = sum(map(len, useful))
    if len(useful) < len(cut) and len(useful) < 2:
        raise ValueError(
            f"the text is too short: {len(useful)} chats have an answer of more than {warm_up_index} tokens, which run "
            "in full (warm-up); at least 2 are needed, one to calibrate on and one to hold out"
        )
    if n_tokens < n_ctx or len(useful) < 2:
        lacking = "max-tokens is too low" if max_tokens - n_tokens < MIN_TOKENS else "the text is too short"
        raise ValueError(
            f"{lacking}: {n_tokens} tokens in {len(useful)} chunks; at least {n_ctx} tokens (n-ctx) in 2 chunks are "
            "needed, one to calibrate on and one to hold out"
        )
    return useful
