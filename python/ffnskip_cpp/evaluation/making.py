"""What methods skip of an open model: settings made from a ratio, and of some methods found on a text, once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..calibration.equal_shares import EqualShares
from ..errors import ArgumentError, TargetUnreachableError
from ..llama import Llama
from ..measure.similarity import block_influence, layer_similarity
from ..measure.text import MIN_TOKENS, N_CTX, Chunk, Text, chunks_of_text
from ..skip_config import SkipConfig
from .methods import Asked, Method

__all__ = ["WARM_UP", "SettingsMaker", "finds_on_text"]

WARM_UP = SkipConfig().warm_up_index
TEXT_TOKENS = 4096  # at most, that settings are found on


def finds_on_text(asked: Asked, *, has_text: bool) -> bool:
    """Raises ArgumentError where there is no text, and it can't do without."""
    if asked.name == "short_gpt" and not has_text:
        raise ArgumentError("method: short_gpt leaves out the layers that change a text least; give --text FILE")
    return asked.name in ("short_gpt", "channels") and has_text


class SettingsMaker:
    """
    Args:
        texts: To find settings on.
        warm_up_index: Of all methods; None: each one's own.
        seed: Of the random methods.
    """

    def __init__(self, llm: Llama, texts: Sequence[Text], warm_up_index: int | None, seed: int):
        self._llm, self._texts = llm, texts
        self._given = {} if warm_up_index is None else {"warm_up_index": warm_up_index}
        self._usual = SkipConfig().replace(**self._given)
        self._warm_up_index = self._usual.warm_up_index
        self._seed = seed

    def method(self, asked: Asked, known: SkipConfig | None = None) -> Method:
        """
        Args:
            known: Its setting, if it was found before.
        Raises:
            ValueError: It does not fit the model, or the text is too short; names the method.
        """
        if asked.is_file or asked.name == "dense":
            return Method(asked.name, asked.label, None, None, asked.path)
        try:
            config = known or self._config(asked)
            self._check(asked, config)
        except ValueError as error:
            raise type(error)(f"method: {asked.label}: {error}") from error
        return Method(asked.name, asked.label, asked.ratio, config)

    def _config(self, asked: Asked) -> SkipConfig:
        if asked.skip is not None:
            return asked.skip.replace(**self._given) if asked.has_warm_up else asked.skip
        ratio = asked.ratio
        if ratio is None:
            raise TypeError(f"{asked.name} takes a ratio")
        make: dict[str, Callable[[], SkipConfig]] = {
            "ffn_skip": lambda: self._usual.replace(skip_ratio=ratio),
            "random": lambda: self._usual.replace(policy="random", skip_ratio=ratio, seed=self._seed),
            "random_adaptive_region": lambda: self._usual.replace(
                policy="random", region="adaptive", skip_ratio=ratio, seed=self._seed
            ),
            "skip_decode": lambda: SkipConfig("skip_decode", skip_ratio=ratio),
            "short_gpt": lambda: self._short_gpt(ratio),
            "channels": lambda: self._channels(ratio),
        }
        return make[asked.name]()

    def _check(self, asked: Asked, config: SkipConfig) -> None:
        """Raises ValueError where it does not fit the model, or would leave nothing out of it."""
        with self._llm.skipping(config if asked.path is None else asked.path):  # whose profile must be this model's
            pass
        with self._llm.skipping(config):
            max_skip = self._llm.resolved["max_skip"]
        if config.policy in ("ffn_skip", "random") and not (config.layers or config.attention_layers or max_skip):
            raise TargetUnreachableError(f"that is less than half of one of the {self._llm.n_layer} layers")

    # ---- found on text ----

    @functools.cached_property
    def _chunks(self) -> list[Chunk]:
        length = min(N_CTX, self._llm.n_ctx(), self._llm.n_ctx_train)
        least = max(MIN_TOKENS, self._warm_up_index + 2)
        cut = chunks_of_text(self._llm, self._texts, length, max_tokens=TEXT_TOKENS, min_tokens=least)
        useful = [chunk for chunk in cut if chunk.rows(self._warm_up_index)]
        if not useful:
            raise ValueError(f"the text has no answer of more than {self._warm_up_index} tokens, which run in full")
        return useful

    @functools.cached_property
    def _influence(self) -> npt.NDArray[np.float64]:
        """[n_layer]; NaN where it is not known."""
        similarity = [layer_similarity(self._llm, chunk, self._warm_up_index) for chunk in self._chunks]
        return block_influence(np.concatenate(similarity))

    @functools.cached_property
    def _shares(self) -> EqualShares:
        return EqualShares(self._llm, self._chunks, self._warm_up_index)

    def _short_gpt(self, ratio: float) -> SkipConfig:
        """The share of the layers, whole ones, that have the lowest influence."""
        skippable = [(block.kind, block.layer) for block in self._llm.blocks if block.skippable]
        whole = {il for il in range(self._llm.n_layer) if {("attention", il), ("ffn", il)} <= set(skippable)}
        order = [il for il in np.argsort(self._influence, kind="stable").tolist() if il in whole]
        usable = [il for il in order if np.isfinite(self._influence[il])]
        n = math.floor(ratio * self._llm.n_layer + 0.5)
        if not 1 <= n <= len(usable):
            raise TargetUnreachableError(
                f"that is {n} of the {self._llm.n_layer} layers; 1 to {len(usable)} can be left out"
            )
        return SkipConfig("short_gpt", layers=sorted(usable[:n]))

    def _channels(self, ratio: float) -> SkipConfig:
        """Without a text each text's first tokens tell the thresholds."""
        return self._shares.saving(ratio) if self._texts else self._usual.replace(policy="channels", skip_ratio=ratio)
