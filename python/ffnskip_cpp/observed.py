"""What there is to know of a `Llama`: its blocks, what its settings mean for them, and what was skipped."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ._core import Block, Controller
from .context import Context
from .decoding import DecodingLlama
from .profile import write_profile
from .skip_config import ResolvedConfig
from .stats import SkipStats, Trace

__all__ = ["ObservedLlama"]


class ObservedLlama(DecodingLlama):
    """Tells of its model, which is looked at when first asked, and of its core."""

    _controller: Controller
    _context: Context
    _tracing = False

    @property
    def resolved(self) -> ResolvedConfig:
        """What `skip` means for this model: every value it left open, such as "an eighth of the layers"."""
        return self._learnt().resolved

    @property
    def blocks(self) -> list[Block]:
        """The attention and FFN blocks of the layers, as found in the model's graph and in the order they run in: kind,
        form, residual, weights, bytes, and why a block can't be skipped where that is so."""
        return self._learnt().blocks

    @property
    def input_bytes(self) -> npt.NDArray[np.uint64]:
        """uint64 [n_layer, 4, 2]: of the inputs of each layer, in the order of `channel_thresholds`, the bytes of
        weights that are read with none of its channels kept and with all, as `skip` is now; 0 where none may be left
        out. No layers unless channels are."""
        return self._learnt().input_bytes

    @property
    def skippable(self) -> npt.NDArray[np.bool_]:
        """bool [n_layer]: the layer has an FFN block that can be skipped."""
        return self._learnt().skippable

    @property
    def fingerprint(self) -> str:
        """What tells this model from others, whatever its quantisation."""
        return self._learnt().fingerprint

    @property
    def why_dense(self) -> str | None:
        """Why this model or context can't skip; None if it can."""
        self._learnt()
        return self._context.why_dense

    @property
    def weights_bytes(self) -> int:
        """Memory that the weights by channel take, for policy "channels"; all contexts of the model share it."""
        return self._controller.weights_bytes

    def _learnt(self) -> Controller:
        if not self._context.is_learnt:
            with self._at_work():
                self._context.learn(self)
        return self._controller

    def save_profile(self, path: str | os.PathLike[str]) -> None:
        """Writes what `skip` is now as a skip profile of this model.

        Raises:
            ValueError: Nothing is skipped, or the policy is a random one, which no profile holds.
        """
        write_profile(path, self.fingerprint, self._controller.config, self._controller.resolved)

    @property
    def stats(self) -> SkipStats:
        """Counts over the tokens generated since construction or `reset_stats()`. From any thread."""
        return self._controller.stats

    def reset_stats(self) -> None:
        self._controller.reset_stats()

    @contextlib.contextmanager
    def trace(self, *, reaches: bool = False, layers: bool = False) -> Iterator[Trace]:
        """Records similarity, skipped blocks and channels kept of every token generated within the block, one row per
        token.

        Args:
            reaches: Count how far channels reach, too, which takes longer.
            layers: Compare what goes into each layer and what comes out, too, which takes longer.
        Raises:
            RuntimeError: A trace is being recorded already.
        """
        if self._tracing:
            raise RuntimeError("a trace is being recorded already")
        controller, trace = self._learnt(), Trace()
        self._tracing = True
        controller.start_trace(reaches, layers)
        try:
            yield trace
        finally:
            found = controller.stop_trace()
            trace.similarity, trace.skipped, trace.attention_skipped, trace.kept, trace.reaches = found[:-1]
            trace.layer_similarity = found[-1]
            self._tracing = False
