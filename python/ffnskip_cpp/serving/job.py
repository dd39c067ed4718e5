"""A request on its way: what is known of it, and the answer as far as it has come."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import llama_cpp

from .. import llama_cpp_internals as internals
from .._core import PreparedConfig
from ..text_pieces import TextPieces
from .model import ServedLlama
from .requests import End, EndReason, Request, Token
from .sampling import Chain
from .stream import Stream

__all__ = ["Choice", "Job"]

Choice = tuple[int, float, list[tuple[int, float]], tuple[bool, tuple[int, ...], tuple[int, ...], Any, float]]
"""What `Session.choose` returns of a token."""


class Job:
    """
    Args:
        settings: What is skipped for it; the same object where it is the same as for others.
        n_most: Tokens that it may generate.
    """

    def __init__(
        self, llm: ServedLlama, request: Request, stream: Stream, chain: Chain, settings: PreparedConfig, n_most: int
    ):
        self.request = request
        self.stream = stream
        self.chain = chain
        self.settings = settings
        self.n_cached = 0
        self.n_generated = 0
        self.last = request.prompt[-1]
        """The token chosen last, which is not evaluated yet."""
        self._llm = llm
        self._n_most = n_most
        self._pieces = TextPieces(request.stop)
        self._unsaid: deque[tuple[Any, ...]] = deque()  # tokens whose text is not known yet
        self._n_rows = 0  # of generated tokens
        self._left_out = 0.0  # sum of what each of them did
        self._submitted = time.monotonic()
        self._started = self._first = 0.0

    def start(self, n_cached: int) -> None:
        """A slot has it, which holds the first so many tokens of its prompt."""
        self._started = time.monotonic()
        self.n_cached = n_cached

    def take(self, choice: Choice, *, generated: bool) -> EndReason | None:
        """The next token, from a row of a generated one or of the prompt. Why the answer ends with it, if it does."""
        token, log_likelihood, likeliest, (may_skip, skipped, attention, kept, left_out) = choice
        if generated:
            self._n_rows += 1
            self._left_out += left_out
        self._first = self._first or time.monotonic()
        if llama_cpp.llama_vocab_is_eog(internals.vocab(self._llm), token):
            return "stop"
        self.n_generated += 1
        logprob = None if self.request.n_logprobs is None else log_likelihood
        top = tuple((id, self._text_of(id), likelihood) for id, likelihood in likeliest)
        self._unsaid.append((skipped, attention, kept, may_skip, logprob, top, token))
        self._say(self._pieces.add(self._llm.detokenize([token], prev_tokens=[self.last])))
        self.last = token
        if self._pieces.stopped:
            return "stop"
        return "length" if self.n_generated == self._n_most else None

    def end(self, reason: EndReason, message: str = "") -> None:
        """Nothing more will come."""
        self._say(self._pieces.end())
        now = time.monotonic()
        end = End(
            reason=reason,
            message=message,
            n_prompt=len(self.request.prompt),
            n_cached=self.n_cached,
            n_generated=self.n_generated,
            skip_ratio=self._left_out / self._n_rows if self._n_rows else 0.0,
            seconds_queue=(self._started or now) - self._submitted,
            seconds_first=(self._first or now) - self._submitted,
            seconds=now - self._submitted,
        )
        self.stream.put([end])

    def _say(self, texts: list[str]) -> None:
        tokens = []
        for text in texts:
            *facts, token = self._unsaid.popleft()
            tokens.append(Token(token, text, *facts))
        if tokens:
            self.stream.put(tokens)

    def _text_of(self, token: int) -> str:
        return self._llm.detokenize([token]).decode("utf-8", errors="replace")
