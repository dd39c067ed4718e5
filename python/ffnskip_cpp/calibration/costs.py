"""What leaving things out of a token saves: time, or bytes not read.

A search asks what a setting costs for what it saves, and a table says what the second is: `Costs`, of milliseconds that
were measured on some machine, or of the bytes of the weights, where time is taken to be in proportion to them. Nothing
else differs between the two.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from ..gguf_file.weights import read_weight_bytes
from ..llama import Llama
from ..skip_config import TensorsName

__all__ = [
    "ATTENTION",
    "BLOCK_KINDS",
    "FFN",
    "FFN_INPUTS",
    "KEYS_AND_VALUES",
    "Costs",
    "LeftOut",
    "PerBlock",
    "PerInput",
    "byte_costs",
    "byte_costs_of",
    "read_costs",
]

KEYS_AND_VALUES, ATTENTION, FFN = 0, 1, 2
FFN_INPUTS = [2, 3]  # of stats.INPUT_KINDS
BLOCK_KINDS = {"attention": ATTENTION, "ffn": FFN}  # of Block.kind

PerBlock = npt.NDArray[np.float64]
"""float64 [n_layer, 3]: of each layer the keys and values, which other tokens need, the rest of the attention block,
and the FFN block."""

PerInput = npt.NDArray[np.float64]
"""float64 [n_layer, 4], in the order of `SkipConfig.channel_thresholds`."""

PathLike = Union[str, "os.PathLike[str]"]


@dataclass
class LeftOut:
    """What a token leaves out, on average."""

    blocks: PerBlock
    """The share of the tokens that leaves the block out."""
    bytes: PerInput
    """Of the channels of inputs, where the block is not left out."""
    checks: float = 0.0

    @classmethod
    def nothing(cls, n_layer: int) -> LeftOut:
        return cls(np.zeros((n_layer, 3)), np.zeros((n_layer, 4)))


@dataclass(frozen=True)
class Costs:
    """What a token of the dense model takes, in milliseconds; or, in their place, in bytes."""

    per_token: float
    """All of it."""
    per_block: PerBlock
    per_byte: PerInput
    """That is saved for each byte of the channels of an input that are left out."""
    per_check: float
    """That a similarity adds."""

    def of(self, tensors: TensorsName) -> Costs:
        """With the blocks of these tensors alone."""
        counted = self.per_block * ([0.0, 0.0, 1.0] if tensors == "ffn" else 1.0)
        return Costs(self.per_token, counted, self.per_byte, self.per_check)

    @property
    def of_blocks(self) -> float:
        """All blocks together: what shares are of."""
        return float(self.per_block.sum())

    @property
    def share_per_block(self) -> PerBlock:
        return self.per_block / self.of_blocks

    def share(self, left_out: LeftOut) -> float:
        """What is saved, of all blocks together."""
        return self._saved(left_out) / self.of_blocks

    def speed_up(self, left_out: LeftOut) -> float:
        """How much faster a token gets."""
        return self.per_token / max(self.per_token - self._saved(left_out), 1e-9 * self.per_token)

    def _saved(self, left_out: LeftOut) -> float:
        of_blocks = (self.per_block * left_out.blocks).sum()
        return float(of_blocks + (self.per_byte * left_out.bytes).sum() - self.per_check * left_out.checks)

    def __str__(self) -> str:
        """Of milliseconds."""
        parts = zip(("attention block", "FFN block"), (self.per_block[:, :FFN].sum(axis=1), self.per_block[:, FFN]))
        blocks = (f"{name} {_range(ms[ms > 0])} ms" for name, ms in parts if (ms > 0).any())
        return f"a token {self.per_token:.3g} ms, an {', an '.join(blocks)}, a check {1e3 * self.per_check:.2g} us"

    def as_dict(self) -> dict[str, Any]:
        """Of plain values: what `read_costs` reads."""
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}


def _range(values: npt.NDArray[np.float64]) -> str:
    low, high = f"{values.min():.2g}", f"{values.max():.2g}"
    return low if low == high else f"{low}-{high}"


def byte_costs(per_token: float, blocks: PerBlock) -> Costs:
    """Time in proportion to the bytes read.

    Args:
        per_token: Bytes of all weights that a token reads.
        blocks: Those of each block.
    """
    return Costs(per_token, blocks, np.ones((len(blocks), 4)), 0.0)


def byte_costs_of(llm: Llama, input_bytes: npt.NDArray[np.float64] | None) -> Costs:
    """Of an open model.

    Args:
        input_bytes: `Llama.input_bytes`, where channels may be left out. Of blocks of which they may, the bytes count
            that are read where these are stored by channel.
    """
    blocks = np.zeros((llm.n_layer, 3))
    for block in llm.blocks:
        blocks[block.layer, BLOCK_KINDS[block.kind]] = block.bytes_per_token - block.bytes_of_cache
        blocks[block.layer, KEYS_AND_VALUES] += block.bytes_of_cache
    if input_bytes is not None:
        stored = input_bytes[:, FFN_INPUTS, 1].sum(axis=1)
        blocks[:, FFN] = np.where(stored > 0, stored, blocks[:, FFN])
    return byte_costs(read_weight_bytes(llm.model_path).total, blocks)


def read_costs(path: PathLike, llm: Llama) -> Costs:
    """From a JSON file: a table, or the report of a calibration that used one.

    Raises:
        OSError: The file can't be read.
        ValueError: It is no such file, or its table is of another model.
    """
    try:
        with open(path, encoding="utf-8") as file:
            given = json.load(file)
        given = given.get("costs", given)
        table = {field.name: np.asarray(given[field.name], np.float64) for field in fields(Costs)}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        names = ", ".join(field.name for field in fields(Costs))
        raise ValueError(f"costs: {path} is no JSON table of {names} ({error!r})") from error
    shapes: dict[str, Sequence[int]] = {"per_block": (llm.n_layer, 3), "per_byte": (llm.n_layer, 4)}
    for name, values in table.items():
        expected = tuple(shapes.get(name, ()))
        if values.shape != expected:
            raise ValueError(f"costs: {name} of {path} is of shape {values.shape}; {expected} for this model")
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError(f"costs: {name} of {path} holds a value that is no time: {values.min():g}")
    if not 0 < table["per_block"][:, FFN].sum() < float(table["per_token"]):
        raise ValueError(
            f"costs: per_token of {path} is {float(table['per_token']):g}, and all FFN blocks together "
            f"{table['per_block'][:, FFN].sum():g}; these take time, and a token more than these"
        )
    return Costs(float(table["per_token"]), table["per_block"], table["per_byte"], float(table["per_check"]))
