"""The policy `channels` in plain NumPy: the oracle of its tests.

    from support.channels_reference import ReferenceChannels
    model = ReferenceChannels("model.gguf", thresholds)
    logits, trace = model.evaluate(prompt)
    logits, trace = model.evaluate(tokens, may_skip=True)
    trace.kept        # (n_tokens, n_layer, 4): channels kept of each kind of input

Channel j of an input v is kept where its reach, |v[j]| * norm[j], is not below the threshold of the layer and the kind:
norm[j] is that of the weights that read it. Where a block's result is normalised before it is added to the residual,
reaches are taken relative to the root of their mean square. Where a channel is left out the matrices read 0, and
llama.cpp's arithmetic goes on from there: the scale of 8-bit codes is that of the channels kept.
"""

from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from support.experts_reference import ReferenceExperts
from support.gemma_reference import ReferenceGemma
from support.reference import Matrix, QType, ReferenceLlama

KINDS = ("qkv", "o", "up", "down")
READERS = {"qkv": ("attn_q", "attn_k", "attn_v"), "o": ("attn_output",),
           "up": ("ffn_gate", "ffn_up"), "down": ("ffn_down",)}  # fmt: skip
READERS_OF_EXPERTS = {**READERS, "up": ("ffn_gate_exps", "ffn_up_exps"), "down": ("ffn_down_exps",)}

# What 8-bit rounding, where it falls on the other side, changes a value by, relative to those around it: hardly more.
ROUNDED_TO_8_BITS = 0.02

# Of one channel and 128 outputs, as channels are stored.
GROUP = 128
GROUP_BYTES = {
    **dict.fromkeys((QType.Q4_0, QType.Q4_1, QType.Q4_K), 64),
    **dict.fromkeys((QType.Q5_0, QType.Q5_1, QType.Q5_K), 80),
    QType.Q6_K: 96,
    QType.Q8_0: 128,
    **dict.fromkeys((QType.F16, QType.BF16), 256),
    QType.F32: 512,
}


@dataclass(frozen=True)
class ChannelTrace:
    """What was kept of each evaluated token."""

    kept: np.ndarray  # (n_tokens, n_layer, 4) int64, channels in the order of KINDS
    close: np.ndarray  # the same shape: channels so near to their threshold that rounding may have decided


class LeavesChannelsOut(ReferenceLlama):
    """To be derived from, before a model's class.

    Args:
        thresholds: [n_layer * 4], layer by layer in the order of KINDS; None keeps all.
        close: How near to its threshold a channel's reach has to be for rounding to decide, relative to the reach of
            the input's channels in the middle.
        **options: Of ReferenceLlama. Layers of `settings` are left out whole, and keep nothing.
    """

    NORMALISED = False  # block by block, before the residual add
    READERS = READERS

    def __init__(
        self,
        path: str | os.PathLike[str],
        thresholds: Sequence[float] | None = None,
        *,
        close: float = ROUNDED_TO_8_BITS,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        flat = np.zeros(self.n_layer * len(KINDS)) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
        self.thresholds = flat.reshape(self.n_layer, len(KINDS))
        self.close = close
        layers = range(self.n_layer)
        self.norms = [{kind: self._norms(il, kind) for kind in KINDS} for il in layers]
        self.n_channels = np.array([[self._n_channels(il, kind) for kind in KINDS] for il in layers])
        self.channel_bytes = np.array([[self._bytes(il, kind) for kind in KINDS] for il in layers])
        self._reaches = collections.defaultdict(list)

    def _matrices(self, il: int, kind: str) -> list[list[Matrix]]:
        """Those that read one input together: of each expert, where there are any."""
        readers = [getattr(self.layers[il], name) for name in self.READERS[kind]]
        return [list(of_expert) for of_expert in zip(*readers)] if isinstance(readers[0], list) else [readers]

    def _norms(self, il: int, kind: str) -> list[np.ndarray]:
        """Of each expert."""
        return [
            np.sqrt(sum((matrix.weight**2).sum(axis=0) for matrix in matrices)) for matrices in self._matrices(il, kind)
        ]

    def _n_channels(self, il: int, kind: str) -> int:
        """Of one token."""
        return len(self.norms[il][kind][0])

    def _bytes(self, il: int, kind: str) -> int:
        """Of one channel in all matrices that read it."""
        matrices = self._matrices(il, kind)[0]
        return sum(-(-len(matrix.weight) // GROUP) * GROUP_BYTES[matrix.type] for matrix in matrices)

    def _input(self, il: int, kind: str, v: np.ndarray, expert: int | None = None) -> np.ndarray:
        at = il, KINDS.index(kind)
        threshold = self.thresholds[at]
        reach = np.abs(v) * self.norms[il][kind][expert or 0]
        if self.NORMALISED:
            reach = reach / np.sqrt((reach**2).mean())
        kept = reach >= threshold if self._may_skip else np.ones_like(v, dtype=bool)
        self._reaches[at].append(reach)
        self._kept[at] += kept.sum()
        self._close[at] += (np.abs(reach - threshold) < self.close * np.median(reach)).sum() if threshold > 0 else 0
        return np.where(kept, v, 0)

    def evaluate(
        self, tokens: Sequence[int], may_skip: bool | Sequence[bool] = False
    ) -> tuple[np.ndarray, ChannelTrace]:
        """Feeds consecutive tokens, one by one. Returns logits (n_tokens, n_vocab) and what was kept."""
        may_skip = np.broadcast_to(np.asarray(may_skip, dtype=bool), (len(tokens),))
        shape = (len(tokens), self.n_layer, len(KINDS))
        trace, rows = ChannelTrace(np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)), []
        for i, token in enumerate(tokens):
            self._may_skip, self._kept, self._close = may_skip[i], trace.kept[i], trace.close[i]
            rows.append(super().evaluate([token], may_skip[i])[0])
        return np.concatenate(rows), trace

    def thresholds_that_keep(self, share: float | np.ndarray) -> list[float]:
        """This share of the channels of every input, or of each kind, over the tokens evaluated so far."""
        left_out = np.broadcast_to(1 - np.asarray(share), len(KINDS))
        inputs = itertools.product(range(self.n_layer), range(len(KINDS)))
        return [float(np.quantile(self._reaches[il, k], left_out[k])) for il, k in inputs]

    def bytes_left_out(self, kept: np.ndarray) -> np.ndarray:
        """Of the channels not among those kept, (n_tokens, n_layer, 4), where products leave them out: [4], by kind."""
        return ((self.n_channels - kept) * self.channel_bytes).sum(axis=(0, 1))


class ReferenceChannels(LeavesChannelsOut):
    """A LLaMA that leaves out channels."""


class ReferenceGemmaChannels(LeavesChannelsOut, ReferenceGemma):
    """A Gemma that does."""

    NORMALISED = True


class ReferenceExpertsChannels(LeavesChannelsOut, ReferenceExperts):
    """A Qwen3-MoE that does: of each expert that a token uses, weighed by this expert's norms."""

    READERS = READERS_OF_EXPERTS

    def _n_channels(self, il: int, kind: str) -> int:
        return super()._n_channels(il, kind) * (self.n_used if kind in ("up", "down") else 1)
