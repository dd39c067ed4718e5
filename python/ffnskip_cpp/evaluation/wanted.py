"""What an evaluation was asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..batches import MAX_PARALLEL
from ..errors import ArgumentError
from .items import SPEED, PathLike
from .speed import LEAST_TOKENS

__all__ = ["N_CTX", "N_PARALLEL", "SCORING", "Wanted"]

N_CTX = 8192
N_PARALLEL = 8
SCORING = ("loglikelihood", "generate")


@dataclass(frozen=True)
class Wanted:
    """As `evaluate` has them; checked.

    Raises:
        ArgumentError: A value that is wrong whatever the model and the data.
        FileNotFoundError: A text is missing.
    """

    tasks: Sequence[str]
    limit: int | None
    text: Sequence[PathLike]
    skip_prompts: int | None
    warm_up_index: int | None
    scoring: str
    max_tokens: int | None
    n_ctx: int
    n_parallel: int
    seed: int

    def __post_init__(self) -> None:
        for name, value, least in (
            ("limit", self.limit, 1),
            ("skip-prompts", self.skip_prompts, 0),
            ("warm-up", self.warm_up_index, 0),
            ("max-tokens", self.max_tokens, 1),
            ("n-ctx", self.n_ctx, 64),
            ("parallel", self.n_parallel, 1),
        ):
            if value is not None and value < least:
                raise ArgumentError(f"{name}: {value} is too few; at least {least}")
        if self.n_parallel > MAX_PARALLEL:
            raise ArgumentError(f"parallel: {self.n_parallel} is too many; at most {MAX_PARALLEL}")
        if SPEED in self.tasks and self.max_tokens is not None and self.max_tokens < LEAST_TOKENS:
            raise ArgumentError(f"max-tokens: {self.max_tokens} is too few for {SPEED}; at least {LEAST_TOKENS}")
        if self.scoring not in SCORING:
            raise ArgumentError(f"scoring: {self.scoring!r} is neither of {', '.join(SCORING)}")
        if self.scoring != SCORING[0] and "mmlu" not in self.tasks:
            raise ArgumentError(f"scoring: {self.scoring} is for task mmlu, which is not among those to run")
        if not 0 <= self.seed < 2**32:
            raise ArgumentError(f"seed: {self.seed} is outside [0, 2**32)")
        for path in self.text:
            if not os.path.isfile(path):
                raise FileNotFoundError(f"{os.fspath(path)}: no such file")

    @property
    def texts(self) -> list[Path]:
        return [Path(path) for path in self.text]
