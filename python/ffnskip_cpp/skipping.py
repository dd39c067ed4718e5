"""What a `Llama` is to skip: what was asked for, what its profile says, and what a block of code has instead."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import llama_cpp

from . import _core
from . import llama_cpp_internals as internals
from ._core import Controller, Profile
from .channel_weights import storing_weights
from .context import Context
from .errors import UnsupportedModelError
from .notices import log, warn
from .skip_argument import DENSE, Skip, Wanted, as_wanted, is_dense
from .skip_config import ResolvedConfig, SkipConfig

__all__ = ["Skipping"]

NO_PROFILE = (
    'no skip profile for this model: nothing is skipped; "ffnskip calibrate MODEL --text FILE" makes one, '
    '"ffnskip try MODEL" says what skipping would cost'
)
UNCALIBRATED = 'these values are not calibrated for this model; "ffnskip try MODEL" says what they cost'


class Skipping:
    """Sets the core's config. What does not fit the model is a ValueError; what was set before stays.

    Args:
        given: The argument `skip` of a `Llama`.
    """

    def __init__(self, given: Skip, controller: Controller, context: Context):
        self.given = given
        self._wanted: Wanted = as_wanted(given)
        self._aside: list[Wanted] = []  # what blocks of code have instead, the innermost last
        self._profile: Profile | None = None  # found beside or in the model
        self._core = controller
        self._context = context
        self._is_prepared = False
        self._is_told = False  # that its settings are not calibrated
        self._folder = os.getcwd()  # when the model is loaded; the program may go to another

    def prepare(self, llm: llama_cpp.Llama) -> None:
        """The model is loaded, and its context about to be made: with a callback if one is needed."""
        if self._is_prepared:
            return
        self._is_prepared = True
        if self._wanted == "auto":
            self._find_profile(llm)
        wanted = self._profile if self._wanted == "auto" else self._wanted
        if wanted is not None and not _config_of(wanted).is_static and self._context.generates:
            self._context.add_callback()

    def begin(self, llm: llama_cpp.Llama) -> None:
        """The context has been made."""
        try:
            if self._context.has_callback:
                self._context.probe(internals.context_address(llm))
            self._apply(llm, self._wanted)
        except UnsupportedModelError as error:
            if not (self._wanted == "auto" or is_dense(self._wanted)):
                raise
            self._context.why_dense = str(error)
            if self._wanted == "auto":
                log(llm, f"skip='auto': nothing is skipped: {error}")
            self._core.config = DENSE
        if self._wanted == "auto" and self._context.generates and self._profile is None:
            log(llm, NO_PROFILE)

    def set(self, llm: llama_cpp.Llama, given: Skip) -> None:
        wanted = as_wanted(given)
        if wanted == "auto":
            self._find_profile(llm)
        self._apply(llm, wanted)
        self.given, self._wanted = given, wanted
        if self._aside:
            self.restore(llm)

    def restore(self, llm: llama_cpp.Llama) -> None:
        """Sets what is to be skipped now; a block has ended, or the model was probed anew."""
        self._apply(llm, self._aside[-1] if self._aside else self._wanted, warns=False)

    @contextlib.contextmanager
    def instead(self, llm: llama_cpp.Llama, given: Skip) -> Iterator[None]:
        """Within the block, `given` is skipped."""
        wanted = as_wanted(given)
        self._apply(llm, wanted, warns=False)
        self._aside.append(wanted)
        try:
            yield
        finally:
            self._aside.pop()
            self.restore(llm)

    def _apply(self, llm: llama_cpp.Llama, wanted: Wanted, *, warns: bool = True) -> None:
        if wanted == "auto":
            wanted = self._found(llm, says=warns)
        if wanted is None or is_dense(wanted):
            self._core.config = DENSE
            return
        self._context.need(llm, is_static=_config_of(wanted).is_static)
        n_threads, show = self._context.params.n_threads_batch, None if llm.verbose else False
        with storing_weights(self._core, self._path_of(llm), n_threads=n_threads, show=show):
            if isinstance(wanted, Profile):
                self._core.set_profile(wanted)
            else:
                self._core.config = wanted
        for note in self._core.weights_notes if warns else ():
            log(llm, note)
        if isinstance(wanted, Profile):
            return
        fixed = wanted.layers is not None or wanted.attention_layers is not None
        skips = fixed or self._core.resolved["max_skip"] > 0 or wanted.policy in ("channels", "skip_decode")
        if warns and skips and not self._is_told and not self._is_own_profiles(llm, wanted):
            self._is_told = True
            warn(f"skip: {_values(wanted, self._core.resolved)}: {UNCALIBRATED}")

    def _found(self, llm: llama_cpp.Llama, *, says: bool) -> Profile | None:
        """What "auto" is."""
        if self._profile is None:
            return None
        why_dense = self._context.why_dense
        if says:
            means = f"nothing is skipped: {why_dense}" if why_dense else f"as {self._profile.path} says"
            log(llm, f"skip='auto': {means}")
        return None if why_dense else self._profile

    def _path_of(self, llm: llama_cpp.Llama) -> str:
        return os.path.join(self._folder, llm.model_path)

    def _find_profile(self, llm: llama_cpp.Llama) -> None:
        self._profile = _core.find_profile(internals.model_address(llm), self._path_of(llm))

    def _is_own_profiles(self, llm: llama_cpp.Llama, config: SkipConfig) -> bool:
        profile = self._profile or _core.find_profile(internals.model_address(llm), self._path_of(llm))
        return profile is not None and profile.config == config


def _config_of(wanted: SkipConfig | Profile) -> SkipConfig:
    return wanted.config if isinstance(wanted, Profile) else wanted


def _values(config: SkipConfig, resolved: ResolvedConfig) -> str:
    named = {"layers": config.layers, "attention_layers": config.attention_layers}
    if config.max_skip == 0 and any(named.values()):
        lists = ", ".join(f"{name} {list(layers)}" for name, layers in named.items() if layers)
        return f"{lists} ({'every_row' if config.every_row else f'warm_up_index={config.warm_up_index}'})"
    if config.policy == "channels":
        how = "channel_thresholds" if config.channel_thresholds is not None else f"skip_ratio={config.ratio:.3g}"
        return f"{config.label} ({how}, warm_up_index={config.warm_up_index})"
    if config.policy == "skip_decode":
        return (
            f"{config.label} (min_layers={resolved['min_layers']}, layers [{resolved['cold_s']}, "
            f"{resolved['cold_e']}), budget_decay={config.budget_decay})"
        )
    return (
        f"{resolved['policy']} (sim_threshold={resolved['sim_threshold']:g}, layers [{resolved['cold_s']}, "
        f"{resolved['cold_e']}), max_skip={resolved['max_skip']}, warm_up_index={resolved['warm_up_index']})"
    )
