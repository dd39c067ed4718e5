"""Several texts at once: generations that share batches, each as it would be alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import llama_cpp

from . import llama_cpp_internals as internals
from .checked import CheckedLlama, token_ids, whole
from .decoding import Decoder
from .errors import ArgumentError
from .generation import prompt_tokens, sampling_options
from .plain import plain
from .scoring import Text, check_ids

__all__ = ["Completion", "Wanted", "completions", "prompts_of"]

MAX_PARALLEL = int(llama_cpp.llama_max_parallel_sequences()) - 1  # besides what they all begin with
SHARED = 32  # tokens that all prompts begin with, from which on they are decoded once


@dataclass(frozen=True)
class Completion:
    """What a prompt was continued with."""

    text: str
    """Up to the stop string, which is not part of it."""
    tokens: tuple[int, ...]
    """That were generated, without the end token."""
    finish_reason: Literal["stop", "length"]
    """"stop": an end token or a stop string; "length": max_tokens, or the context was full."""
    n_may_skip: int
    """Of the tokens, those that come from a row that may skip."""

    def as_dict(self) -> dict[str, Any]:
        """Of plain values."""
        return plain(self)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Wanted:
    """Of each prompt. Raises ArgumentError and TypeError."""

    max_tokens: int | None
    stop: Sequence[str]
    skip_prompts: int | None
    n_parallel: int
    seed: int | None
    sampling: dict[str, Any]
    """Options of `llama_cpp.Llama.generate`."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise TypeError(f"stop: {self.stop!r} is one string; give a list of them")
        if "" in self.stop:
            raise ArgumentError("stop: an empty string is found in every text; leave it out")
        if self.max_tokens is not None and whole("max_tokens", self.max_tokens) < 0:
            raise ArgumentError(f"max_tokens: {self.max_tokens} is negative")
        if self.skip_prompts is not None and whole("skip_prompts", self.skip_prompts) < 0:
            raise ArgumentError(f"skip_prompts: {self.skip_prompts} is negative; it counts tokens of a prompt")
        if not 1 <= whole("n_parallel", self.n_parallel) <= MAX_PARALLEL:
            raise ArgumentError(f"n_parallel: {self.n_parallel} is outside [1, {MAX_PARALLEL}]")
        if self.seed is not None and not 0 <= whole("seed", self.seed) < 2**32:
            raise ArgumentError(f"seed: {self.seed} is outside [0, 2**32)")
        for name in ("reset", "logits_processor", "stopping_criteria"):
            if name in sampling_options((), self.sampling):
                raise TypeError(f"generate_batch() has no option {name!r}; generate() has it")

    def n_prompt(self, ids: list[int]) -> int:
        """Tokens of a prompt that run as one."""
        return len(ids) if self.skip_prompts is None else min(self.skip_prompts, len(ids))


def prompts_of(llm: CheckedLlama, prompts: Sequence[Text]) -> list[list[int]]:
    """Their token ids; ValueError where one of them can't be gone on from, with its number."""
    if isinstance(prompts, str):
        raise TypeError(f"prompts: {prompts[:20]!r} is one text; give a list of them")
    n_ctx, given = internals.n_context(llm), []
    for i, prompt in enumerate(prompts):
        ids = prompt_tokens(llm, prompt) if isinstance(prompt, str) else token_ids(prompt)
        if not 1 <= len(ids) <= n_ctx:
            raise ValueError(f"prompts[{i}]: it has {len(ids) or 'no'} tokens; 1 to n_ctx={n_ctx} can be gone on from")
        check_ids(llm, f"prompts[{i}]", ids)
        given.append(ids)
    return given


def completions(
    llm: CheckedLlama, decoder: Decoder, prompts: list[list[int]], wanted: Wanted, share: Callable[[int], None]
) -> Generator[Completion, None, None]:
    """`Llama.generate_batch`.

    Args:
        share: Has the context made for so many sequences, where its memory can be shared.
    """
    if not prompts:
        return
    work = _Work(llm, decoder, prompts, wanted, share)
    for i in range(len(prompts)):
        while i not in work.done:
            work.advance()
        yield work.done.pop(i)


class _Growing:
    """A prompt, and what it is continued with so far."""

    def __init__(self, llm: CheckedLlama, number: int, ids: list[int], wanted: Wanted):
        room = internals.n_context(llm) - len(ids) + 1  # the last token generated need not fit
        self.number = number
        self.ids = ids
        self.n_prompt = wanted.n_prompt(ids)
        self.max_tokens = room if wanted.max_tokens is None else min(wanted.max_tokens, room)
        self.seq = -1
        self.tokens: list[int] = []
        self.finish_reason: Literal["stop", "length"] | None = None if self.max_tokens else "length"
        self._llm = llm
        self._stop = [text.encode("utf-8") for text in wanted.stop]
        self._bytes = b""

    @property
    def n_rows(self) -> int:
        """In the memory, at most."""
        return len(self.ids) + self.max_tokens - 1

    @property
    def position(self) -> int:
        """Of the token that is decoded next."""
        return len(self.ids) + len(self.tokens) - 1

    def take(self, token: int) -> None:
        if llama_cpp.llama_vocab_is_eog(internals.vocab(self._llm), token):
            self.finish_reason = "stop"
            return
        self._bytes += self._llm.detokenize([token], prev_tokens=(self.tokens or self.ids)[-1:])
        self.tokens.append(token)
        found = [at for stop in self._stop if (at := self._bytes.find(stop)) >= 0]
        if found:
            self._bytes = self._bytes[: min(found)]
            self.finish_reason = "stop"
        elif len(self.tokens) == self.max_tokens:
            self.finish_reason = "length"

    def completion(self, decoder: Decoder) -> Completion:
        first = len(self.ids) - 1  # the row that the first token comes from
        n_may_skip = decoder.controller.n_may_skip(first, first + len(self.tokens), self.n_prompt)
        text = self._bytes.decode("utf-8", errors="ignore")  # as llama_cpp does with a character that was cut
        assert self.finish_reason is not None
        return Completion(text, tuple(self.tokens), self.finish_reason, n_may_skip)


class _Work:
    """Sequences of one context that are generated together. The next prompt begins when one has ended and the cells
    that it may come to need are free: those of the memory are shared."""

    def __init__(
        self,
        llm: CheckedLlama,
        decoder: Decoder,
        prompts: list[list[int]],
        wanted: Wanted,
        share: Callable[[int], None],
    ):
        self.done: dict[int, Completion] = {}  # by number of the prompt
        self._llm, self._decoder = llm, decoder
        self._waiting = deque(_Growing(llm, i, ids, wanted) for i, ids in enumerate(prompts))
        self._running: list[_Growing] = []
        internals.context_address(llm)  # raises if the model is closed
        n_parallel = min(wanted.n_parallel, len(prompts))
        samplers = [internals.make_sampler(llm, wanted.sampling, wanted.seed) for _ in range(n_parallel)]
        self._generation = decoder.generation = object()
        share(wanted.n_parallel + 1)
        llm.reset()
        decoder.n_rows = 0  # and 0 it stays while nobody else has anything evaluated
        n_sequences = decoder.session.n_sequences
        self._free = [0] if n_sequences == 1 else list(range(1, min(n_parallel, n_sequences - 1) + 1))
        self._samplers = dict(zip(self._free, samplers))
        self._shared = [] if n_sequences == 1 else _common(prompts)
        self._read_shared(wanted.n_prompt(self._shared))

    def _read_shared(self, n_prompt: int) -> None:
        """What of it the memory has from before stays."""
        session = self._decoder.session
        kept = session.keep(self._shared, n_prompt)
        session.prompt(self._shared[kept:], max(0, n_prompt - kept), 0)

    def advance(self) -> None:
        """By a token of each, or more."""
        self._require_ours()
        while self._waiting and self._may_begin(self._waiting[0]):
            self._begin(self._waiting.popleft())
        if self._running:
            turns = [(text.seq, text.tokens[-1], self._address_of_sampler(text.seq)) for text in self._running]
            following = self._decoder.session.step_all(turns)
            for text, token in zip(self._running, following):
                text.take(token)
            self._settle()

    def _require_ours(self) -> None:
        internals.context_address(self._llm)  # raises if the model is closed
        session = self._decoder.session
        is_ours = self._decoder.generation is self._generation and self._llm.n_tokens == self._decoder.n_rows == 0
        n_held = {text.seq: text.position for text in self._running}
        if self._shared:
            n_held[0] = len(self._shared)
        if not is_ours or any(session.n_used(seq) != n for seq, n in n_held.items()):
            raise RuntimeError("this Llama was used for something else since; go through generate_batch() first")

    def _may_begin(self, text: _Growing) -> bool:
        if text.max_tokens == 0:
            return True
        n_used = len(self._shared) + sum(running.n_rows - len(self._shared) for running in self._running)
        needed = text.n_rows - len(self._shared)
        return bool(self._free) and n_used + needed <= internals.n_context(self._llm)

    def _begin(self, text: _Growing) -> None:
        if text.max_tokens > 0:
            session, n_shared = self._decoder.session, len(self._shared)
            text.seq = self._free.pop()
            if n_shared:
                session.copy(0, text.seq)
            session.prompt(text.ids[n_shared:], max(0, text.n_prompt - n_shared), text.seq)
            llama_cpp.llama_sampler_reset(self._samplers[text.seq].sampler)
            text.take(session.sample(self._address_of_sampler(text.seq)))
        self._running.append(text)
        self._settle()

    def _settle(self) -> None:
        """Those that have ended make room."""
        ended = [text for text in self._running if text.finish_reason]
        self._running = [text for text in self._running if not text.finish_reason]
        for text in ended:
            self.done[text.number] = text.completion(self._decoder)
            if text.seq >= 0:
                self._decoder.session.cut(0, text.seq)
                self._free.append(text.seq)
        if ended:
            self._decoder.say_notice()

    def _address_of_sampler(self, seq: int) -> int:
        return internals.sampler_address(self._samplers[seq])


def _common(prompts: list[list[int]]) -> list[int]:
    """What all begin with, and go on from; nothing where that is little."""
    if len(prompts) < 2:
        return []
    least, most = min(prompts), max(prompts)  # whatever lies between them begins with what these share
    n_most = min(map(len, prompts)) - 1
    n = next((i for i in range(n_most) if least[i] != most[i]), n_most)
    return least[:n] if n >= SHARED else []
