"""`ffnskip inspect`: what there is to skip in a model."""

from __future__ import annotations

import argparse
import json

from ..inspection.inspection import inspect
from .arguments import add_model, explain

__all__ = ["add_arguments", "run"]

HELP = """\
Parameters are counted as in the paper's Table 1. bytes: read for one token; of experts, those chosen. The ideal
speed-up is the one that the bytes not read allow, where time is in proportion to bytes; what it costs in quality,
ffnskip calibrate tells. channels: inputs of matrices of which --policy channels can leave channels out, and the memory
for copies of their weights, by channel.

examples:
  ffnskip inspect model.gguf
  ffnskip inspect model.gguf --json | jq .ffn_share_of_bytes"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "model to look into; its weights are not read")
    parser.add_argument("--json", action="store_true", help="print all there is, every layer and weight, as one object")
    explain(parser, HELP)


def run(args: argparse.Namespace) -> int:
    inspection = inspect(args.model)
    print(json.dumps(inspection.as_dict(), indent=2) if args.json else inspection)
    return 0
