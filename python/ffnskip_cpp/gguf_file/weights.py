"""Bytes of weights that generating one token reads, from the names and sizes of a model's tensors.

weights = read_weight_bytes("model.gguf")
weights.ideal_speed_up({10: 1.0, 11: 0.5})  # layer 10 always skipped, layer 11 by every other token
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .header import Header, read_headers

__all__ = ["WeightBytes", "read_weight_bytes", "weight_bytes", "weight_bytes_of"]

# Weights of which a token reads one row.
_LOOKUP = ("token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
_FFN = re.compile(r"blk\.(\d+)\.ffn_(?!norm)")


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of weights that generating one token reads."""

    total: int
    ffn_per_layer: Mapping[int, int] = field(default_factory=dict)  # without the norm before the FFN, which always runs

    def ideal_speed_up(self, skipped_per_layer: Mapping[int, float]) -> float:
        """How much faster a token gets if time is in proportion to the bytes read.

        Args:
            skipped_per_layer: Share of the tokens that skip the FFN block of the layer, [0, 1].
        """
        unread = sum(share * self.ffn_per_layer.get(layer, 0) for layer, share in skipped_per_layer.items())
        return self.total / (self.total - unread)

    def ideal_speed_up_by(self, read: float, stored: float) -> float:
        """The same where weights of which the file stores so many bytes take `read` bytes to read."""
        return self.total / (self.total - stored + read)


def weight_bytes(tensors: Mapping[str, int], expert_share: float = 1.0) -> WeightBytes:
    """Bytes read per token, given the size of each tensor of a model.

    Args:
        tensors: Name and bytes.
        expert_share: Experts used per token over experts, for a mixture of experts.
    """
    total = 0.0
    per_layer: dict[int, float] = {}
    tied = "output.weight" not in tensors
    for name, size in tensors.items():
        if name in _LOOKUP and not (tied and name == "token_embd.weight"):
            continue
        read = size * expert_share if "_exps." in name else size
        total += read
        if match := _FFN.match(name):
            layer = int(match.group(1))
            per_layer[layer] = per_layer.get(layer, 0) + read
    return WeightBytes(round(total), {layer: round(read) for layer, read in per_layer.items()})


def read_weight_bytes(path: str | os.PathLike[str]) -> WeightBytes:
    """Bytes read per token of the model in a GGUF file; `path` is the first part if it is split.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a GGUF file, or a damaged one; or a part is missing.
    """
    return weight_bytes_of(read_headers(path))


def weight_bytes_of(headers: Sequence[Header]) -> WeightBytes:
    """The same, given the headers of the model's files."""
    sizes = {tensor.name: tensor.n_bytes for header in headers for tensor in header.tensors}
    return weight_bytes(sizes, _expert_share(headers[0]))


def _expert_share(header: Header) -> float:
    n_used, n_expert = (header.of_architecture(f"expert_{key}", 0) for key in ("used_count", "count"))
    return n_used / n_expert if n_used and n_expert else 1.0
