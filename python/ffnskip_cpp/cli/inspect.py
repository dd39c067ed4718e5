"""`ffnskip inspect`: what there is to skip in a model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from ..inspection.inspection import inspect
from .arguments import ranges

__all__ = ["add_arguments", "run"]

SHOWN_RATIOS = (0.1, 0.25, 0.5)  # in the text; --json has all


HELP = """\
Parameters are counted as in the paper's Table 1. bytes: read for one token; of experts, those chosen. The ideal
speed-up is the one that the bytes not read allow, where time is in proportion to bytes; what it costs in quality,
ffnskip calibrate tells.

example:
  ffnskip inspect model.gguf"""


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
