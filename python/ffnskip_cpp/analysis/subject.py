"""What an analysis measures: a model, open, with the text in chunks and the settings that its pictures show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import llama_cpp_internals as internals
from .._core import Profile, find_profile
from ..benchmark.options import AUTO
from ..errors import UnsupportedModelError
from ..gguf_file.header import read_header
from ..llama import Llama
from ..measure.model import open_model
from ..measure.text import N_CTX, Text, chunks_of_tokens
from ..profile import read_profile
from ..progress import Told, progress_bar
from ..skip_config import SkipConfig, TensorsName
from .wanted import FIGURES, SKIP_RATIOS, Wanted

__all__ = ["Subject", "open_subject"]


@contextlib.contextmanager
def open_subject(wanted: Wanted, texts: Sequence[Text]) -> Iterator[Subject]:
    """Raises ValueError, as `Subject` and where the model can't be loaded or can't skip (`UnsupportedModelError`)."""
    trained = int(read_header(wanted.model_path).of_architecture("context_length", N_CTX))
    with open_model(
        wanted.model_path,
        _sizes(wanted, trained)[1],
        skip="auto",
        n_threads=wanted.n_threads,
        n_gpu_layers=wanted.n_gpu_layers,
        lora=wanted.lora,
    ) as llm:
        yield Subject(llm, wanted, texts)


def _sizes(wanted: Wanted, trained: int) -> tuple[int, int]:
    """Tokens of a chunk of text, and of the context that generation has; of the model, those it was trained on."""
    n_ctx = wanted.n_ctx or min(N_CTX, trained)
    return n_ctx, max(n_ctx, min(trained, wanted.n_prompt + max(wanted.n_generated)))


class Subject:
    """
    Raises:
        ValueError: Text that is too short, or a setting that does not fit the model or the text.
    """

    def __init__(self, llm: Llama, wanted: Wanted, texts: Sequence[Text]):
        self.llm = llm
        self.wanted = wanted
        self.n_layer = llm.n_layer
        self.n_ctx, self.context = _sizes(wanted, llm.n_ctx_train)
        self.chunks = chunks_of_tokens(llm, texts, self.n_ctx, max_tokens=wanted.max_tokens)
        self.n_tokens = sum(map(len, self.chunks))
        base = self._algorithm_1()
        self.why_no_channels = self._why_no_channels(base)
        # One that was asked for says itself why it does not fit.
        channels = wanted.shows_channels and (wanted.policy is not None or self.why_no_channels is None)
        self.policies = [policy for policy in wanted.policies if channels or policy["policy"] != "channels"]
        self.ratios, self.ratio_notes = self._fitting_ratios(base)
        self.config = with_ratio(base, self.ratios[(len(self.ratios) - 1) // 2])
        with llm.skipping(self.config):
            resolved = llm.resolved
        self.cold = (resolved["cold_s"], resolved["cold_e"])
        self.profile = self._profile()
        self.warm_ups = self._fitting_warm_ups()

    @property
    def shown(self) -> SkipConfig:
        """The setting of the pictures that show a single one, of whatever policy."""
        return self.config if self.profile is None else self.profile.config

    @property
    def shown_words(self) -> str:
        if self.profile is None:
            return f"Algorithm 1 at a skip ratio of {self.config.ratio:g}"
        return f"the setting of {Path(self.profile.path).name} ({self.profile.config.label})"

    @property
    def channels(self) -> SkipConfig:
        """The setting of the picture of channels: the profile's, if it leaves some out, or what needs no profile."""
        if self.profile is not None and self.profile.config.policy == "channels":
            return self.profile.config
        return channels_of(self.config, None, self.wanted.tensors)

    @property
    def leaves_out_channels_picture(self) -> bool:
        """Of the pictures that are drawn by default; one that was asked for says why it can't be."""
        return self.why_no_channels is not None and tuple(self.wanted.names) == FIGURES

    def configs(self) -> list[SkipConfig]:
        """Every policy at every ratio, as far as they fit the model."""
        every = [self._with_ratio(self.config, r, policy) for policy in self.policies for r in self.ratios]
        return [config for config in every if self._fits(config)]

    def prompts(self) -> list[list[int]]:
        """Beginnings of chunks, of one length."""
        n = min(self.wanted.n_prompt, max(1, self.context // 4), max(map(len, self.chunks)))
        return [chunk[:n] for chunk in self.chunks if len(chunk) >= n][: self.wanted.n_prompts]

    @contextlib.contextmanager
    def progress(self, description: str, n_tokens: int) -> Iterator[Told]:
        """Yields what to call with tokens done."""
        with progress_bar(description, n_tokens, unit="tokens", show=self.wanted.progress) as bar:
            yield bar.update

    # ---- settings ----

    def _algorithm_1(self) -> SkipConfig:
        """With the values given, or those that the model has by itself."""
        wanted = self.wanted
        with self.llm.skipping(self.llm.skip or SkipConfig()):
            own = self.llm.resolved

        def value(given: Any, usual: Any) -> Any:
            return usual if given is None else given

        return SkipConfig(
            "ffn_skip",
            sim_threshold=value(wanted.sim_threshold, own["sim_threshold"]),
            cold_s=value(wanted.cold_s, own["cold_s"]),
            cold_e=value(wanted.cold_e, own["cold_e"]),
            warm_up_index=value(wanted.warm_up_index, own["warm_up_index"]),
            max_skip=0,
            seed=wanted.seed,
        )

    def _profile(self) -> Profile | None:
        given, model = self.wanted.profile, self.wanted.model_path
        if given is None:
            return None
        if given != AUTO:
            profile = read_profile(given)
            with self.llm.skipping(profile.path):  # refuses that of another model
                return profile
        found = find_profile(internals.model_address(self.llm), str(model))
        if found is None:
            raise ValueError(f"profile: auto, but there is no profile beside or in {model}")
        return found

    def _why_no_channels(self, base: SkipConfig) -> str | None:
        if not self.wanted.shows_channels:
            return None
        try:
            with self.llm.skipping(channels_of(base, None, self.wanted.tensors)):
                return None
        except UnsupportedModelError as error:
            return str(error)

    def _with_ratio(self, config: SkipConfig, ratio: float, policy: Mapping[str, Any]) -> SkipConfig:
        if policy["policy"] == "channels":
            return channels_of(config, ratio, self.wanted.tensors)
        return with_ratio(config, ratio, **policy)

    def _fits(self, config: SkipConfig) -> bool:
        try:
            with self.llm.skipping(config):
                return True
        except ValueError:
            return False

    def _fitting_ratios(self, base: SkipConfig) -> tuple[list[float], list[str]]:
        """Those given, all of which must fit the model; or those of the default that do, and differ in it."""
        with self.llm.skipping(base):  # refuses what is wrong whatever the ratio
            pass
        if self.wanted.ratios is not None:
            ratios = sorted(set(self.wanted.ratios))
            for ratio in ratios:
                for config in (with_ratio(base, ratio), *(self._with_ratio(base, ratio, p) for p in self.policies)):
                    with self.llm.skipping(config):
                        pass
            return ratios, []
        closest: dict[int, float] = {}  # of the ratios that give a number of blocks, the one that is nearest to it
        for ratio in sorted(SKIP_RATIOS, key=lambda ratio: abs(ratio * self.n_layer - round(ratio * self.n_layer))):
            closest.setdefault(round(ratio * self.n_layer), ratio)
        fitting = [ratio for n, ratio in closest.items() if n > 0 and self._fits(with_ratio(base, ratio))]
        if not fitting:
            raise ValueError(f"none of the skip ratios {SKIP_RATIOS} fits the {self.n_layer} layers; give --skip-ratio")
        left_out = [f"{ratio:g}" for ratio in SKIP_RATIOS if ratio not in fitting]
        note = f"Skip ratios left out: {', '.join(left_out)}: the model can't reach them, or another one is the same."
        return sorted(fitting), [note] if left_out else []

    def _fitting_warm_ups(self) -> list[int]:
        longest, figures = max(map(len, self.chunks)), self.wanted.names
        warm_ups = [n for n in sorted(set(self.wanted.warm_ups)) if n <= longest // 2]
        if "warm_up" in figures and not warm_ups:
            raise ValueError(f"warm-ups: none is at most half of the longest chunk, {longest} tokens")
        longest_warm_up = max(self.config.warm_up_index, self.shown.warm_up_index)
        if "skip_ratio" in figures and longest_warm_up > longest - 2:  # the last token predicts no other
            raise ValueError(f"warm-up: {longest_warm_up} tokens leave none of any chunk to skip")
        return warm_ups


def with_ratio(config: SkipConfig, ratio: float, policy: str = "ffn_skip", region: str = "any") -> SkipConfig:
    return config.replace(policy=policy, region=region, skip_ratio=ratio, max_skip=None)


def channels_of(config: SkipConfig, ratio: float | None, tensors: TensorsName) -> SkipConfig:
    """Of all layers, with the warm-up of `config`."""
    return SkipConfig("channels", skip_ratio=ratio, tensors=tensors, warm_up_index=config.warm_up_index)
