"""Answers in OpenAI's forms: of chats and of texts, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .requests import End, Token
from .tools import ToolReader

__all__ = ["Answered", "ChatForm", "Form", "TextForm", "Wanted"]

_LEAST = -9999.0  # of a logarithm, as there is no -inf in JSON

Choice = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What answers are to look like."""

    model: str
    n: int
    """Answers to each prompt, which come after one another."""
    bytes_of: Callable[[int], bytes]
    """Of a token."""
    echoes: tuple[str, ...] = ()
    """The prompts, where answers begin with them."""
    trace: bool = False
    logprobs: bool = False
    usage: bool = False
    """A last chunk says how many tokens there were."""
    tools: tuple[str, ...] = ()
    several_calls: bool = True


@dataclass(frozen=True)
class Answered:
    tokens: tuple[Token, ...]
    end: End


class Form:
    """One request's answers."""

    KIND = CHUNK_KIND = ID = ""

    def __init__(self, wanted: Wanted):
        self.wanted = wanted
        self._head = {"id": f"{self.ID}-{uuid.uuid4().hex}", "created": int(time.time()), "model": wanted.model}

    def opening(self, index: int) -> Choice | None:
        """What a stream of it begins with; None: nothing."""
        raise NotImplementedError

    def piece(self, index: int, token: Token) -> Choice | None:
        """What a stream says of a token; None: nothing."""
        raise NotImplementedError

    def closing(self, index: int, end: End) -> list[Choice]:
        """What a stream ends with."""
        raise NotImplementedError

    def choice(self, index: int, answer: Answered) -> Choice:
        """The whole answer."""
        raise NotImplementedError

    def chunk(self, choices: Sequence[Choice], ends: Sequence[End] | None = None) -> dict[str, Any]:
        """A part of the stream; with `ends`, the last one."""
        usage = {} if not self.wanted.usage else {"usage": None if ends is None else self._usage(ends)}
        return {**self._head, "object": self.CHUNK_KIND, "choices": choices, **usage}

    def whole(self, answers: Sequence[Answered]) -> dict[str, Any]:
        choices = [self.choice(index, answer) for index, answer in enumerate(answers)]
        usage = self._usage([answer.end for answer in answers])
        return {**self._head, "object": self.KIND, "choices": choices, "usage": usage}

    def _usage(self, ends: Sequence[End]) -> dict[str, Any]:
        n_prompt = sum(end.n_prompt for end in ends[:: self.wanted.n])
        n_generated = sum(end.n_generated for end in ends)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_generated,
            "total_tokens": n_prompt + n_generated,
            "prompt_tokens_details": {"cached_tokens": sum(end.n_cached for end in ends[:: self.wanted.n])},
        }

    def _name(self, token: int) -> str:
        return self.wanted.bytes_of(token).decode("utf-8", errors="replace")

    def _traced(self, token: Token) -> Choice:
        """`skip` of a token's choice."""
        return {"skip": trace_of(token)} if self.wanted.trace else {}

    def _totals(self, end: End) -> Choice:
        return {"skip": {"totals": totals_of(end)}} if self.wanted.trace else {}

    def _whole_trace(self, answer: Answered) -> Choice:
        if not self.wanted.trace:
            return {}
        tokens = [{"text": token.text, **trace_of(token)} for token in answer.tokens]
        return {"skip": {"tokens": tokens, "totals": totals_of(answer.end)}}


class ChatForm(Form):
    KIND, CHUNK_KIND, ID = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, wanted: Wanted):
        super().__init__(wanted)
        self._readers: dict[int, ToolReader] = {}

    def opening(self, index: int) -> Choice:
        return self._part(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, token: Token) -> Choice | None:
        text = self._reader(index).add(token.text) if self.wanted.tools else token.text
        if not (text or self.wanted.trace or self.wanted.logprobs):
            return None
        part = self._part(index, {"content": text} if text else {})
        return {**part, "logprobs": self._logprobs([token]), **self._traced(token)}

    def closing(self, index: int, end: End) -> list[Choice]:
        text, calls = self._reader(index).end() if self.wanted.tools else ("", [])
        parts = [self._part(index, {"content": text})] if text else []
        if calls:
            parts.append(self._part(index, {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]}))
        reason = "tool_calls" if calls else end.reason
        return [*parts, {**self._part(index, {}), "finish_reason": reason, **self._totals(end)}]

    def choice(self, index: int, answer: Answered) -> Choice:
        text = "".join(token.text for token in answer.tokens)
        calls: list[Choice] = []
        if self.wanted.tools:
            said = self._reader(index).add(text)
            rest, calls = self._reader(index).end()
            text = said + rest
        message = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
        return {
            "index": index,
            "message": {**message, "tool_calls": calls} if calls else message,
            "logprobs": self._logprobs(answer.tokens),
            "finish_reason": "tool_calls" if calls else answer.end.reason,
            **self._whole_trace(answer),
        }

    def _part(self, index: int, delta: Mapping[str, Any]) -> Choice:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _reader(self, index: int) -> ToolReader:
        reader = ToolReader(self.wanted.tools, several=self.wanted.several_calls)
        return self._readers.setdefault(index, reader)

    def _logprobs(self, tokens: Sequence[Token]) -> Choice | None:
        if not self.wanted.logprobs:
            return None
        content = [
            {**self._named(token.id, token.logprob), "top_logprobs": [self._named(id, p) for id, _, p in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _named(self, token: int, logprob: float | None) -> Choice:
        return {"token": self._name(token), "logprob": _finite(logprob), "bytes": list(self.wanted.bytes_of(token))}


class TextForm(Form):
    KIND, CHUNK_KIND, ID = "text_completion", "text_completion", "cmpl"

    def __init__(self, wanted: Wanted):
        super().__init__(wanted)
        self._n_chars: dict[int, int] = {}  # of each answer, streamed so far

    def opening(self, index: int) -> Choice | None:
        echo = self._echo(index)
        return self._part(index, echo) if echo else None

    def piece(self, index: int, token: Token) -> Choice | None:
        if not (token.text or self.wanted.trace or self.wanted.logprobs):
            return None
        part = self._part(index, token.text)
        n_before = self._n_chars.get(index, len(self._echo(index)))
        self._n_chars[index] = n_before + len(token.text)
        return {**part, "logprobs": self._logprobs([token], n_before), **self._traced(token)}

    def closing(self, index: int, end: End) -> list[Choice]:
        return [{**self._part(index, ""), "finish_reason": end.reason, **self._totals(end)}]

    def choice(self, index: int, answer: Answered) -> Choice:
        echo = self._echo(index)
        return {
            **self._part(index, echo + "".join(token.text for token in answer.tokens)),
            "logprobs": self._logprobs(answer.tokens, len(echo)),
            "finish_reason": answer.end.reason,
            **self._whole_trace(answer),
        }

    def _part(self, index: int, text: str) -> Choice:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def _echo(self, index: int) -> str:
        return self.wanted.echoes[index // self.wanted.n] if self.wanted.echoes else ""

    def _logprobs(self, tokens: Sequence[Token], n_before: int) -> Choice | None:
        if not self.wanted.logprobs:
            return None
        offsets = []
        for token in tokens:
            offsets.append(n_before)
            n_before += len(token.text)
        return {
            "tokens": [self._name(token.id) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [{self._name(id): _finite(p) for id, _, p in token.top} for token in tokens],
            "text_offset": offsets,
        }


def trace_of(token: Token) -> Choice:
    """What it left out."""
    return {
        "layers": list(token.skipped),
        "attention": list(token.attention_skipped),
        "kept": token.kept,
        "may_skip": token.may_skip,
    }


def totals_of(end: End) -> Choice:
    """Numbers of a whole answer."""
    return {
        "n_prompt": end.n_prompt,
        "n_cached": end.n_cached,
        "n_generated": end.n_generated,
        "skip_ratio": end.skip_ratio,
        "seconds_queue": end.seconds_queue,
        "seconds_first": end.seconds_first,
        "seconds": end.seconds,
    }


def _finite(logprob: float | None) -> float:
    return _LEAST if logprob is None else max(logprob, _LEAST)
