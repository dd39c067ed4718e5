"""What tasks are put to in tests: one that says what the test has it say, and an open model.

Both have the methods of `ffnskip_cpp.evaluation.tasks.base.Subject`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ffnskip_cpp import Llama, Score
from ffnskip_cpp.batches import Completion
from ffnskip_cpp.evaluation.methods import Method
from ffnskip_cpp.measure.chat import formatter_of
from ffnskip_cpp.measure.quality import Comparison, compare

DENSE = Method("dense", "dense", None, None)
WARM_UP = 2  # of `Scripted`


class Scripted:
    """Tokens are words, each with the blanks before it. From the third token on they may skip.

    Args:
        answer: What it says to a prompt, a text.
        likely: Log-likelihood of a continuation of a prefix, both texts.
        template: Of the messages of a chat a text; None: it has none.
    """

    method = DENSE

    def __init__(
        self,
        answer: Callable[[str], str] = lambda prompt: "",
        likely: Callable[[str, str], float] = lambda prefix, continuation: 0.0,
        template: Callable[[Sequence[dict[str, str]]], str] | None = None,
        n_ctx: int = 10_000,
        n_ctx_train: int = 10_000,
    ):
        self.answer, self.likely, self.template = answer, likely, template
        self._n_ctx, self._n_ctx_train = n_ctx, n_ctx_train
        self.vocabulary: list[str] = []
        self.prompts: list[str] = []
        """Texts that it was to go on with, in order."""
        self.asked: dict[str, Any] = {}
        """The other arguments of the last call of `generate`."""

    def tokenize(self, text: str) -> list[int]:
        words = re.findall(r"\s*\S+|\s+$", text)
        self.vocabulary += [word for word in dict.fromkeys(words) if word not in self.vocabulary]
        return [self.vocabulary.index(word) for word in words]

    def n_ctx(self) -> int:
        return self._n_ctx

    def n_ctx_train(self) -> int:
        return self._n_ctx_train

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> list[int] | None:
        return None if self.template is None else self.tokenize(self.template(messages))

    def generate(self, prompts: Sequence[Any], *, max_tokens: int, stop: Sequence[str] = ()) -> Iterator[Completion]:
        self.asked = {"max_tokens": max_tokens, "stop": tuple(stop)}
        for prompt in prompts:
            text = prompt if isinstance(prompt, str) else "".join(self.vocabulary[token] for token in prompt)
            self.prompts.append(text)
            yield self._completion(self.answer(text), max_tokens, stop)

    def _completion(self, text: str, max_tokens: int, stop: Sequence[str]) -> Completion:
        for mark in stop:
            text = text.partition(mark)[0]
        tokens = self.tokenize(text)
        reason = "length" if len(tokens) > max_tokens else "stop"
        tokens = tokens[:max_tokens]
        text = "".join(self.vocabulary[token] for token in tokens)
        return Completion(text, tuple(tokens), reason, max(0, len(tokens) - WARM_UP))

    def score(self, prefix: str, continuations: Sequence[str]) -> Score:
        self.prompts.append(prefix)
        likely = np.array([self.likely(prefix, text) for text in continuations], np.float64)
        n_tokens = np.array([len(self.tokenize(text)) for text in continuations], np.int64)
        return Score(likely, likely > -1, n_tokens, np.maximum(n_tokens - WARM_UP, 0))

    def compare(self, tokens: Sequence[int]) -> tuple[Comparison, int]:
        """Token by token: the model is surer of the token than the dense one by a tenth of its id. The last one may not
        skip."""
        ids = np.array(tokens[WARM_UP + 1 :], np.float64)
        return Comparison(ids / 100, ids % 2 == 0, np.ones(len(ids)), 1 - ids / 10), len(ids) - 1


class Opened:
    """An open model, one prompt after the other.

    Args:
        skip_prompts: As `Llama.score` has it.
    """

    method = DENSE

    def __init__(self, llm: Llama, skip_prompts: int | None = None):
        self.llm, self.skip_prompts = llm, skip_prompts

    def tokenize(self, text: str) -> list[int]:
        return self.llm.tokenize(text.encode("utf-8"), special=True)

    def n_ctx(self) -> int:
        return self.llm.n_ctx()

    def n_ctx_train(self) -> int:
        return self.llm.n_ctx_train

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> list[int] | None:
        formatter = formatter_of(self.llm, add_generation_prompt=True)
        if formatter is None:
            return None
        text = formatter(messages=list(messages)).prompt
        return self.llm.tokenize(text.encode("utf-8"), add_bos=False, special=True)

    def generate(self, prompts: Sequence[Any], *, max_tokens: int, stop: Sequence[str] = ()) -> Iterator[Completion]:
        for prompt in prompts:
            made = self.llm.create_completion(
                prompt, max_tokens=max_tokens, stop=list(stop), temperature=0.0, repeat_penalty=1.0
            )["choices"][0]
            tokens = self.llm.tokenize(made["text"].encode("utf-8"), add_bos=False)
            yield Completion(made["text"], tuple(tokens), made["finish_reason"], 0)

    def score(self, prefix: str, continuations: Sequence[str]) -> Score:
        return self.llm.score(prefix, continuations, skip_prompts=self.skip_prompts)

    def compare(self, tokens: Sequence[int]) -> tuple[Comparison, int]:
        """All rows but the last may skip."""
        with self.llm.dense():
            dense = self.llm.forward(tokens)[:-1]
        return compare(dense, self.llm.forward(tokens)[:-1], tokens[1:]), len(tokens) - 1
