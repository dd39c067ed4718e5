"""One thing that was tried."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..skip_config import SkipConfig

__all__ = ["Row"]

Kind = Literal["profile", "search", "paper", "channels", "quantisation"]


@dataclass(frozen=True)
class Row:
    """A setting, or a smaller quantisation, next to the dense model. What was not measured is NaN."""

    label: str
    """"25 %", or the name of a type such as "q4_k_m"."""
    kind: Kind
    config: SkipConfig | None = None
    """None: a quantisation, which skips nothing."""
    skip_ratio: float = 0.0
    """FFN blocks skipped, of all of the tokens past the warm-up; with channels, weight bytes left out. Before it is
    measured, what was asked for."""
    size: float = 1.0
    """Of the file, over the user's."""
    kl: float = math.nan
    """KL divergence from the dense model, nats per token."""
    kl_error: float = math.nan
    """Its standard error, over the pieces of text."""
    perplexity_ratio: float = math.nan
    """Perplexity over the dense model's."""
    top1_agreement: float = math.nan
    """Share of tokens with the same most likely next one."""
    speed_up: float = math.nan
    """Times as many tokens per second as the dense model: median."""
    speed_up_q1: float = math.nan
    speed_up_q3: float = math.nan
    first_token: float = math.nan
    """The dense model's time to the first token over this one's."""
    quoted: bool = False
    """Not measured, but llama.cpp's figures of another model."""

    @property
    def name(self) -> str:
        """Where it stands alone: "25 %", or "33.3 % by channels"."""
        by_channels = self.config is not None and self.config.policy == "channels"
        return f"{self.label} by channels" if by_channels else self.label
