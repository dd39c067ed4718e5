"""What a server's engine is asked for, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..skip_config import SkipConfig

__all__ = ["Closed", "Counts", "End", "EndReason", "PromptTooLong", "QueueFull", "Request", "Sampling", "Token"]

EndReason = Literal["stop", "length", "cancelled", "error"]

MAX_LOGPROBS = 20


class QueueFull(RuntimeError):
    """As many requests wait as may; try again later."""


class PromptTooLong(ValueError):
    """The context has not so much room."""


class Closed(RuntimeError):
    """The engine takes no more requests."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; names and defaults of `llama_cpp.Llama.create_completion`.

    Raises:
        ValueError: A value is out of its range.
    """

    temperature: float = 0.8
    """0: the likeliest token."""
    top_p: float = 0.95
    top_k: int = 40
    """0 or less: all."""
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    """In [0, 2**32); None: a random one."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens, by id."""
    grammar: str | None = None
    """In GBNF, with a rule `root`."""

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, math.inf)
        for name in ("top_p", "min_p", "typical_p"):
            _within(name, getattr(self, name), 0.0, 1.0)
        _within("repeat_penalty", self.repeat_penalty, 0.0, math.inf)
        if self.repeat_penalty == 0.0:
            raise ValueError("repeat_penalty: 0 is not above 0")
        for name in ("frequency_penalty", "presence_penalty"):
            _within(name, getattr(self, name), -2.0, 2.0)
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: {self.seed} is outside [0, 2**32)")
        for token, bias in self.logit_bias.items():
            if math.isnan(bias):
                raise ValueError(f"logit_bias: {bias} of token {token} is no number to add")


@dataclass(frozen=True)
class Request:
    """
    Raises:
        ValueError: A value is out of its range. What does not fit the model is refused by the engine.
    """

    prompt: tuple[int, ...]
    """Token ids, one at least."""
    max_tokens: int | None = None
    """To generate, 1 or more; None: to the end of the context."""
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    """Texts that end the answer, and are no part of it."""
    n_logprobs: int | None = None
    """The likeliest tokens told with each one, 0 to 20, and its own logarithm; None: neither."""
    skip: SkipConfig | Literal["default"] | None = "default"
    """What is skipped; "default": as the engine was told; None: nothing."""
    reuses: bool = True
    """What a sequence holds of the prompt already is not evaluated again."""
    client: str = ""
    """Clients take turns where requests wait."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt: it has no tokens")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens: {self.max_tokens} is less than 1")
        if any(not text for text in self.stop):
            raise ValueError("stop: an empty text would end every answer at once")
        if self.n_logprobs is not None and not 0 <= self.n_logprobs <= MAX_LOGPROBS:
            raise ValueError(f"n_logprobs: {self.n_logprobs} is outside [0, {MAX_LOGPROBS}]")


@dataclass(frozen=True)
class Token:
    """A token of an answer."""

    id: int
    text: str
    """What it adds to the text: whole characters, none where they end in a later token; never part of a stop text."""
    skipped: tuple[int, ...] = ()
    """Layers whose FFN block the row left out that gave it."""
    attention_skipped: tuple[int, ...] = ()
    """The same of attention."""
    kept: float | None = None
    """Policy "channels": of the weights' bytes, the share that was read for that row; None with others."""
    may_skip: bool = False
    """Whether that row may have skipped; False of a prompt's and within the warm-up."""
    logprob: float | None = None
    """Natural logarithm of its probability, by the model, before sampling options."""
    top: tuple[tuple[int, str, float], ...] = ()
    """The likeliest tokens there: id, text, logarithm; the likeliest first."""


@dataclass(frozen=True)
class End:
    """What comes after the last token of an answer, always."""

    reason: EndReason
    """"stop": an end token or a stop text; "length": max_tokens, or the context was full."""
    message: str
    """What went wrong, where something did."""
    n_prompt: int
    """Tokens of the prompt,"""
    n_cached: int
    """of these, found in the memory, and not evaluated again."""
    n_generated: int
    """Tokens of the answer, those of a stop text among them, without the end token."""
    skip_ratio: float
    """As `SkipStats.skip_ratio`, of this answer."""
    seconds_queue: float
    """Waiting for its turn."""
    seconds_first: float
    """From the request to the first token; to the end where there was none."""
    seconds: float
    """From the request to the end."""


@dataclass(frozen=True)
class Counts:
    """What an engine has done since it began, and is doing."""

    running: int
    queued: int
    done: int
    """Answers that ended by themselves."""
    cancelled: int
    failed: int
    n_prompt: int
    """Tokens of prompts, those found in the memory among them."""
    n_cached: int
    n_generated: int
    ffn_total: int
    """FFN blocks of generated tokens."""
    ffn_skipped: int
    attention_total: int
    attention_skipped: int
    skip_ratio: float
    seconds: float
    """Evaluating and sampling."""


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        ends = f"[{low:g}, {high:g}]" if math.isfinite(high) else f"{low:g} and up"
        raise ValueError(f"{name}: {value} is outside {ends}")
