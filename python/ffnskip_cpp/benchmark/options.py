"""What to measure: the tests, as llama-bench has them, and the settings that take turns in each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Union

import numpy as np
import numpy.typing as npt

from .._core import CHANNEL_TOKENS, Profile
from ..errors import ArgumentError
from ..files import PathLike
from ..lora import as_adapter
from ..measure.policies import RATIO_POLICIES, all_kept, policy_settings
from ..measure.similarity import ALWAYS_TRIPS, NEVER_TRIPS
from ..skip_config import SkipConfig, TensorsName
from ..threads import MAX_THREADS
from .random_model import find_type
from .shapes import find_shape

__all__ = [
    "ALL_BLOCKS",
    "AUTO",
    "CHANNEL_RATIOS",
    "IDLE",
    "POLICIES",
    "SKIP_RATIOS",
    "Options",
    "Setting",
    "Several",
    "Test",
    "lead_of",
    "settings_of",
]

SKIP_RATIOS = (0.3, 0.5)  # of FFN blocks
CHANNEL_RATIOS = (1 / 3, 0.5)  # of weight bytes
AUTO = "auto"  # in place of a profile: the model's own
IDLE, ALL_BLOCKS = "idle", "all blocks"  # rows whose times say what a block takes
FIXED = "fixed"  # the same blocks for every token, in the middle: their number alone makes the speed
POLICIES = (*RATIO_POLICIES, FIXED)
MAX_TOKENS = 2**24  # no model has a context as long; llama.cpp takes minutes to refuse much longer ones


@dataclass(frozen=True)
class Test:
    """A prompt or a generation, after `n_depth` tokens that are in the context already."""

    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0

    @property
    def name(self) -> str:
        depth = f" @ d{self.n_depth}" if self.n_depth else ""
        return (f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}") + depth

    @property
    def n_ctx(self) -> int:
        return self.n_prompt + self.n_gen + self.n_depth


Value = TypeVar("Value")
Several = Union[Value, Sequence[Value]]


@dataclass(frozen=True)
class Options:
    """The arguments of `bench`, as given; and as properties what they come to."""

    model_path: PathLike | None = None
    shape: str | None = None
    type: str = "q4_0"
    n_threads: Several[int] | None = None
    n_prompt: Several[int] = 0
    n_gen: Several[int] = 64
    n_depth: Several[int] = 0
    repetitions: int = 3
    warm_up: bool = True
    n_gpu_layers: int = -1
    flash_attention: bool | None = None
    skip_ratio: Several[float] | None = None
    policy: Several[str] | None = None
    region: Several[str] | None = None
    cold_s: int | None = None
    cold_e: int | None = None
    tensors: TensorsName = "ffn"
    profile: Several[PathLike] | None = None
    lora: PathLike | None = None
    progress: bool | None = None
    verbose: bool = False

    @property
    def threads(self) -> tuple[int, ...]:
        return _several(self.n_threads) or (os.cpu_count() or 1,)

    @property
    def tests(self) -> list[Test]:
        return [
            test
            for depth in _several(self.n_depth)
            for test in (
                *(Test(n_prompt=n, n_depth=depth) for n in _several(self.n_prompt) if n > 0),
                *(Test(n_gen=n, n_depth=depth) for n in _several(self.n_gen) if n > 0),
            )
        ]

    @property
    def profiles(self) -> tuple[str, ...]:
        return tuple(os.fspath(path) for path in _several(self.profile))

    @property
    def skipping(self) -> list[SkipConfig]:
        """Each policy but "fixed" with each ratio. Profiles are measured alone, unless something else is asked for."""
        if self.profiles and self.skip_ratio is None and self.policy is None:
            return []
        blocks = SkipConfig(cold_s=self.cold_s, cold_e=self.cold_e, warm_up_index=0, sim_threshold=ALWAYS_TRIPS)
        channels = SkipConfig("channels", warm_up_index=0, tensors=self.tensors)
        return [
            channels.replace(skip_ratio=ratio) if _is_channels(policy) else blocks.replace(**policy, skip_ratio=ratio)
            for policy in self.policies
            for ratio in _several(self.skip_ratio) or (CHANNEL_RATIOS if _is_channels(policy) else SKIP_RATIOS)
        ]

    @property
    def fixed_ratios(self) -> tuple[float, ...]:
        """Of policy "fixed"."""
        return (_several(self.skip_ratio) or SKIP_RATIOS) if FIXED in self._named_policies else ()

    @property
    def policies(self) -> list[dict[str, Any]]:
        """But "fixed", as fields of a SkipConfig."""
        return policy_settings(self._named_policies, _several(self.region), POLICIES)

    @property
    def _named_policies(self) -> tuple[str, ...]:
        return _several(RATIO_POLICIES[0] if self.policy is None else self.policy)

    def check(self) -> None:
        """Raises ArgumentError (field, value, range), and FileNotFoundError for the model."""
        for name, given in (("skip-ratio", self.skip_ratio), ("policy", self.policy), ("region", self.region)):
            if given is not None and not _several(given):
                raise ArgumentError(f"{name}: the list is empty; name at least one, or leave it out")
        for name, values, least, most in (
            ("threads", self.threads, 1, MAX_THREADS),
            ("n-prompt", _several(self.n_prompt), 0, MAX_TOKENS),
            ("n-gen", _several(self.n_gen), 0, MAX_TOKENS),
            ("n-depth", _several(self.n_depth), 0, MAX_TOKENS),
            ("repetitions", (self.repetitions,), 1, MAX_TOKENS),
        ):
            for value in values:
                if value < least:
                    raise ArgumentError(f"{name}: {value} is too few; at least {least}")
                if value > most:
                    raise ArgumentError(f"{name}: {value} is too many; at most {most}")
        if not self.tests:
            raise ArgumentError("n-prompt and n-gen: 0 and 0 leave nothing to measure; at least one must be positive")
        for ratio in _several(self.skip_ratio):
            if not 0 <= ratio <= 1:
                raise ArgumentError(f"skip-ratio: {ratio:g} is outside [0, 1]")
        leaves_channels_out = any(map(_is_channels, self.policies))  # refuses those that are not known
        if self.tensors != Options.tensors and not leaves_channels_out:
            raise ArgumentError(f"tensors: {self.tensors} is for policy channels, which is not among those to measure")
        _ = self.skipping  # refuses what can't be right
        self._check_model()

    def _check_model(self) -> None:
        if (self.model_path is None) == (self.shape is None):
            raise ArgumentError("model, shape: give one of the two, a GGUF file or the name of a shape")
        if self.shape is not None:
            find_shape(self.shape)
            find_type(self.type)
            for name, given in (("profile", self.profiles), ("lora", self.lora)):
                if given:
                    raise ArgumentError(f"{name}: random weights (shape) have none; give a model")
        elif self.model_path is not None and not Path(self.model_path).is_file():
            raise FileNotFoundError(f"{self.model_path}: no such file")
        if self.lora is not None:
            as_adapter(self.lora)


def _is_channels(policy: Mapping[str, Any]) -> bool:
    return bool(policy["policy"] == "channels")


def _several(given: Any) -> tuple[Any, ...]:
    """One value, or a sequence of them; None is none."""
    if given is None:
        return ()
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)


OfModel = Callable[[npt.NDArray[np.bool_]], SkipConfig]
"""What depends on which layers, [n_layer], have a block that can be skipped."""


@dataclass(frozen=True)
class Setting:
    """One way to decode. `config` None is llama.cpp alone, without our callback."""

    name: str
    config: SkipConfig | Profile | OfModel | None
    target: float | None = None
    has_fixed_blocks: bool = False
    """What `OfModel` gives is static."""

    @property
    def leaves_channels_out(self) -> bool:
        config = self._settings
        return config is not None and config.policy == "channels"

    @property
    def finds_thresholds(self) -> bool:
        """Its first tokens run in full, and tell which channels reach least."""
        config = self._settings
        return config is not None and config.policy == "channels" and config.channel_thresholds is None

    @property
    def is_static(self) -> bool:
        config = self._settings
        return self.has_fixed_blocks if config is None else config.is_static

    @property
    def _settings(self) -> SkipConfig | None:
        if isinstance(self.config, Profile):
            return self.config.config
        return self.config if isinstance(self.config, SkipConfig) else None


def lead_of(settings: Sequence[Setting]) -> int:
    """Tokens to be decoded before those that are timed."""
    return CHANNEL_TOKENS if any(setting.finds_thresholds for setting in settings) else 0


def settings_of(options: Options, test: Test, profiles: Mapping[str, Profile] | None = None) -> list[Setting]:
    """The first is what all others are compared with. Prompts run in full whatever the setting, so plain llama.cpp and
    one of ours are all there is to compare.

    Args:
        profiles: By the name that their row gets.
    """
    idle = [Setting("dense", None), Setting(IDLE, SkipConfig(policy="dense"))]
    if test.n_prompt:
        return idle

    skipping = options.skipping
    channels = [config for config in skipping if config.policy == "channels"]
    blocks = [config for config in skipping if config.policy != "channels"]
    checks = SkipConfig(
        cold_s=options.cold_s, cold_e=options.cold_e, warm_up_index=0, sim_threshold=NEVER_TRIPS, max_skip=1
    )
    of_profiles = [Setting(name, profile) for name, profile in (profiles or {}).items()]
    fixed = [
        Setting("fixed layers", partial(_middle_blocks, options, ratio), ratio, has_fixed_blocks=True)
        for ratio in options.fixed_ratios
    ]
    skips_blocks = blocks or fixed or not all(setting.leaves_channels_out for setting in of_profiles)
    return [
        *idle,
        *([Setting("checks", checks)] if blocks or fixed or not channels else []),
        *([Setting(ALL_BLOCKS, _all_blocks, has_fixed_blocks=True)] if skips_blocks else []),
        *fixed,
        *(Setting(config.label, config, config.ratio) for config in blocks),
        *(Setting("channels, all kept", partial(_all_kept, options.tensors), 0.0) for _ in channels[:1]),
        *(Setting(config.label, config, config.ratio) for config in channels),
        *of_profiles,
    ]


def _all_blocks(skippable: npt.NDArray[np.bool_]) -> SkipConfig:
    """But the last layer's, which always runs."""
    return SkipConfig(layers=np.flatnonzero(skippable[:-1]).tolist(), max_skip=0, warm_up_index=0)


def _middle_blocks(options: Options, ratio: float, skippable: npt.NDArray[np.bool_]) -> SkipConfig:
    """round(ratio * n_layer) of those in `_all_blocks`, and between the cold regions if such are given."""
    first, last = options.cold_s or 0, len(skippable) if options.cold_e is None else options.cold_e
    layers = [layer for layer in np.flatnonzero(skippable[:-1]).tolist() if first <= layer < last]
    n = int(ratio * len(skippable) + 0.5)
    if n > len(layers):
        raise ValueError(
            f"skip_ratio: {ratio:g} asks for {n}; policy '{FIXED}' can skip at most {len(layers)} of {len(skippable)} "
            f"FFN blocks (a ratio of {len(layers) / len(skippable):g})"
        )
    middle = layers[(len(layers) - n) // 2 :][:n]
    return SkipConfig(layers=middle or None, max_skip=0, warm_up_index=0)


def _all_kept(tensors: TensorsName, skippable: npt.NDArray[np.bool_]) -> SkipConfig:
    return all_kept(len(skippable), tensors, warm_up_index=0)
