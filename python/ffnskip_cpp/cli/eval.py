"""`ffnskip eval`: what skipping costs on tasks, the paper's and others."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from ..evaluation.evaluation import evaluate
from ..evaluation.items import SPEED
from ..evaluation.methods import DENSE, RATIO_METHODS
from ..evaluation.tasks import TASKS
from ..evaluation.wanted import N_CTX, N_PARALLEL, SCORING
from ..lora import LORA_HELP
from .arguments import UsageError, add_model, add_progress, add_seed, add_text, add_threads, explain, list_of

__all__ = ["INTERRUPTED", "add_arguments", "run"]

INTERRUPTED = "the same command goes on from here"

HELP = f"""\
Tasks, with the official files that they read; each is put to the dense model first, and then to it under every method:
  factoid     FreebaseQA (.json, or `question | answer` a line), TriviaQA (.json, .jsonl): answers generated
  chat        MT-Bench (.jsonl): both turns
  summarize   CNN/DailyMail (.jsonl, .csv, .parquet)
  mmlu        the folder with dev/ and test/: 5-shot
  choice      .jsonl with query, choices and gold (ARC, PIQA, OpenBookQA, BoolQ): the likeliest counts
  cloze       .jsonl with context and continuation (LAMBADA)
  perplexity  text, plain or .jsonl: perplexity, KL divergence and same top token, next to the dense model
  demo        .jsonl with question and answer of the demo model's world
  {SPEED}       no data: how fast the methods generate, all in turn

Methods: ffn_skip (the paper's values), random, random_adaptive_region, short_gpt, skip_decode and channels take a skip
ratio; NAME.ffnskip.gguf is a skip profile, any other NAME.gguf another file of the model, such as a smaller
quantisation.

DIR gets a file of figures and one of items for each run; `ffnskip report DIR` makes tables and pictures of them. Runs
that are finished are not run again, and an interrupted command goes on when it is given again. With another --warm-up,
--skip-prompts or --scoring runs have other names, and lie beside the first.

The first token behind a prompt is predicted by the prompt's last row, which runs in full; "could skip" says how much of
what is scored does not. --skip-prompts N lets prompts skip behind N tokens, a lower --warm-up lets texts skip earlier.

examples:
  ffnskip eval model.gguf --task choice --data arc_easy.jsonl --data piqa.jsonl --limit 500 -o results
  ffnskip eval model.gguf --task factoid,speed --data freebaseqa-eval.txt --skip-ratio 0.1,0.2,0.3 -o results
  ffnskip eval model.gguf --task mmlu --data mmlu/ --method short_gpt,channels --text text.txt -o results
  ffnskip eval model.gguf --task cloze,mmlu --data cloze=lambada.jsonl --data mmlu=mmlu --skip-prompts 8 -o results
  ffnskip eval model.gguf --task chat --data mt_bench.jsonl --method model.ffnskip.gguf,model-q3_k_m.gguf -o results"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    add_model(parser, "model to evaluate")
    parser.add_argument(
        "--task", type=list_of(str), required=True, metavar="T,...", help=f"tasks: {', '.join((*TASKS, SPEED))}"
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="FILE",
        help="data: of one task each of its data sets; of several one each, in their order, or TASK=FILE; may be "
        "repeated",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the results; made if missing")
    parser.add_argument(
        "--method",
        type=list_of(str),
        action="extend",
        metavar="M,...",
        help=f"methods: {', '.join(RATIO_METHODS)}, or files; {DENSE} is run in any case (default: ffn_skip)",
    )
    parser.add_argument(
        "--skip-ratio",
        type=list_of(float),
        metavar="R,...",
        help="shares to leave out: of the FFN blocks, by channels of the FFN's bytes, by short_gpt and skip_decode of "
        "the layers (default: 0.25, by channels a third)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="items of each data set at most (default: all)")
    add_text(parser, "text to find the layers of short_gpt on, thresholds of channels, and to measure speed on")
    _add_settings(parser)
    parser.add_argument("--lora", metavar="FILE", help=LORA_HELP)
    add_seed(parser, "seed of the choice of items, and of the random methods")
    add_threads(parser)
    add_progress(parser)
    parser.add_argument("--json", action="store_true", help="print JSON in place of a page")
    explain(parser, HELP)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """How items are put to the model."""
    parser.add_argument(
        "--skip-prompts",
        type=int,
        metavar="N",
        help="tokens of a prompt that run in full; the others count as generated (default: all of it runs in full)",
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        metavar="N",
        help="generated tokens that run in full, of every method that has a warm-up (default: each one's own)",
    )
    parser.add_argument(
        "--scoring",
        choices=SCORING,
        default=SCORING[0],
        help="scoring of mmlu: by how likely the letters are, or by the one that is written (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="tokens of an answer at most (default: the task's own)"
    )
    parser.add_argument(
        "--n-ctx",
        type=int,
        default=N_CTX,
        metavar="N",
        help="tokens of the context, which all answers generated at once share (default: %(default)s)",
    )
    parser.add_argument(
        "--parallel",
        type=int,
        default=N_PARALLEL,
        metavar="N",
        help="answers generated at once (default: %(default)s); an interrupted command goes on from the last whole 4 "
        "times as many items",
    )


def run(args: argparse.Namespace) -> int:
    """Do what parsed `args` ask; the exit status."""
    evaluation = evaluate(
        args.model,
        args.task,
        _data(args.task, args.data),
        args.output,
        methods=args.method or ("ffn_skip",),
        skip_ratio=args.skip_ratio,
        limit=args.limit,
        text=args.text or (),
        skip_prompts=args.skip_prompts,
        warm_up_index=args.warm_up,
        scoring=args.scoring,
        max_tokens=args.max_tokens,
        lora=args.lora,
        n_ctx=args.n_ctx,
        n_parallel=args.parallel,
        seed=args.seed,
        n_threads=args.threads,
        n_gpu_layers=args.n_gpu_layers,
        progress=args.progress,
    )
    print(json.dumps(evaluation.as_dict(), indent=2) if args.json else evaluation)
    return 0


def _data(tasks: Sequence[str], given: Sequence[str]) -> list[str] | dict[str, list[str]]:
    """By task where all say of which they are, or in the order of the tasks."""
    named: dict[str, list[str]] = {}
    for text in given:
        task, equals, path = text.partition("=")
        if equals and task in tasks:
            named.setdefault(task, []).append(path)
    if named and sum(map(len, named.values())) < len(given):
        raise UsageError("--data: some are TASK=FILE and some are not; give all of them so")
    return named or list(given)
