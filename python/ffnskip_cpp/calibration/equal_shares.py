"""Channel thresholds without a search: equal shares of the channels of all layers, as the search starts from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import TargetUnreachableError
from ..llama import Llama
from ..measure.policies import all_kept
from ..measure.text import Chunk
from ..skip_config import SkipConfig
from .channels import EQUAL, RATIO_TOLERANCE
from .costs import byte_costs_of
from .reaches import Inputs

__all__ = ["EqualShares"]

CORRECTED_ON = 2  # chunks


class EqualShares:
    """How far the channels of an open model reach on some text, and with that thresholds for any ratio.

    Args:
        chunks: The text.
        warm_up_index: Of every setting.
    Raises:
        UnsupportedModelError: No channels can be left out of the model.
    """

    def __init__(self, llm: Llama, chunks: Sequence[Chunk], warm_up_index: int):
        self._llm, self._chunks, self._warm_up_index = llm, chunks, warm_up_index
        with llm.skipping(all_kept(llm.n_layer, "ffn", warm_up_index)):
            n_bytes = llm.input_bytes.astype(np.float64)
            with llm.trace(reaches=True) as trace:
                self._read(chunks)
        n_rows = sum(len(chunk.rows(warm_up_index)) for chunk in chunks)
        self._inputs = Inputs(n_bytes, trace.reaches, n_rows, byte_costs_of(llm, n_bytes).of("ffn"))

    def saving(self, ratio: float) -> SkipConfig:
        """The setting that leaves out this share of the FFN's weight bytes of the text. What is left out changes how
        far the channels of later layers reach, so it is corrected once by what it is seen to leave out.

        Raises:
            TargetUnreachableError: They can't be left out.
        """
        config = self._solved(ratio)
        lacking = ratio - self._saved(config)
        return config if abs(lacking) <= RATIO_TOLERANCE else self._solved(min(ratio + lacking, self._inputs.most()))

    def _solved(self, ratio: float) -> SkipConfig:
        thresholds = self._inputs.saving(self._inputs.below(EQUAL), ratio)
        if thresholds is None:
            raise TargetUnreachableError(
                f"skip-ratio: channels can't leave out {ratio:g} of the FFN's bytes; at most {self._inputs.most():.3g}"
            )
        return SkipConfig("channels", channel_thresholds=thresholds.ravel().tolist(), warm_up_index=self._warm_up_index)

    def _saved(self, config: SkipConfig) -> float:
        """Of the bytes of the FFN's channels, by tokens of the text that may skip."""
        with self._llm.skipping(config):
            self._llm.reset_stats()
            self._read(self._chunks[:CORRECTED_ON])
            return self._llm.stats.skip_ratio

    def _read(self, chunks: Sequence[Chunk]) -> None:
        """With logits, as the last layer is evaluated for no rows but those that have some."""
        for chunk in chunks:
            rows = chunk.rows(self._warm_up_index)
            self._llm.forward(chunk.tokens, chunk.eligible(self._warm_up_index), rows=rows)
