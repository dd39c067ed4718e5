"""What `analyze` was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..benchmark.options import RATIO_POLICIES
from ..measure.model import check_model
from ..measure.text import MIN_TOKENS, as_paths
from ..profile import PathLike

__all__ = ["FIGURES", "SKIP_RATIOS", "Wanted"]

FIGURES = ("similarity", "never_tripped", "warm_up", "heat_map", "skip_ratio")
SKIP_RATIOS = (0.1, 0.2, 0.25, 0.3, 0.5)


@dataclass(frozen=True)
class Wanted:
    """The arguments of `analyze`, which says what they mean."""

    model_path: PathLike
    text: PathLike | Sequence[PathLike]
    output: PathLike
    figures: str | Sequence[str]
    skip_ratio: float | Sequence[float] | None
    policy: str | Sequence[str]
    profile: PathLike | None
    lora: PathLike | None
    sim_threshold: float | None
    cold_s: int | None
    cold_e: int | None
    warm_up_index: int | None
    warm_ups: Sequence[int]
    n_generated: Sequence[int]
    n_prompts: int
    n_prompt: int
    n_speed: int
    n_ctx: int | None
    max_tokens: int
    seed: int
    n_threads: int | None
    n_gpu_layers: int
    progress: bool | None

    def __post_init__(self) -> None:
        """Raises ValueError (name, value, range), and FileNotFoundError for the model."""
        for name, values, least in (
            ("n-ctx", () if self.n_ctx is None else (self.n_ctx,), MIN_TOKENS),
            ("max-tokens", (self.max_tokens,), MIN_TOKENS),
            ("warm-ups", self.warm_ups, 0),
            ("generated", self.n_generated, 1),
            ("prompts", (self.n_prompts,), 1),
            ("prompt-tokens", (self.n_prompt,), 1),
            ("speed-tokens", (self.n_speed,), 0),
        ):
            for value in values:
                if value < least:
                    raise ValueError(f"{name}: {value} is too few; at least {least}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed: {self.seed} is outside [0, 2**64)")
        for ratio in self.ratios or ():
            if not 0 < ratio <= 1:
                raise ValueError(f"skip-ratio: {ratio:g} is outside (0, 1]")
        for name, names, known in (("policy", self.policies, RATIO_POLICIES), ("figures", self.names, FIGURES)):
            for given in names:
                if given not in known:
                    raise ValueError(f"{name}: {given!r} is not known; known are {', '.join(known)}")
        check_model(self.model_path, self.n_threads, self.lora)

    @property
    def ratios(self) -> Sequence[float] | None:
        return (self.skip_ratio,) if isinstance(self.skip_ratio, (int, float)) else self.skip_ratio

    @property
    def policies(self) -> Sequence[str]:
        return (self.policy,) if isinstance(self.policy, str) else tuple(dict.fromkeys(self.policy))

    @property
    def names(self) -> Sequence[str]:
        """Of the pictures."""
        return (self.figures,) if isinstance(self.figures, str) else self.figures

    @property
    def inputs(self) -> tuple[PathLike, ...]:
        """Files that no output may take the place of."""
        return (self.model_path, *as_paths(self.text))

    @property
    def folder(self) -> Path:
        return Path(self.output)
