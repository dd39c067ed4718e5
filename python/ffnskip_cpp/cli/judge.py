"""`ffnskip judge`: the texts of evaluated runs, graded by another model."""

from __future__ import annotations

import argparse
import json
import sys

from ..evaluation.judge.estimate import Estimate
from ..evaluation.judge.judge import judge
from ..evaluation.judge.templates import write_templates
from ..evaluation.judge.wanted import MODES
from .arguments import UsageError, add_progress, explain, list_of

__all__ = ["INTERRUPTED", "add_arguments", "run"]

INTERRUPTED = "all replies are kept; the same command goes on from there"

HELP = """\
Any server will do that speaks OpenAI's protocol: OpenAI's own, llama-server, python -m llama_cpp.server, vLLM. The key
is taken from OPENAI_API_KEY, if that is set, and neither printed nor stored.

Prints what it is going to cost and asks, before it sends anything. Every reply is kept in DIR/judge as soon as it is
there: the same command after an interruption, or with more runs in DIR, asks for what is missing alone. Ctrl-C waits
for the replies that are under way, which will be charged; pressed twice, it does not.

Ends with status 1 where requests failed; the same command asks for these again.

examples:
  ffnskip judge results --url https://api.openai.com/v1 --model gpt-4o --price-in 2.5 --price-out 10
  ffnskip judge results --url http://127.0.0.1:8080/v1 --model judge --mode pairwise --limit 20 --yes
  ffnskip judge results --url http://127.0.0.1:8080/v1 --model judge --mode pairwise --against gpt-3.5-turbo.jsonl
  ffnskip judge --write-prompts my-prompts
  ffnskip judge results --url http://127.0.0.1:8080/v1 --model judge --prompts my-prompts --criteria fluency"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Not nargs="?", which argparse takes for empty where an option comes before it.
    parser.add_argument("directory", metavar="DIR", help="folder of results, from ffnskip eval").required = False
    parser.add_argument("--url", metavar="URL", help="address of the server, with /v1 for most")
    parser.add_argument("--model", dest="judge", metavar="NAME", help="model that judges, as the server calls it")
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable with the key (default: OPENAI_API_KEY, if set)"
    )
    _add_what(parser)
    _add_sending(parser)
    parser.add_argument("--price-in", type=float, metavar="P", help="price of a million tokens sent, for the estimate")
    parser.add_argument("--price-out", type=float, metavar="P", help="price of a million tokens of replies")
    parser.add_argument("--yes", action="store_true", help="consent to the estimate; without it, it is asked for")
    add_progress(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    explain(parser, HELP)


def _add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=MODES[0],
        help="single: grades for each answer; pairwise: for it and the reference's, in both orders (default: single)",
    )
    parser.add_argument(
        "--against",
        metavar="METHOD|FILE",
        help="reference of pairwise: method or label of runs in DIR, or answers in FastChat's .jsonl (default: dense)",
    )
    parser.add_argument(
        "--criteria",
        type=list_of(str),
        metavar="NAME,...",
        help="criteria in place of those that the prompts name for each kind of question",
    )
    parser.add_argument("--prompts", metavar="DIR", help="folder with prompts of your own")
    parser.add_argument(
        "--write-prompts", metavar="DIR", help="folder to write the prompts to, for editing; no more is done"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="items of each run (default: all)")


def _add_sending(parser: argparse.ArgumentParser) -> None:
    for name, kind, default, what in (
        ("--max-retries", int, 3, "retries of a request that fails, and of a reply that can't be used"),
        ("--parallel", int, 4, "requests at a time"),
        ("--timeout", float, 120.0, "seconds that the server may be silent"),
    ):
        parser.add_argument(
            name, type=kind, default=default, metavar="N" if kind is int else "S", help=f"{what} (default: {default:g})"
        )


def run(args: argparse.Namespace) -> int:
    if args.write_prompts is not None:
        write_templates(args.write_prompts)
        return 0
    for name, given in (("DIR", args.directory), ("--url", args.url), ("--model", args.judge)):
        if given is None:
            raise UsageError(f"the following arguments are required: {name}")
    judgement = judge(
        args.directory,
        url=args.url,
        model=args.judge,
        api_key_env=args.api_key_env,
        mode=args.mode,
        against=args.against,
        criteria=args.criteria,
        prompts=args.prompts,
        limit=args.limit,
        max_retries=args.max_retries,
        parallel=args.parallel,
        timeout=args.timeout,
        price_in=args.price_in,
        price_out=args.price_out,
        confirm=None if args.yes else _confirm,
        progress=args.progress,
    )
    print(json.dumps(judgement.as_dict(), indent=2) if args.json else judgement)
    return 1 if any(run.failed for run in judgement.runs) else 0


def _confirm(estimate: Estimate) -> None:
    print(estimate, file=sys.stderr)
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("nothing was sent, as nobody can be asked: stdin is no terminal; --yes consents")
    print("Send them? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RuntimeError("nothing was sent")
