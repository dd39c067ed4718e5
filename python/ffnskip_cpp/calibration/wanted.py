"""What a calibration is to find, and on how much text."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ArgumentError
from ..measure.policies import TENSORS
from ..skip_config import TensorsName
from .effort import EFFORTS
from .layers import WHOLE_LAYERS

__all__ = ["EFFORT", "MAX_KL", "MAX_TOKENS", "MEASURED", "POLICIES", "TRIED", "Wanted"]

MAX_KL = 0.05
TRIED = ("blocks", "channels", "blocks+channels")  # if nothing else is said
POLICIES = (*TRIED, *WHOLE_LAYERS)
EFFORT = "normal"
MAX_TOKENS = 20_000
MEASURED = "measured"  # in place of a file of costs


@dataclass(frozen=True)
class Wanted:
    """As `calibrate` has them.

    Raises:
        ArgumentError: A value out of its range, or two targets.
    """

    skip_ratio: float | None = None
    max_kl: float | None = None
    policies: tuple[str, ...] | None = None
    tensors: TensorsName = "ffn"
    costs: str | None = None
    n_depth: int = 0
    effort: str | float = EFFORT
    n_ctx: int | None = None
    max_tokens: int = MAX_TOKENS
    warm_up_index: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        if self.skip_ratio is not None and self.max_kl is not None:
            raise ArgumentError("skip-ratio and max-kl: give one of the two, the other follows from it")
        if self.skip_ratio is not None and not 0 < self.skip_ratio < 1:
            raise ArgumentError(f"skip-ratio: {self.skip_ratio:g} is outside (0, 1)")
        if self.max_kl is not None and not 0 < self.max_kl < math.inf:
            raise ArgumentError(f"max-kl: {self.max_kl:g} is no divergence that can be kept to; a number above 0")
        for policy in self.policies or ():
            if policy not in POLICIES:
                raise ArgumentError(f"policy: {policy!r} is none of {', '.join(POLICIES)}")
            if policy in WHOLE_LAYERS and self.skip_ratio is None:
                raise ArgumentError(f"policy: {policy} is for a share of the layers: give a skip-ratio")
        if self.policies is not None and not self.policies:
            raise ArgumentError(f"policy: none is named; those that are there: {', '.join(POLICIES)}")
        if self.tensors not in TENSORS:
            raise ArgumentError(f"tensors: {self.tensors!r} is neither of {', '.join(TENSORS)}")
        if self.n_depth < 0:
            raise ArgumentError(f"n-depth: {self.n_depth} is negative; it counts tokens in the context, 0 or more")
        if self.n_depth and self.costs != MEASURED:
            raise ArgumentError(
                "n-depth: says at how long a context costs are measured, and is for costs measured alone"
            )
        known = self.effort in EFFORTS if isinstance(self.effort, str) else 0 < self.effort < math.inf
        if not known:
            raise ArgumentError(
                f"effort: {self.effort!r} is neither of {', '.join(EFFORTS)} nor a number of seconds above 0"
            )
        if self.warm_up_index < 0:
            raise ArgumentError(f"warm-up: {self.warm_up_index} is negative; it counts generated tokens, 0 or more")
        if not 0 <= self.seed < 2**32:
            raise ArgumentError(f"seed: {self.seed} is outside [0, 2**32)")
        for name, value in (("n-ctx", self.n_ctx), ("max-tokens", self.max_tokens)):
            if value is not None and value < self.warm_up_index + 2:
                raise ArgumentError(
                    f"{name}: {value} is too few; {self.warm_up_index} tokens of warm-up and 2 more are needed"
                )

    @property
    def limit(self) -> float | None:
        """The KL divergence that is not to be exceeded; None where a skip ratio is wanted."""
        return None if self.skip_ratio is not None else self.max_kl or MAX_KL

    def tries(self, policy: str) -> bool:
        return policy in (TRIED if self.policies is None else self.policies)
