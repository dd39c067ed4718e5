"""What is to be judged, and how; checked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from ...errors import ArgumentError
from .estimate import Estimate
from .verdicts import FOLDER

__all__ = ["MODES", "Wanted"]

PathLike = Union[str, "os.PathLike[str]"]

MODES = ("single", "pairwise")
DENSE = "dense"


@dataclass(frozen=True)
class Wanted:
    """The arguments of `judge`."""

    directory: PathLike
    url: str
    model: str
    api_key_env: str | None
    mode: str
    against: str | None
    criteria: Sequence[str] | None
    prompts: PathLike | None
    limit: int | None
    max_retries: int
    parallel: int
    timeout: float
    price_in: float | None
    price_out: float | None
    confirm: Callable[[Estimate], Any] | None
    progress: bool | None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ArgumentError(f"mode: {self.mode!r} is none of {', '.join(MODES)}")
        if self.mode == "single" and self.against is not None:
            raise ArgumentError("against: answers are compared in mode pairwise alone")
        for name, value, least in (
            ("limit", self.limit, 1),
            ("max-retries", self.max_retries, 0),
            ("parallel", self.parallel, 1),
        ):
            if value is not None and value < least:
                raise ArgumentError(f"{name}: {value} is below {least}")
        if not 0 < self.timeout < math.inf:
            raise ArgumentError(f"timeout: {self.timeout:g} is no time to wait; seconds above 0 are right")
        for name, price in (("price-in", self.price_in), ("price-out", self.price_out)):
            if price is not None and not 0 <= price < math.inf:
                raise ArgumentError(f"{name}: {price:g} is no price of a million tokens")

    @property
    def reference(self) -> str | None:
        """What answers are compared with; None where each is graded by itself."""
        return None if self.mode == "single" else self.against or DENSE

    @property
    def reference_name(self) -> str | None:
        return None if self.reference is None else Path(self.reference).name

    @property
    def api_key(self) -> str | None:
        """Raises ArgumentError where a variable was named that is not set."""
        if self.api_key_env is None:
            return os.environ.get("OPENAI_API_KEY") or None
        key = os.environ.get(self.api_key_env)
        if not key:
            raise ArgumentError(f"api-key-env: the environment variable {self.api_key_env} is not set")
        return key

    @property
    def folder(self) -> Path:
        return Path(self.directory, FOLDER)

    @property
    def name(self) -> str:
        """Of the files: what tells this judgement from others of the folder."""
        parts = [self.model, self.mode]
        parts += [] if self.reference_name is None else [self.reference_name]
        parts += [] if self.criteria is None else ["+".join(self.criteria)]
        parts += [] if self.prompts is None else [Path(self.prompts).resolve().name]
        return "-".join(re.sub(r"[^\w.+-]+", "_", part) for part in parts)
