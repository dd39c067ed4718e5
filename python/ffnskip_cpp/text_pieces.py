"""The text of tokens as they come: whole characters, up to a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

__all__ = ["TextPieces"]


class TextPieces:
    """Says what each token adds to the text, as soon as that can't be the beginning of a stop text any more, nor of a
    character that later tokens complete: it counts to the token that ends it. Bytes that are no UTF-8 are left out, as
    by llama_cpp.

    Args:
        stop: Texts that end it, the one that comes first; none empty.
    """

    def __init__(self, stop: Sequence[str] = ()):
        self.stopped = False
        """A stop text has come; nothing may be added any more."""
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._waiting: list[str] = []  # of the tokens that nothing was said of
        self._n_whole = 0  # of these, the first so many end no character that is not there yet

    def add(self, piece: bytes) -> list[str]:
        """Bytes of the next token. What the oldest tokens that nothing was said of so far add, in order."""
        text = self._decoder.decode(piece)
        self._waiting.append(text)
        begun, _ = self._decoder.getstate()
        if not begun:
            self._n_whole = len(self._waiting)
        elif text:
            self._n_whole = len(self._waiting) - 1
        waiting = "".join(self._waiting)
        found = [at for at in (waiting.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._cut(min(found))
        return self._settled(len(waiting) - self._begun_stop(waiting))

    def end(self) -> list[str]:
        """What the other tokens add: no more will come."""
        if self.stopped:
            return []
        texts, self._waiting, self._n_whole = self._waiting, [], 0
        return texts

    def _begun_stop(self, text: str) -> int:
        """Characters at the end of a text that a stop text may begin with."""
        return max(
            (n for stop in self._stop for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])),
            default=0,
        )

    def _settled(self, n_chars: int) -> list[str]:
        """Takes out the tokens that end within the first so many characters."""
        n, end = 0, 0
        while n < self._n_whole and end + len(self._waiting[n]) <= n_chars:
            end += len(self._waiting[n])
            n += 1
        texts, self._waiting = self._waiting[:n], self._waiting[n:]
        self._n_whole -= n
        return texts

    def _cut(self, n_chars: int) -> list[str]:
        """Takes out all tokens; what is behind the first so many characters is no part of the text."""
        texts = []
        for text in self._waiting:
            texts.append(text[:n_chars])
            n_chars -= len(texts[-1])
        self._waiting = []
        return texts
