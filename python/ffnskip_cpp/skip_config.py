"""What to skip: the settings, as users give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

import numpy as np

from . import _core

__all__ = ["POLICIES", "PolicyName", "ResolvedConfig", "SkipConfig", "TensorsName"]

PolicyName = Literal["dense", "ffn_skip", "random", "channels", "skip_decode"]
TensorsName = Literal["ffn", "all"]
OtherPolicyName = Literal["short_gpt", "fixed", "fixed_plus_ffn_skip", "ffn_skip_per_layer", "random_adaptive_region"]

BLOCK_RATIO = 0.25
CHANNEL_RATIO = 1 / 3

POLICIES: tuple[str, ...] = (*get_args(PolicyName), *get_args(OtherPolicyName))


@dataclass(frozen=True, repr=False)
class SkipConfig:
    """What to skip. FFN-SkipLLM (arXiv:2404.03865), section 3.2 and Algorithm 1.

    Immutable, hashable and picklable. `repr` names the fields that differ from their defaults.

    Args:
        policy: "ffn_skip" skips the FFN blocks of `layers`, and by Algorithm 1 others of the adaptive region; "random"
            is the paper's baselines, max_skip FFN blocks chosen anew for each token; "channels" leaves out, of the
            blocks not among `layers`, the input channels that reach least; "skip_decode" (Del Corro et al. 2023) whole
            layers, attention too, of generated tokens, more and more of [cold_s, cold_e) the further a text has come:
            no warm-up, and prompts that follow leave out what was left out before them; "dense" skips nothing. Other
            names stand for one of these and fields, and are turned into them: "short_gpt" (Men et al. 2024: whole
            layers of every row; `layers`, max_skip 0, `attention_layers` the same, every_row), and of older versions
            "fixed" (`layers` and max_skip 0), "fixed_plus_ffn_skip" (`layers`), "ffn_skip_per_layer"
            (`layer_thresholds`), "random_adaptive_region" (region "adaptive").
        sim_threshold: Cosine similarity of the residual before and after an FFN block at which a token trips.
            Above 1: never.
        cold_s, cold_e: Layers [0, cold_s) and [cold_e, n_layer) never skip; [cold_s, cold_e) is the adaptive region.
            0 <= cold_s < cold_e < n_layer. Default: an eighth of the layers at either end.
        warm_up_index: Generated tokens per generation that run in full first, 0 or more.
        skip_ratio: Target share of all FFN blocks, [0, 1], default 0.25; sets max_skip = round(skip_ratio * n_layer),
            less the number of `layers`. For "channels" the share of the weight bytes of `tensors` that is not to be
            read, default 1/3. For "skip_decode" of the layers, on average while they fall, default 0.25.
        max_skip: FFN blocks skipped after the trip, counted from the next layer on and never past cold_e; 0 or more.
            Those of `layers` are not among them. 0: no similarity is checked.
        layers: For "ffn_skip" and "channels": layers in [0, n_layer - 1) that every token skips. With max_skip 0
            "ffn_skip" skips no others.
        attention_layers: With every policy but "dense": layers in [0, n_layer - 1) whose attention is left out by every
            token that may skip: queries, scores and output. Keys and values are still written.
        every_row: `layers` and `attention_layers` are left out of every row, of prompts and within the warm-up too, and
            keys and values are not written. For "ffn_skip" with max_skip 0 and "channels".
        seed: For "random", in [0, 2**64).
        layer_thresholds: For "ffn_skip": float [n_layer], each in place of sim_threshold; infinite where a layer is
            not to be checked.
        check_stride: Every n-th layer of the adaptive region is checked, 1 or more.
        check_interval: For "ffn_skip": every n-th generated token of a sequence is checked, 1 or more; those between
            skip what the one before them did.
        region: For "random", where the blocks are chosen from: "any", all layers but the last (Baseline 1), or
            "adaptive", the adaptive region (Baseline 2).
        channel_thresholds: For "channels": float [4 * n_layer], or an array [n_layer, 4]; four for each layer, for the
            inputs of Q, K and V, of attention's output matrix, of gate and up, and of down. Channel j of an input v is
            left out where ``|v[j]| * norm(W[:, j])`` is below the threshold (times the root mean square of these, in
            models that normalise the FFN's result); 0: none is. Without them, each text's first generated tokens, 16
            or more, run in full and tell which thresholds give `skip_ratio`.
        tensors: For "channels", where no thresholds are given: "ffn", the inputs of gate, up and down, or "all",
            those of attention's matrices too.
        min_layers: For "skip_decode": layers that tokens from position `budget_decay` on run, 1 or more, in place of
            `skip_ratio`. Default: n_layer - round(2 * skip_ratio * n_layer).
        budget_decay: For "skip_decode": positions over which the layers that run fall, linearly, from all to the
            fewest; 1 or more.
    Raises:
        TypeError: A value of the wrong type.
        ValueError: A value is wrong for any model. What does not fit a given model is refused by that `Llama`.
    """

    policy: PolicyName | OtherPolicyName = "ffn_skip"
    sim_threshold: float = 0.9
    cold_s: int | None = None
    cold_e: int | None = None
    warm_up_index: int = 30
    skip_ratio: float | None = None
    max_skip: int | None = None
    layers: Sequence[int] | None = None
    seed: int = 0
    layer_thresholds: Sequence[float] | None = None
    check_stride: int = 1
    check_interval: int = 1
    region: Literal["any", "adaptive"] = "any"
    channel_thresholds: Sequence[float] | None = None
    tensors: TensorsName = "ffn"
    attention_layers: Sequence[int] | None = None
    every_row: bool = False
    min_layers: int | None = None
    budget_decay: int = 512

    def __post_init__(self) -> None:
        if isinstance(self.channel_thresholds, np.ndarray):
            object.__setattr__(self, "channel_thresholds", self.channel_thresholds.ravel().tolist())
        for name in _NUMBERS:
            value = getattr(self, name)
            for number in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(number, bool):
                    raise TypeError(f"{name}: {number} is not a number")
        self.__dict__.update(vars(_core.canonical(self)))

    def replace(self, **changes: Any) -> SkipConfig:
        """The same with other values for some fields."""
        return dataclasses.replace(self, **changes)

    def asdict(self) -> dict[str, Any]:
        """Every field by name."""
        return dataclasses.asdict(self)

    def __repr__(self) -> str:
        changed = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        return f"SkipConfig({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    @property
    def ratio(self) -> float:
        """`skip_ratio`, or its default for the policy."""
        default = CHANNEL_RATIO if self.policy == "channels" else BLOCK_RATIO
        return default if self.skip_ratio is None else self.skip_ratio

    @property
    def n_full(self) -> int:
        """Generated tokens of each text that run in full first: `warm_up_index`, and as many as thresholds of channels
        are found in."""
        if self.policy == "skip_decode":
            return 0
        finds = self.policy == "channels" and self.channel_thresholds is None
        return max(self.warm_up_index, _core.CHANNEL_TOKENS if finds else 0)

    @property
    def is_static(self) -> bool:
        """Every row that may skip skips the same blocks, and nothing is asked of it."""
        return self.policy == "ffn_skip" and self.max_skip == 0

    @property
    def label(self) -> str:
        """What it does in a few words, for tables: "ffn_skip", "fixed layers", "fixed layers + channels"."""
        if self.every_row and self.policy == "ffn_skip" and self.layers == self.attention_layers:
            return "short_gpt"
        parts = [self._label_of_ffn]
        if self.attention_layers is not None:
            parts.append("attention")
        return " + ".join(filter(None, parts)) + (" of every row" if self.every_row else "")

    @property
    def _label_of_ffn(self) -> str:
        if self.policy == "random":
            return "random" if self.region == "any" else "random in adaptive region"
        if self.policy == "channels":
            return "channels" if self.layers is None else "fixed layers + channels"
        per_layer = "" if self.layer_thresholds is None else " per layer"
        if self.layers is None:
            return "" if self.attention_layers is not None and self.max_skip == 0 else self.policy + per_layer
        return "fixed layers" + (f" + ffn_skip{per_layer}" if self.max_skip != 0 else "")


_NO_NUMBERS = ("policy", "region", "tensors", "every_row")
_NUMBERS = [field.name for field in dataclasses.fields(SkipConfig) if field.name not in _NO_NUMBERS]


class ResolvedConfig(TypedDict):
    """A SkipConfig as it applies to one model."""

    policy: PolicyName
    sim_threshold: float
    cold_s: int
    cold_e: int
    warm_up_index: int
    max_skip: int
    min_layers: int
