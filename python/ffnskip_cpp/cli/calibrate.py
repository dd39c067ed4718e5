"""Find out what to skip in a model, and write its profile: `ffnskip calibrate`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence

from ..calibration.calibration import (
    EFFORT,
    MAX_TOKENS,
    SKIP_RATIO,
    TYPICAL_CHAT,
    TYPICAL_N_CTX,
    Calibration,
    calibrate,
)
from ..calibration.choice import TOLERANCE, Row, beats, equal
from ..calibration.effort import EFFORTS
from ..lora import LORA_HELP
from ..skip_config import SkipConfig

__all__ = ["add_arguments", "report", "run"]

COLUMNS: dict[str, Callable[[Row], str]] = {
    "policy": lambda row: row.policy,
    "skipped": lambda row: f"{row.skip_ratio:.1%}",
    "KL": lambda row: kl(row),
    "same top token": lambda row: f"{row.top1_agreement:.2%}",
    "perplexity": lambda row: f"x{row.perplexity_ratio:.4f}",
    "checks": lambda row: f"{row.checks:.1f}",
    "settings": lambda row: describe(row.config),
}
LEFT = ("policy", "settings")


def kl(row: Row) -> str:
    """With its standard error."""
    return f"{row.kl:.4g}" if math.isnan(row.kl_error) else f"{row.kl:.4g} ± {row.kl_error:.2g}"


def describe(config: SkipConfig) -> str:
    """The values of a setting that differ from one candidate to the next."""
    parts = [] if config.layers is None else [f"layers {','.join(map(str, config.layers))}"]
    if config.max_skip != 0 and config.cold_s is not None:
        parts.append(f"[{config.cold_s}, {config.cold_e}) max_skip {config.max_skip}")
        if config.layer_thresholds is None:
            parts.append(f"threshold {config.sim_threshold:.5g}")
    return ", ".join(parts)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [list(COLUMNS), *([cell(row) for cell in COLUMNS.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    rule = ["-" * width if name in LEFT else "-" * (width - 1) + ":" for name, width in zip(COLUMNS, widths)]
    lines.insert(1, rule)
    return "\n".join(
        f"| {' | '.join(_padded(name, cell, width) for name, cell, width in zip(COLUMNS, line, widths))} |"
        for line in lines
    )


def _padded(name: str, cell: str, width: int) -> str:
    return cell.ljust(width) if name in LEFT else cell.rjust(width)


def report(calibration: Calibration) -> str:
    """What the command prints."""
    chosen, held_out = calibration.chosen, calibration.candidates
    lines = [
        f"On {chosen.n_tokens} tokens of held-out text, the best of each policy of {len(calibration.tried)} settings "
        "tried on other text:",
        "",
        table(held_out),
        "",
        f"chosen: {chosen.policy}, {describe(chosen.config)}",
    ]
    as_good = [row.policy for row in held_out if row is not chosen and equal(row, chosen)]
    if as_good:
        lines.append(f"equal to it in KL, within the standard error: {', '.join(as_good)}")
    algorithm_1 = next((row for row in held_out if row.policy == "ffn_skip"), None)
    if algorithm_1 is None:
        lines.append("Algorithm 1 can't skip that much")
    elif beats(chosen, algorithm_1):
        lines.append(
            f"Algorithm 1 is not the best here: KL {kl(algorithm_1)} at {algorithm_1.skip_ratio:.1%}, "
            f"against {kl(chosen)} at {chosen.skip_ratio:.1%}"
        )
    lines += [f"note: {note}" for note in calibration.notes]
    return "\n".join([*lines, f"written to {calibration.path}"])


HELP = """\
KL: divergence from the dense model, nats per token, ± its standard error over chunks of text; same top token: share of
tokens with the same most likely next one; perplexity: times the dense model's; checks: similarities computed per token.
All of them, and the share of FFN blocks skipped, are of tokens past the warm-up, teacher-forced.

--text takes plain text in UTF-8, a text per file, and .jsonl with one of these a line:
  {"text": "..."}
  {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
  {"turns": ["...", "..."]}
Chats are rendered by the model's own template, and what the assistant says counts as generated. The model answers what
has no answer itself, as in "turns", which is what the user says.

An interrupted calibration goes on where it was when the same command is given again.

example:
  ffnskip calibrate model.gguf --text text.txt --skip-ratio 0.25"""


# ---- command line ----


def effort(text: str) -> str | float:
    """A name, or seconds; what is neither is refused with the other values."""
    try:
        return float(text)
    except ValueError:
        return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    parser.add_argument("model", metavar="MODEL.gguf", help="model to calibrate; the first part, if it is split")
    parser.add_argument(
        "--text",
        nargs="+",
        required=True,
        metavar="FILE",
        help="text of the kind to be generated: plain, in UTF-8, or .jsonl",
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--skip-ratio",
        type=float,
        metavar="R",
        help=f"share of the FFN blocks to skip (default: {SKIP_RATIO}), or {TOLERANCE} less",
    )
    target.add_argument("--max-kl", type=float, metavar="X", help="skip as much as costs no more KL divergence")
    parser.add_argument(
        "--effort",
        type=effort,
        default=EFFORT,
        metavar="E",
        help=f"{', '.join(EFFORTS)}, or about how many seconds it may take (default: %(default)s)",
    )
    parser.add_argument("--lora", metavar="FILE", help=LORA_HELP)
    parser.add_argument("--embed", action="store_true", help="write the profile into the model's file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the profile (default: MODEL.ffnskip.gguf beside the model)"
    )
    parser.add_argument(
        "--n-ctx",
        type=int,
        metavar="N",
        help=f"tokens of a chunk of text (default: {TYPICAL_N_CTX}, of chats {TYPICAL_CHAT}, or the model's context)",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help="of the text (default: %(default)s)"
    )
    parser.add_argument(
        "--warm-up", type=int, default=30, metavar="N", help="generated tokens that run in full (default: %(default)s)"
    )
    parser.add_argument(
        "-s", "--seed", type=int, default=0, metavar="N", help="of the choice of held-out text (default: %(default)s)"
    )
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: all processors")
    parser.add_argument("-ngl", "--n-gpu-layers", type=int, default=-1, metavar="N", help="layers on the GPU; -1: all")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP


def run(args: argparse.Namespace) -> int:
    """Do what parsed `args` ask; 0 on success, 2 with one line on stderr otherwise, 130 when interrupted."""
    try:
        calibration = calibrate(
            args.model,
            args.text,
            skip_ratio=args.skip_ratio,
            max_kl=args.max_kl,
            effort=args.effort,
            lora=args.lora,
            output=args.output,
            embed=args.embed,
            n_ctx=args.n_ctx,
            max_tokens=args.max_tokens,
            warm_up_index=args.warm_up,
            seed=args.seed,
            n_threads=args.threads,
            n_gpu_layers=args.n_gpu_layers,
            progress=True,
        )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"ffnskip calibrate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ffnskip calibrate: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(report(calibration))
    return 0
