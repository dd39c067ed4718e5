"""What to measure: the tests, as llama-bench has them, and the settings that take turns in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .._core import Profile
from ..gguf_file.shapes import find_shape, find_type
from ..lora import as_adapter
from ..skip_config import SkipConfig
from ..threads import MAX_THREADS

__all__ = ["AUTO", "RATIO_POLICIES", "Options", "Setting", "Test", "settings_of"]

RATIO_POLICIES = ("ffn_skip", "random", "random_adaptive_region")
AUTO = "auto"  # in place of a profile: the model's own
ALWAYS_TRIPS = -2.0  # a cosine is never below -1
NEVER_TRIPS = 2.0
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


@dataclass(frozen=True)
class Options:
    """What to measure and how. `model_path`, or else `shape` and `type`. Every combination of several values of
    `threads`, `n_prompt`, `n_gen` and `n_depth` is measured; an `n_prompt` or `n_gen` of 0 stands for no such test."""

    model_path: str | None = None
    shape: str | None = None
    type: str = "q4_0"
    threads: tuple[int, ...] = (1,)
    n_prompt: tuple[int, ...] = (0,)
    n_gen: tuple[int, ...] = (64,)
    n_depth: tuple[int, ...] = (0,)
    repetitions: int = 3
    warm_up: bool = True
    n_gpu_layers: int = -1
    flash_attention: bool | None = None  # None: llama.cpp decides
    skip_ratios: tuple[float, ...] = (0.3, 0.5)
    policies: tuple[str, ...] = ("ffn_skip",)
    cold_s: int | None = None  # None: the controller's default
    cold_e: int | None = None
    profiles: tuple[str, ...] = ()  # files, or "auto", the model's own
    lora: str | None = None  # FILE or FILE:SCALE
    verbose: bool = False

    @property
    def tests(self) -> list[Test]:
        return [
            test
            for depth in self.n_depth
            for test in (
                *(Test(n_prompt=n, n_depth=depth) for n in self.n_prompt if n > 0),
                *(Test(n_gen=n, n_depth=depth) for n in self.n_gen if n > 0),
            )
        ]

    def check(self) -> None:
        """Raises ValueError (field, value, range), and FileNotFoundError for the model."""
        for name, values, least, most in (
            ("threads", self.threads, 1, MAX_THREADS),
            ("n-prompt", self.n_prompt, 0, MAX_TOKENS),
            ("n-gen", self.n_gen, 0, MAX_TOKENS),
            ("n-depth", self.n_depth, 0, MAX_TOKENS),
            ("repetitions", (self.repetitions,), 1, MAX_TOKENS),
        ):
            for value in values:
                if value < least:
                    raise ValueError(f"{name}: {value} is too few; at least {least}")
                if value > most:
                    raise ValueError(f"{name}: {value} is too many; at most {most}")
        if not self.tests:
            raise ValueError("n-prompt and n-gen: 0 and 0 leave nothing to measure; at least one must be positive")
        for ratio in self.skip_ratios:
            if not 0 <= ratio <= 1:
                raise ValueError(f"skip-ratio: {ratio:g} is outside [0, 1]")
        for policy in self.policies:
            if policy not in RATIO_POLICIES:
                raise ValueError(f"policy: {policy!r} takes no skip ratio; those that do: {', '.join(RATIO_POLICIES)}")
        if self.model_path is None:
            find_shape(self.shape or "")
            find_type(self.type)
            for name, given in (("profile", self.profiles), ("lora", self.lora)):
                if given:
                    raise ValueError(f"{name}: random weights (shape) have none; give a model")
        elif not Path(self.model_path).is_file():
            raise FileNotFoundError(f"{self.model_path}: no such file")
        if self.lora is not None:
            as_adapter(self.lora)


@dataclass(frozen=True)
class Setting:
    """One way to decode. `config` None is llama.cpp alone, without our callback."""

    name: str
    config: SkipConfig | Profile | None
    target: float | None = None


def settings_of(options: Options, test: Test, profiles: Mapping[str, Profile] | None = None) -> list[Setting]:
    """The first is what all others are compared with. Prompts run in full whatever the setting, so plain llama.cpp and
    one of ours are all there is to compare.

    Args:
        profiles: By the name that their row gets.
    """
    idle = [Setting("dense", None), Setting("idle", SkipConfig(policy="dense"))]
    if test.n_prompt:
        return idle

    def config(policy: str, sim_threshold: float, max_skip: int | None, skip_ratio: float = 0.0) -> SkipConfig:
        return SkipConfig(
            policy,
            sim_threshold=sim_threshold,
            cold_s=options.cold_s,
            cold_e=options.cold_e,
            warm_up_index=0,
            skip_ratio=skip_ratio,
            max_skip=max_skip,
        )

    return [
        *idle,
        Setting("checks", config("ffn_skip", NEVER_TRIPS, max_skip=1)),
        *(
            Setting(policy, config(policy, ALWAYS_TRIPS, None, ratio), ratio)
            for policy in options.policies
            for ratio in options.skip_ratios
        ),
        *(Setting(name, profile) for name, profile in (profiles or {}).items()),
    ]
