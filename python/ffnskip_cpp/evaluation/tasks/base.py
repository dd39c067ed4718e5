"""What a task is: items read from official files, put to a model, and what each came to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, Union

import numpy as np
import numpy.typing as npt

from ...batches import Completion
from ...measure.quality import Comparison
from ...scoring import Score
from ..methods import Method

__all__ = ["Item", "Metric", "Record", "Settings", "Subject", "Task"]

Prompt = Union[str, Sequence[int]]


@dataclass(frozen=True)
class Item:
    """A question, a text: what a task puts to a model at a time. Tasks derive from it."""

    id: str
    """Of this item alone among those of its file, and the same whatever is left out of the file."""
    group: str
    """Subject, category, length: where some items are chosen, as many of each; "" where there is no such thing."""
    where: str
    """file:line, for messages."""


@dataclass(frozen=True)
class Record:
    """What one item came to."""

    id: str
    group: str
    """What figures are given for beside the whole: the item's, or a wider one."""
    values: dict[str, float]
    """By name, what the task's metrics are made from."""
    n_scored: int
    """Tokens that the values hang on: generated, or scored by their likelihood."""
    n_may_skip: int
    """Of these, those that come from a row that may skip."""
    shown: dict[str, Any] = field(default_factory=dict)
    """What a reader wants to see. Where the model wrote: "question", "text" ("turns" where there are several),
    "tokens", and "reference", what is right, where the file has it."""


@dataclass(frozen=True)
class Metric:
    """A figure over items: the sum of one value over the sum of another, so that a mean is one over items."""

    name: str
    value: str
    """Of a record's values, the one that is summed."""
    weight: str | None = None
    """The one that it is divided by; None: the number of items."""
    exponential: bool = False
    """exp of that quotient: a perplexity."""
    higher_is_better: bool = True
    percent: bool = False
    """A share, shown in percent."""

    def of(self, values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Over the last axis."""
        with np.errstate(invalid="ignore", divide="ignore"):
            quotient: npt.NDArray[np.float64] = values.sum(axis=-1) / weights.sum(axis=-1)
        return np.exp(quotient) if self.exponential else quotient


@dataclass(frozen=True)
class Settings:
    """What a user may say of a task."""

    scoring: str = "loglikelihood"
    """Of mmlu: "loglikelihood" or "generate"."""
    max_tokens: int | None = None
    """Of an answer that is generated; None: the task's own."""


class Subject(Protocol):
    """A model under a method, as tasks see it."""

    method: Method

    def score(self, prefix: Prompt, continuations: Sequence[Prompt]) -> Score:
        """`Llama.score`."""

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int, stop: Sequence[str] = ()) -> Iterator[Completion]:
        """Greedily, in the order of the prompts, several at once."""

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> list[int] | None:
        """By the model's own chat template; None where it has none."""

    def tokenize(self, text: str) -> list[int]:
        """With what the vocabulary puts before a text."""

    def n_ctx(self) -> int:
        """Tokens that prompt and answer may have together; no more than `n_ctx_train`."""

    def n_ctx_train(self) -> int:
        """Tokens that the model was trained on."""

    def compare(self, tokens: Sequence[int]) -> tuple[Comparison, int]:
        """The rows of a text behind the warm-up, next to the dense model's: the same for all methods. And how many of
        them may skip."""


ItemT = TypeVar("ItemT", bound=Item)


class Task(Protocol[ItemT]):
    """One object per task; tasks/__init__.py lists them."""

    name: str
    metrics: tuple[Metric, ...]
    """The first is the one that tables and curves are about."""

    def read(self, path: Path) -> list[ItemT]:
        """The items of a file, or a folder where the official data is one. ValueError with file:line where it is none
        of the forms that are known."""

    def run(self, subject: Subject, items: Sequence[ItemT], settings: Settings) -> Iterator[Record]:
        """A record for each item, in their order, as it is known."""
