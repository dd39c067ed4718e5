"""What there is to skip in a model: the FFN block of each layer, its weights, and the speed-up that skipping allows.

    from ffnskip_cpp.inspect_model import inspect
    print(inspect("model.gguf")["ffn_share_of_bytes"])

Blocks are those the controller found in the graph that llama.cpp builds, not those that names suggest.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .command_line import ranges
from .gguf_header import read_headers
from .header_check import check_header
from .shapes import weight_bytes_of

__all__ = ["add_arguments", "inspect", "run"]

RATIOS = (0.1, 0.2, 0.25, 0.3, 0.5)
SHOWN_RATIOS = (0.1, 0.25, 0.5)  # in the text; --json has all

HELP = """\
Parameters are counted as in the paper's Table 1. bytes: read for one token; of experts, those chosen. The ideal
speed-up is the one that the bytes not read allow, where time is in proportion to bytes; what it costs in quality,
ffnskip calibrate tells.

example:
  ffnskip inspect model.gguf"""


def inspect(path: str | Path) -> dict[str, Any]:
    """The FFN blocks of a model and what skipping them saves. The weights are not read.

    Args:
        path: A GGUF file; the first part, if it is split.
    Returns:
        `model`, `architecture`, `fingerprint`, `n_layer`, `refused` (why the model can't skip, or None), `profile`
        (path of the skip profile that is found with the model, or None), `profile_refused` (why it can't be used, or
        None), `parameters` (by component), `parameters_of_one_layer` (by tensor, of the layer in the middle),
        `bytes_per_token`, `ffn_bytes_per_token`, `ffn_share_of_bytes`, `ideal_speed_up` (by share of the FFN blocks
        skipped) and `layers`, an entry per FFN block: `layer`, `kind`, `residual`, `skippable`, `why_not`,
        `parameters`, `bytes_per_token` and `weights` (`name`, `type`, `n_elements`, `bytes`).
    Raises:
        FileNotFoundError, ValueError: The model can't be loaded.
    """
    path = Path(path)
    check_header(path)
    headers = read_headers(path)
    n_layer = headers[0].of_architecture("block_count", 0)
    weights = weight_bytes_of(headers)
    sizes = {tensor.name: tensor.n_elements for header in headers for tensor in header.tensors}
    with _mapped(path) as (controller, refused):
        blocks, fingerprint = controller.ffn_map, controller.fingerprint
    profile, profile_refused = _profile(path, fingerprint)
    layers = [_layer(block) for block in blocks]
    skippable = [block.layer for block in blocks if block.skippable]
    ffn_bytes = sum(block.bytes_per_token for block in blocks)
    return {
        "model": path.name,
        "architecture": headers[0].architecture,
        "fingerprint": fingerprint,
        "n_layer": n_layer,
        "refused": refused,
        "profile": profile,
        "profile_refused": profile_refused,
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


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[tuple[Any, str | None]]:
    """A controller that has seen the model's graph, and why the model can't skip. The weights stay where they are, in
    the file: not repacked, not on a GPU."""
    import llama_cpp

    from ._core import Controller
    from .errors import Unsupported
    from .load_error import explained

    controller = Controller()
    refused = None
    with explained(quiet=True), contextlib.ExitStack() as stack:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, False
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise ValueError(f"Failed to load model from file: {path}")
        stack.callback(llama_cpp.llama_model_free, model)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = 32
        options.cb_eval = ctypes.cast(controller.callback, llama_cpp.ggml_backend_sched_eval_callback)
        options.cb_eval_user_data = controller.user_data
        context = llama_cpp.llama_init_from_model(model, options)
        if not context:
            raise ValueError(f"Failed to create a context for {path}")
        stack.callback(llama_cpp.llama_free, context)
        try:
            controller.probe(ctypes.cast(context, ctypes.c_void_p).value or 0)
        except Unsupported as error:
            refused = str(error)
        yield controller, refused


def _profile(path: Path, fingerprint: str) -> tuple[str | None, str | None]:
    """The file of the profile that skip="auto" finds, and why it can't be used."""
    from .profile import has_profile, locate_profile, read_profile

    if not has_profile(path):
        return None, None
    where = locate_profile(path)
    try:
        made_for = read_profile(where).model
    except (ValueError, OSError) as error:
        return str(where), str(error)
    if made_for == fingerprint:
        return str(where), None
    return str(where), f"it is of another model, {made_for}; this one is {fingerprint}"


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
    """The answer first, then what it rests on."""
    total = sum(report["parameters"].values())
    title = f"{report['model']}: {report['architecture']}, {report['n_layer']} layers, {_millions(total)} parameters"
    if not report["layers"]:
        return f"{title}\ncan't skip: {report['refused']}"
    return "\n".join([title, *_answer(report), "", *_groups(report["layers"]), "", *_parameter_lines(report)])


def _answer(report: dict[str, Any]) -> list[str]:
    layers = report["layers"]
    skippable = [layer for layer in layers if layer["skippable"]]
    lines = [f"can't skip: {report['refused']}" if report["refused"] else _can_skip(layers, skippable)]
    lines.append(
        f"bytes     {report['bytes_per_token'] / 2**20:,.1f} MiB of weights read for a token, "
        f"{100 * report['ffn_share_of_bytes']:.1f} % of them in FFN blocks"
    )
    shown = {ratio: value for ratio, value in report["ideal_speed_up"].items() if ratio in SHOWN_RATIOS}
    if shown and not report["refused"]:
        pairs = ", ".join(f"x{value:.2f} with {100 * ratio:g} %" for ratio, value in shown.items())
        lines.append(f"speed-up  {pairs} of the blocks skipped, as far as bytes allow")
    return [*lines, f"profile   {_profile_line(report)}"]


def _can_skip(layers: Sequence[dict[str, Any]], skippable: Sequence[dict[str, Any]]) -> str:
    kept: dict[str, list[int]] = {}
    for layer in layers:
        if not layer["skippable"]:
            kept.setdefault(layer["why_not"], []).append(layer["layer"])
    notes = "".join(f"; not layer {ranges(which)}: {why}" for why, which in kept.items())
    return f"can skip  {len(skippable)} of {len(layers)} FFN blocks{notes}"


def _profile_line(report: dict[str, Any]) -> str:
    if report["profile"] is None:
        return f"none, so nothing is skipped; ffnskip calibrate {report['model']} --text FILE makes one"
    if report["profile_refused"]:
        return f"{report['profile']}: can't be used: {report['profile_refused']}"
    return str(report["profile"])


def _groups(layers: Sequence[dict[str, Any]]) -> list[str]:
    """A line for all layers that are alike, which in most models all are."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for layer in layers:
        groups.setdefault(_line(layer), []).append(layer["layer"])
    head = ("layers", "FFN", "residual", "parameters", "bytes", "weights")
    rows = [head, *((ranges(which), *line) for line, which in groups.items())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _line(layer: dict[str, Any]) -> tuple[str, ...]:
    prefix = f"blk.{layer['layer']}."
    weights = ", ".join(
        f"{w['name'].removeprefix(prefix).removesuffix('.weight')} {w['type']}" for w in layer["weights"]
    )
    return (
        layer["kind"],
        layer["residual"],
        _millions(layer["parameters"]),
        f"{layer['bytes_per_token']:,}",
        weights,
    )


def _parameter_lines(report: dict[str, Any]) -> list[str]:
    total = sum(report["parameters"].values())
    return [
        "parameters",
        *(f"  {name:<9}  {_millions(n):>12}  {100 * n / total:5.1f} %" for name, n in report["parameters"].items()),
        f"fingerprint {report['fingerprint']}",
    ]


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}M"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    parser.add_argument("model", metavar="MODEL.gguf", help="model to look into; the first part, if it is split")
    parser.add_argument("--json", action="store_true", help="all there is, as one JSON object")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP


def run(args: argparse.Namespace) -> int:
    """Prints the report."""
    report = inspect(args.model)
    print(json.dumps(report, indent=2) if args.json else _text(report))
    return 0
