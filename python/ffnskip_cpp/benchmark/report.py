"""Prints the rows: a table to read, and JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence

from ..table import markdown
from .rows import BenchmarkRow

__all__ = ["FORMATS", "NOTES", "as_markdown"]

COLUMNS: dict[str, Callable[[BenchmarkRow], str]] = {
    "model": lambda row: row.model,
    "type": lambda row: row.type,
    "threads": lambda row: str(row.threads),
    "test": lambda row: row.test,
    "policy": lambda row: row.policy,
    "skipped": lambda row: f"{100 * row.skip_ratio:.1f} %",
    "GFLOPs saved": lambda row: f"{row.flops_saved / 1e9:.3g}",
    "checks": lambda row: f"{row.checks:.1f}",
    "t/s": lambda row: f"{row.tokens_per_second:.2f} ± {row.tokens_per_second_spread / 2:.2f}",
    "speed-up": lambda row: f"{row.speed_up:.3f} [{row.speed_up_q1:.3f}, {row.speed_up_q3:.3f}]",
    "ideal": lambda row: f"{row.ideal_speed_up:.3f}",
    "of ideal": lambda row: f"{100 * row.share_of_ideal:.1f} %",
    "limit": lambda row: "" if row.limit_speed_up is None else f"{row.limit_speed_up:.3f}",
    "of limit": lambda row: "" if row.share_of_limit is None else f"{100 * row.share_of_limit:.1f} %",
    "copies": lambda row: f"{row.weights_bytes / 2**20:,.1f} MiB" if row.weights_bytes else "",
}
TEXT_COLUMNS = ("model", "type", "test", "policy")

NOTES = """\
dense: llama.cpp without ffnskip; idle: ffnskip attached, nothing skipped or checked; checks: every layer of the
adaptive region checked, nothing skipped; all blocks: every FFN block skipped that can be, nothing checked; fixed
layers: round(ratio * layers) FFN blocks, those in the middle, of every token, nothing checked. In the other rows the
check of the first adaptive layer always trips (sim_threshold -2, warm_up_index 0), so that a token skips as many FFN
blocks as it may: round(ratio * layers). Where that is 0 there is nothing to check for either, and the row is one more
of idle. Rows of channels leave out channels of what the FFN's matrices read, and so this share of their weight bytes;
thresholds come from 16 tokens that are decoded before those that are timed. "channels, all kept" has the same kernels
and leaves out nothing but zeros. copies: memory of the weights by channel, which all contexts share. Rows of a profile
do as it says, from the first token on; the tokens are random, so that one that checks or leaves channels out may skip
more or less than of text.
t/s: median of single tokens (pp: of whole prompts), ± half the interquartile range. speed-up: median [quartiles] of the
ratio to dense, token by token. ideal: the same ratio if time were in proportion to the bytes of weights read, scales
and all. limit: if time fell by that of the blocks skipped and by nothing else, each taking what one of "all blocks" was
seen to take. GFLOPs saved: per token, 2 for each element of the skipped blocks' matrices, or of the columns left
out."""


def as_markdown(rows: Sequence[BenchmarkRow]) -> str:
    """The table, without columns in which no row has anything, and below it how to read it."""
    columns = {name: cells for name, cell in COLUMNS.items() if any(cells := [cell(row) for row in rows])}
    table = markdown(list(columns), [list(cells) for cells in zip(*columns.values())], left=TEXT_COLUMNS)
    versions = rows[0].versions
    return f"{table}\n\n{NOTES}\nffnskip {versions['ffnskip']}, llama-cpp-python {versions['llama_cpp']}"


def _csv(rows: Sequence[BenchmarkRow]) -> str:
    out = io.StringIO()
    flat = [
        {**row.as_dict(), "versions": " ".join(f"{name}={version}" for name, version in row.versions.items())}
        for row in rows
    ]
    writer = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[Sequence[BenchmarkRow]], str]] = {
    "md": as_markdown,
    "json": lambda rows: json.dumps([row.as_dict() for row in rows], indent=2),
    "jsonl": lambda rows: "\n".join(json.dumps(row.as_dict()) for row in rows),
    "csv": _csv,
}
