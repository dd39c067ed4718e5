"""A model under a method, as tasks see it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..batches import Completion
from ..generation import prompt_tokens
from ..llama import Llama
from ..measure.chat import formatter_of
from ..measure.quality import Comparison, compare
from ..measure.text import Chunk
from ..scoring import Score, divided
from ..skip_config import SkipConfig
from ..stats import SkipStats
from .making import WARM_UP
from .methods import Method
from .tasks.base import Prompt

__all__ = ["Counts", "ModelSubject", "Options"]


@dataclass(frozen=True)
class Options:
    """What a user may say of how items are put to a model."""

    skip_prompts: int | None = None
    """Tokens of a prompt from this one on count as generated; None: none of them."""
    warm_up_index: int | None = None
    """None: each method's own."""
    n_parallel: int = 8
    """Answers that are generated at once."""


@dataclass(frozen=True)
class Counts:
    """What was left out of the rows that count as generated."""

    skipped: int = 0
    total: int = 0
    """FFN blocks."""
    bytes_left_out: int = 0
    bytes_total: int = 0
    """0 where channels or attention are not left out."""

    @classmethod
    def of(cls, stats: SkipStats) -> Counts:
        return cls(stats.ffn_skipped, stats.ffn_total, stats.bytes_left_out, stats.bytes_total)

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    @property
    def skip_ratio(self) -> float:
        """As `SkipStats` has it; 0 where nothing was generated."""
        if self.bytes_total:
            return self.bytes_left_out / self.bytes_total
        return self.skipped / self.total if self.total else 0.0


class ModelSubject:
    """`tasks.base.Subject`.

    Args:
        llm: Skips as `method` says as long as this is in use.
        dense: The user's model, which `compare` compares with; `llm` itself but for methods that are other files.
    """

    def __init__(self, llm: Llama, method: Method, dense: Llama, options: Options):
        self.method = method
        self.counts = Counts()
        """Since `begin()`."""
        self._llm, self._dense, self._options = llm, dense, options

    def begin(self) -> None:
        """What comes does not depend on what came before: nothing is in the context, nothing is counted."""
        self._llm.reset()
        self._llm._decoder.session.clear()  # of a prefix that was scored, too, which is kept for the next one
        self.counts = Counts()

    def score(self, prefix: Prompt, continuations: Sequence[Prompt]) -> Score:
        skip_prompts = self._options.skip_prompts
        if skip_prompts is not None:
            prefix, continuations = divided(self._llm, prefix, continuations)
            skip_prompts = min(skip_prompts, len(prefix))
        with self._counted():
            return self._llm.score(prefix, continuations, skip_prompts=skip_prompts)

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int, stop: Sequence[str] = ()) -> Iterator[Completion]:
        with self._counted():
            yield from self._llm.generate_batch(
                prompts,
                max_tokens=max_tokens,
                stop=stop,
                skip_prompts=self._options.skip_prompts,
                n_parallel=self._options.n_parallel,
                temp=0.0,
                repeat_penalty=1.0,
            )

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> list[int] | None:
        formatter = self._formatter
        if formatter is None:
            return None
        try:
            text = formatter(messages=list(messages)).prompt
        except Exception as error:  # whatever the template's author, or Jinja, thought fit
            raise ValueError(f"the model's chat template can't render a chat: {error}") from error
        tokens: list[int] = self._llm.tokenize(text.encode("utf-8"), add_bos=False, special=True)
        return tokens

    @functools.cached_property
    def _formatter(self) -> Any:
        return formatter_of(self._llm, add_generation_prompt=True)

    def tokenize(self, text: str) -> list[int]:
        return prompt_tokens(self._llm, text)

    def n_ctx(self) -> int:
        return min(self._llm.n_ctx(), self.n_ctx_train())

    def n_ctx_train(self) -> int:
        return self._llm.n_ctx_train

    def compare(self, tokens: Sequence[int]) -> tuple[Comparison, int]:
        """All methods on the same rows: those past the warm-up of the user's choice, or else of 30 tokens.

        Returns:
            The rows, which may be none, and how many of them may skip.
        """
        warm_up = WARM_UP if self._options.warm_up_index is None else self._options.warm_up_index
        text = Chunk.of_text(list(tokens))
        rows = text.rows(warm_up)
        with self._dense.dense():
            dense = other = self._dense.forward(tokens, rows=rows)
        n_full = len(tokens) if self.method.skip is None else _n_full(self.method.skip)
        if self.method.skip is not None or self.method.model is not None:
            with self._counted():
                other = self._llm.forward(tokens, text.kinds(n_full), rows=rows)
        compared = compare(dense, other, [tokens[i + 1] for i in rows])
        return compared, sum(i >= n_full for i in rows)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._llm.reset_stats()
        try:
            yield
        finally:  # a task has all its answers, and does not ask whether there is another
            self.counts += Counts.of(self._llm.stats)


def _n_full(config: SkipConfig) -> int:
    """Rows of a text that run in full."""
    return 0 if config.every_row else config.n_full
