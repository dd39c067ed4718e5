"""`ffnskip report`: the paper's tables and figures, and more, from what `ffnskip eval` measured."""

from __future__ import annotations

import argparse
import json

from ..evaluation.report.report import FORMATS, report_evaluation
from .arguments import explain, list_of

__all__ = ["add_arguments", "run"]

HELP = """\
writes report.md, and for each model a folder with the tables as CSV and the pictures as PNG and SVG:
  the paper's Tables 2, 3 and 5 with its own numbers beside those measured, and its Figures 3, 4 and 5
  quality against what is left out, and against the speed measured (--task speed of ffnskip eval)
  all figures of every task, signs of collapse, and what judges said (ffnskip judge)
Every figure has its 95 % interval, and a star where it differs from the dense model's. What was not measured is an
empty cell, and the command that measures it is named.

examples:
  ffnskip report results
  ffnskip report smollm2 gemma3 -o report --format md,csv"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    parser.add_argument("results", nargs="+", metavar="DIR", help="folders that ffnskip eval wrote")
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="folder for the report; made if missing (default: report within DIR)"
    )
    parser.add_argument(
        "--format",
        type=list_of(str),
        default=FORMATS,
        metavar="F,...",
        help=f"formats to write, of {', '.join(FORMATS)} (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="print all tables as JSON")
    explain(parser, HELP)


def run(args: argparse.Namespace) -> int:
    """Do what parsed `args` ask; the exit status."""
    report = report_evaluation(args.results, args.output, formats=args.format)
    print(json.dumps(report.as_dict(), indent=2) if args.json else report)
    return 0
