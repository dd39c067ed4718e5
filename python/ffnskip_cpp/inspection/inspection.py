"""What there is to skip in a model: the FFN block of each layer, its weights, and the speed-up that skipping allows.

    inspection = inspect("model.gguf")
    print(inspection)  # what `ffnskip inspect` prints
    inspection.ffn_share_of_bytes

Blocks are those the controller found in the graph that llama.cpp builds, not those that names suggest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..blocks import attention_blocks, ffn_blocks
from ..files import PathLike
from ..gguf_file.header import read_header, read_headers
from ..gguf_file.header_check import check_header
from ..gguf_file.weights import weight_bytes_of
from ..probing import probed
from .report import Inspection, Layer, LayerInput, Weight

if TYPE_CHECKING:
    from .. import _core
    from .._core import Block, BlockWeight

__all__ = ["inspect"]

RATIOS = (0.1, 0.2, 0.25, 0.3, 0.5)


def inspect(model_path: PathLike) -> Inspection:
    """The FFN blocks of a model and what skipping them saves. The weights are not read.

    Args:
        model_path: A GGUF file; the first part, if it is split.
    Raises:
        FileNotFoundError, ValueError: The model can't be loaded.
    """
    path = Path(model_path)
    check_header(path)
    headers = read_headers(path)
    n_layer = headers[0].of_architecture("block_count", 0)
    weights = weight_bytes_of(headers)
    sizes = {tensor.name: tensor.n_elements for header in headers for tensor in header.tensors}
    with probed(path) as (controller, refused):
        blocks, fingerprint = controller.blocks, controller.fingerprint
        inputs = tuple(map(_input, controller.channel_inputs))
    profile, profile_refused = _profile(path, fingerprint)
    copies, copies_refused = _copies(path, fingerprint)
    layers = tuple(map(_layer, ffn_blocks(blocks)))
    skippable = [layer.layer for layer in layers if layer.skippable]
    ffn_bytes = sum(layer.bytes_per_token for layer in layers)
    return Inspection(
        model=path.name,
        architecture=headers[0].architecture,
        fingerprint=fingerprint,
        n_layer=n_layer,
        refused=refused,
        profile=profile,
        profile_refused=profile_refused,
        copies=copies,
        copies_refused=copies_refused,
        parameters=_parameters(sizes, layers),
        parameters_of_one_layer=_of_layer(sizes, n_layer // 2),
        bytes_per_token=weights.total,
        ffn_bytes_per_token=ffn_bytes,
        ffn_share_of_bytes=ffn_bytes / weights.total,
        ideal_speed_up={
            ratio: weights.ideal_speed_up(dict.fromkeys(skippable, round(ratio * n_layer) / len(skippable)))
            for ratio in RATIOS
            if 0 < round(ratio * n_layer) < len(skippable)
        },
        layers=layers,
        attention=tuple(map(_layer, attention_blocks(blocks))),
        inputs=inputs,
        memory_bytes={
            "ffn": sum(found.memory_bytes for found in inputs if found.of_ffn and not found.why_not),
            "all": sum(found.memory_bytes for found in inputs if not found.why_not),
        },
    )


def _profile(path: Path, fingerprint: str) -> tuple[str | None, str | None]:
    """The file of the profile that skip="auto" finds, and why it can't be used."""
    from ..profile import has_profile, locate_profile, read_profile

    if not has_profile(path):
        return None, None
    where = locate_profile(path)
    try:
        made_for = read_profile(where).model
    except (ValueError, OSError) as error:
        return str(where), str(error)
    return str(where), _mismatch(made_for, fingerprint)


def _copies(path: Path, fingerprint: str) -> tuple[str | None, str | None]:
    """The file of weights by channel that is mapped in place of making copies, and why it can't be."""
    from .._core import channel_file_path

    where = channel_file_path(os.fspath(path))
    if not os.path.exists(where):
        return None, None
    try:
        made_for = str(read_header(where).metadata.get("ffnskip.channels.model", "none"))
    except ValueError as error:
        return where, str(error)
    return where, _mismatch(made_for, fingerprint)


def _mismatch(made_for: str, fingerprint: str) -> str | None:
    if made_for == fingerprint:
        return None
    return f"it is of another model, {made_for}; this one is {fingerprint}"


def _input(found: _core.LayerInput) -> LayerInput:
    return LayerInput(
        layer=found.layer,
        kind=found.kind,
        n_channels=found.n_channels,
        why_not=found.why_not,
        memory_bytes=found.bytes,
        weights=_weights(found.weights),
    )


def _weights(weights: Sequence[BlockWeight]) -> tuple[Weight, ...]:
    return tuple(Weight(w.name, w.type, w.n_elements, w.bytes) for w in weights)


def _layer(block: Block) -> Layer:
    weights = _weights(block.weights)
    return Layer(
        layer=block.layer,
        kind=block.form,
        residual=block.residual,
        skippable=block.skippable,
        why_not=block.why_not,
        parameters=sum(weight.n_elements for weight in weights),
        bytes_per_token=block.bytes_per_token,
        weights=weights,
    )


def _parameters(sizes: Mapping[str, int], layers: Sequence[Layer]) -> dict[str, int]:
    """Of the model: in FFN blocks, in the rest of the layers (attention, mostly), and outside of them."""
    ffn = {weight.name for layer in layers for weight in layer.weights}
    return {
        "ffn": sum(size for name, size in sizes.items() if name in ffn),
        "attention": sum(size for name, size in sizes.items() if name.startswith("blk.") and name not in ffn),
        "other": sum(size for name, size in sizes.items() if not name.startswith("blk.")),
    }


def _of_layer(sizes: Mapping[str, int], layer: int) -> dict[str, int]:
    prefix = f"blk.{layer}."
    return {name[len(prefix) :]: size for name, size in sizes.items() if name.startswith(prefix)}
