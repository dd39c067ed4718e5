"""What `analyze` was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..measure.model import check_model
from ..measure.policies import RATIO_POLICIES, REGIONS, TENSORS, policy_settings
from ..measure.text import MIN_TOKENS, as_paths
from ..profile import PathLike
from ..skip_config import TensorsName

__all__ = ["FIGURES", "SKIP_RATIOS", "Wanted"]

FIGURES = ("similarity", "never_tripped", "warm_up", "heat_map", "channels", "skip_ratio")
SKIP_RATIOS = (0.1, 0.2, 0.25, 0.3, 0.5)


@dataclass(frozen=True)
class Wanted:
    """The arguments of `analyze`, which says what they mean."""

    model_path: PathLike
    text: PathLike | Sequence[PathLike]
    output: PathLike
    figures: str | Sequence[str]
    skip_ratio: float | Sequence[float] | None
    policy: str | Sequence[str] | None
    region: str | Sequence[str] | None
    tensors: TensorsName
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
        """Raises ArgumentError (name, value, range), and FileNotFoundError for the model."""
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
                    raise ArgumentError(f"{name}: {value} is too few; at least {least}")
        for name, some in (
            ("figures", self.figures),
            ("skip-ratio", self.ratios),
            ("policy", self.policy),
            ("region", self.region),
            ("warm-ups", self.warm_ups),
            ("generated", self.n_generated),
        ):
            if some is not None and len(some) == 0:
                raise ArgumentError(f"{name}: the list is empty; name at least one")
        if self.tensors not in TENSORS:
            raise ArgumentError(f"tensors: {self.tensors!r} is not known; known are {', '.join(TENSORS)}")
        if not 0 <= self.seed < 2**64:
            raise ArgumentError(f"seed: {self.seed} is outside [0, 2**64)")
        for ratio in self.ratios or ():
            if not 0 < ratio <= 1:
                raise ArgumentError(f"skip-ratio: {ratio:g} is outside (0, 1]")
        for name in self.names:
            if name not in FIGURES:
                raise ArgumentError(f"figures: {name!r} is not known; known are {', '.join(FIGURES)}")
        _ = self.policies  # refuses those that are not known
        check_model(self.model_path, self.n_threads, self.lora)

    @property
    def ratios(self) -> Sequence[float] | None:
        return (self.skip_ratio,) if isinstance(self.skip_ratio, (int, float)) else self.skip_ratio

    @property
    def policies(self) -> list[dict[str, Any]]:
        """As fields of a SkipConfig. Default: all there are."""
        policies, regions = self.policy, self.region
        if policies is None:
            policies, regions = RATIO_POLICIES, REGIONS if regions is None else regions
        return policy_settings(_several(policies), None if regions is None else _several(regions))

    @property
    def names(self) -> Sequence[str]:
        """Of the pictures."""
        return _several(self.figures)

    @property
    def shows_channels(self) -> bool:
        """Some picture needs weights by channel, which take time and memory."""
        policies = [policy["policy"] for policy in self.policies]
        return "channels" in self.names or ("skip_ratio" in self.names and "channels" in policies)

    @property
    def inputs(self) -> tuple[PathLike, ...]:
        """Files that no output may take the place of."""
        return (self.model_path, *as_paths(self.text))

    @property
    def folder(self) -> Path:
        return Path(self.output)


def _several(given: str | Sequence[str]) -> Sequence[str]:
    return (given,) if isinstance(given, str) else given
