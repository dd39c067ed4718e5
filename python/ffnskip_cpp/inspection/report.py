"""The result of `inspect`, and how it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..ranges import ranges
from ..table import aligned

__all__ = ["Inspection", "Layer", "LayerInput", "Weight"]

SHOWN_RATIOS = (0.1, 0.25, 0.5)  # in the text; as_dict() has all


@dataclass(frozen=True)
class Weight:
    """A tensor of a block."""

    name: str
    type: str
    """Of ggml, in lower case: "q4_k"."""
    n_elements: int
    bytes: int


@dataclass(frozen=True)
class Layer:
    """The FFN or attention block of a layer."""

    layer: int
    kind: str
    """"gated", "plain", "experts" or "experts + shared"; of attention "separate", "fused" or "latent" Q, K and V."""
    residual: str
    """How the block is added: "sequential", "parallel" (to attention) or "in place"."""
    skippable: bool
    why_not: str
    """Empty where it is skippable."""
    parameters: int
    bytes_per_token: int
    """Of weights that a token reads; of experts, of those chosen."""
    weights: tuple[Weight, ...]


@dataclass(frozen=True)
class LayerInput:
    """What matrices of a layer read: policy "channels" leaves out the channels of it that reach least."""

    layer: int
    kind: str
    """"qkv": of Q, K and V; "o": of attention's output matrix; "up": of gate and up; "down"."""
    n_channels: int
    why_not: str
    """Why channels can't be left out; empty where they can."""
    memory_bytes: int
    """That the weights by channel take; 0 where they can't be stored so."""
    weights: tuple[Weight, ...]

    @property
    def of_ffn(self) -> bool:
        return self.kind in ("up", "down")


@dataclass(frozen=True, repr=False)
class Inspection:
    """What there is to skip in a model; its repr is the text that `ffnskip inspect` prints."""

    model: str
    architecture: str
    fingerprint: str
    n_layer: int
    refused: str | None
    """Why the model can't skip."""
    profile: str | None
    """Path of the skip profile that is found with the model."""
    profile_refused: str | None
    """Why it can't be used."""
    copies: str | None
    """Path of the file of weights by channel that is found with the model (`ffnskip channels`)."""
    copies_refused: str | None
    """Why it can't be used."""
    parameters: Mapping[str, int]
    """By component: "ffn", "attention", "other"."""
    parameters_of_one_layer: Mapping[str, int]
    """By tensor, of the layer in the middle."""
    bytes_per_token: int
    """Of weights that a token reads."""
    ffn_bytes_per_token: int
    ffn_share_of_bytes: float
    ideal_speed_up: Mapping[float, float]
    """By the share of the FFN blocks skipped: what the bytes not read allow."""
    layers: tuple[Layer, ...]
    """FFN blocks."""
    attention: tuple[Layer, ...]
    """Attention blocks."""
    inputs: tuple[LayerInput, ...]
    memory_bytes: Mapping[str, int]
    """That the weights by channel take, for policy "channels" with `tensors` "ffn" and "all"."""

    def as_dict(self) -> dict[str, Any]:
        """What `ffnskip inspect --json` prints."""
        return asdict(self)

    def __repr__(self) -> str:
        """The answer first, then what it rests on."""
        total = sum(self.parameters.values())
        title = f"{self.model}: {self.architecture}, {self.n_layer} layers, {_millions(total)} parameters"
        if not self.layers:
            return f"{title}\ncan't skip: {self.refused}"
        return "\n".join([title, *_answer(self), "", _groups(self.layers), "", *_parameter_lines(self)])


def _answer(inspection: Inspection) -> list[str]:
    refused = inspection.refused
    lines = [
        *([f"can't skip: {refused}"] if refused else _can_skip(inspection.layers, inspection.attention)),
        f"bytes     {inspection.bytes_per_token / 2**20:,.1f} MiB of weights read for a token, "
        f"{100 * inspection.ffn_share_of_bytes:.1f} % of them in FFN blocks",
    ]
    shown = {ratio: value for ratio, value in inspection.ideal_speed_up.items() if ratio in SHOWN_RATIOS}
    if shown and not refused:
        pairs = ", ".join(f"x{value:.2f} with {100 * ratio:g} %" for ratio, value in shown.items())
        lines.append(f"speed-up  {pairs} of the blocks skipped, as far as bytes allow")
    lines.append(f"profile   {_profile_line(inspection)}")
    return lines if refused else [*lines, *_channels(inspection)]


def _channels(inspection: Inspection) -> list[str]:
    """Of which inputs policy "channels" can leave some out, and what that takes."""
    groups: dict[str, list[LayerInput]] = {"of the FFN's matrices": [], "of attention's matrices": []}
    notes: dict[str, dict[int, list[str]]] = {}
    for found in inspection.inputs:
        groups["of the FFN's matrices" if found.of_ffn else "of attention's matrices"].append(found)
        if found.why_not:
            # Layers that are alike have one line.
            why = found.why_not.replace(f"blk.{found.layer}.", "").replace(f"-{found.layer}'", "'")
            notes.setdefault(why, {}).setdefault(found.layer, []).append(found.kind)
    counts = [
        f"{sum(not found.why_not for found in inputs)} of {len(inputs)} inputs {words}"
        for words, inputs in groups.items()
        if inputs
    ]
    lines = [f"channels  {', '.join(counts) or 'none: no matrix has an input that can leave some out'}"]
    lines += [f"          not {_kinds(which)}: {why}" for why, which in notes.items()]
    of_ffn, of_all = inspection.memory_bytes["ffn"], inspection.memory_bytes["all"]
    if of_all > 0:
        ffn = f"{of_ffn / 2**20:,.1f} MiB of memory, with attention's " if of_ffn else ""
        lines.append(f"          copies of these matrices take {ffn}{of_all / 2**20:,.1f} MiB")
    if inspection.copies_refused:
        lines.append(f"          {inspection.copies}: can't be used: {inspection.copies_refused}")
    elif inspection.copies:
        lines.append(f"          {inspection.copies} has them, and takes no memory of its own")
    return lines


def _kinds(by_layer: Mapping[int, Sequence[str]]) -> str:
    """ "qkv and o of layer 0-3"."""
    groups: dict[str, list[int]] = {}
    for layer, kinds in by_layer.items():
        groups.setdefault(" and ".join(kinds), []).append(layer)
    return ", ".join(f"{kinds} of layer {ranges(layers)}" for kinds, layers in groups.items())


def _can_skip(ffns: Sequence[Layer], attention: Sequence[Layer]) -> list[str]:
    """A line for each kind of block."""

    def line(layers: Sequence[Layer], name: str) -> str:
        kept: dict[str, list[int]] = {}
        for layer in layers:
            if not layer.skippable:
                kept.setdefault(layer.why_not, []).append(layer.layer)
        notes = "".join(f"; not layer {ranges(which)}: {why}" for why, which in kept.items())
        return f"{sum(layer.skippable for layer in layers)} of {len(layers)} {name} blocks{notes}"

    lines = [f"can skip  {line(ffns, 'FFN')}"]
    return [*lines, f"          {line(attention, 'attention')}"] if attention else lines


def _profile_line(inspection: Inspection) -> str:
    if inspection.profile is None:
        return f"none, so nothing is skipped; ffnskip calibrate {inspection.model} --text FILE makes one"
    if inspection.profile_refused:
        return f"{inspection.profile}: can't be used: {inspection.profile_refused}"
    return inspection.profile


def _groups(layers: Sequence[Layer]) -> str:
    """A line for all layers that are alike, which in most models all are."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for layer in layers:
        groups.setdefault(_line(layer), []).append(layer.layer)
    names = ("layers", "FFN", "residual", "parameters", "bytes", "weights")
    return aligned(names, [(ranges(which), *line) for line, which in groups.items()], left=names)


def _line(layer: Layer) -> tuple[str, ...]:
    prefix = f"blk.{layer.layer}."
    weights = (f"{w.name.removeprefix(prefix).removesuffix('.weight')} {w.type}" for w in layer.weights)
    return (
        layer.kind,
        layer.residual,
        _millions(layer.parameters),
        f"{layer.bytes_per_token:,}",
        ", ".join(weights),
    )


def _parameter_lines(inspection: Inspection) -> list[str]:
    total = sum(inspection.parameters.values())
    return [
        "parameters",
        *(f"  {name:<9}  {_millions(n):>12}  {100 * n / total:5.1f} %" for name, n in inspection.parameters.items()),
        f"fingerprint {inspection.fingerprint}",
    ]


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}M"
