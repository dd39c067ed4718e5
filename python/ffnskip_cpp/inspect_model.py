"""What there is to skip in a model: the FFN block of each layer, its weights, and the speed-up that skipping allows.

    from ffnskip_cpp.inspect_model import inspect
    print(inspect("model.gguf")["ffn_share_of_bytes"])

Blocks are those the controller found in the graph that llama.cpp builds, not those that names suggest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .gguf_header import read_headers
from .shapes import read_weight_bytes

__all__ = ["add_arguments", "inspect", "run"]

RATIOS = (0.1, 0.2, 0.25, 0.3, 0.5)

HELP = """\
Parameters are counted as in the paper's Table 1. bytes: read for one token; of experts, those chosen. The ideal
speed-up is the one that the bytes not read allow, where time is in proportion to bytes.

example:
  ffnskip inspect model.gguf"""


def inspect(path: str | Path) -> dict[str, Any]:
    """The FFN blocks of a model and what skipping them saves.

    Args:
        path: A GGUF file; the first part, if it is split.
    Returns:
        `model`, `architecture`, `fingerprint`, `n_layer`, `refused` (why the model can't skip, or None), `parameters`
        (by component), `parameters_of_one_layer` (by tensor, of the layer in the middle), `bytes_per_token`,
        `ffn_bytes_per_token`, `ffn_share_of_bytes`, `ideal_speed_up` (by share of the FFN blocks skipped) and `layers`,
        an entry per FFN block: `layer`, `kind`, `residual`, `skippable`, `why_not`, `parameters`, `bytes_per_token`
        and `weights` (`name`, `type`, `n_elements`, `bytes`).
    Raises:
        FileNotFoundError, ValueError: The model can't be loaded.
    """
    from .llama import Llama

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    weights = read_weight_bytes(path)
    with Llama(str(path), skip=None, n_ctx=32, n_batch=32, verbose=False) as llm:
        blocks = llm.ffn_map
        n_layer, fingerprint = llm._controller.n_layer, llm._controller.fingerprint
        architecture = llm.metadata.get("general.architecture", "?")
        refused = llm.why_dense
    layers = [_layer(block) for block in blocks]
    skippable = [block.layer for block in blocks if block.skippable]
    ffn_bytes = sum(block.bytes_per_token for block in blocks)
    sizes = {tensor.name: tensor.n_elements for header in read_headers(path) for tensor in header.tensors}
    return {
        "model": path.name,
        "architecture": architecture,
        "fingerprint": fingerprint,
        "n_layer": n_layer,
        "refused": refused,
        "parameters": _parameters(sizes, layers),
        "parameters_of_one_layer": _of_layer(sizes, n_layer // 2),
        "bytes_per_token": weights.total,
        "ffn_bytes_per_token": ffn_bytes,
        "ffn_share_of_bytes": ffn_bytes / weights.total,
        "ideal_speed_up": {
            ratio: weights.ideal_speed_up(dict.fromkeys(skippable, round(ratio * n_layer) / len(skippable)))
            for ratio in RATIOS
            if 0 < round(ratio * n_layer) < len(skippable)
        },
        "layers": layers,
    }


def _layer(block: Any) -> dict[str, Any]:
    weights = [{name: getattr(w, name) for name in ("name", "type", "n_elements", "bytes")} for w in block.weights]
    return {
        "layer": block.layer,
        "kind": block.kind,
        "residual": block.residual,
        "skippable": block.skippable,
        "why_not": block.why_not,
        "parameters": sum(weight["n_elements"] for weight in weights),
        "bytes_per_token": block.bytes_per_token,
        "weights": weights,
    }


def _parameters(sizes: Mapping[str, int], layers: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Of the model: in FFN blocks, in the rest of the layers (attention, mostly), and outside of them."""
    ffn = {weight["name"] for layer in layers for weight in layer["weights"]}
    return {
        "ffn": sum(size for name, size in sizes.items() if name in ffn),
        "attention": sum(size for name, size in sizes.items() if name.startswith("blk.") and name not in ffn),
        "other": sum(size for name, size in sizes.items() if not name.startswith("blk.")),
    }


def _of_layer(sizes: Mapping[str, int], layer: int) -> dict[str, int]:
    prefix = f"blk.{layer}."
    return {name[len(prefix) :]: size for name, size in sizes.items() if name.startswith(prefix)}


# ---- output ----


def _text(report: dict[str, Any]) -> str:
    parameters = report["parameters"]
    total = sum(parameters.values())
    lines = [
        f"{report['model']}: {report['architecture']}, {report['n_layer']} layers, {_millions(total)} parameters",
        f"fingerprint {report['fingerprint']}",
        "",
        "layer  FFN                residual     parameters        bytes  weights",
    ]
    lines += [_line(layer) for layer in report["layers"]]
    lines += ["", f"parameters of layer {report['n_layer'] // 2}"]
    lines += [f"  {name:<24} {_millions(count):>12}" for name, count in report["parameters_of_one_layer"].items()]
    lines.append("parameters of the model")
    lines += [
        f"  {name:<24} {_millions(count):>12}  {100 * count / total:5.1f} %" for name, count in parameters.items()
    ]
    lines.append(
        f"FFN blocks are {100 * report['ffn_share_of_bytes']:.1f} % of the "
        f"{report['bytes_per_token'] / 2**20:,.1f} MiB of weights read for a token"
    )
    if report["ideal_speed_up"]:
        pairs = ", ".join(f"{100 * ratio:g} % x{value:.3f}" for ratio, value in report["ideal_speed_up"].items())
        lines.append(f"ideal speed-up at a skip ratio of {pairs}")
    if report["refused"]:
        lines.append(f"skipping is refused: {report['refused']}")
    return "\n".join(lines)


def _line(layer: dict[str, Any]) -> str:
    prefix = f"blk.{layer['layer']}."
    names = ", ".join(f"{w['name'].removeprefix(prefix)} {w['type']}" for w in layer["weights"])
    note = "" if layer["skippable"] else f"  (not skipped: {layer['why_not']})"
    return (
        f"{layer['layer']:>5}  {layer['kind']:<17}  {layer['residual']:<11} {_millions(layer['parameters']):>11} "
        f"{layer['bytes_per_token']:>12,}  {names}{note}"
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}M"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    parser.add_argument("model", metavar="MODEL.gguf", help="model to look into; the first part, if it is split")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default: text")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP


def run(args: argparse.Namespace) -> int:
    """Prints the report."""
    report = inspect(args.model)
    print(_text(report) if args.output == "text" else json.dumps(report, indent=2))
    return 0
