"""Tokens that never trip: Table 6 of FFN-SkipLLM, as a curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ... import style
from ...measure.generation import NeverTripped, measure_never_tripped
from ..report import Column, Section, Table, decimals, percent
from ..subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["section"]

PAPER = "The paper reports 1.73 %, 1.05 % and 0.98 % for 512, 1024 and 2048 tokens (LLaMA-2 7B, threshold 0.9)."
COLUMNS = (
    Column("generated_tokens", "generated tokens", decimals(0)),
    Column("tokens_that_may_skip", "may skip, all prompts", decimals(0)),
    Column("never_tripped", "never tripped", decimals(0)),
    Column("share_never_tripped", "share", percent(4)),
    Column("share_of_all_tokens", "share with warm-up", percent(4)),
)


def section(subject: Subject) -> Section:
    prompts = subject.prompts()
    lengths, notes = _lengths(subject, subject.context - len(prompts[0]))
    if len(prompts) < subject.wanted.n_prompts:
        notes.append(f"{len(prompts)} prompts, not {subject.wanted.n_prompts}: the text has no more.")
    with subject.progress("tokens that never trip", len(prompts) * (lengths[-1] + 1)) as told:
        result = measure_never_tripped(subject.llm, prompts, lengths[-1], subject.config, told)
    rows = result.rows(lengths)
    threshold = subject.config.sim_threshold
    return Section(
        "never_tripped",
        "Tokens that never trip (the paper's Table 6)",
        f"Tokens whose similarity stays below sim_threshold ({threshold:g}) in every layer of the adaptive region, so "
        "that they skip nothing; cumulative, of the tokens after the warm-up. Greedy generation with Algorithm 1 from "
        f"{len(prompts)} prompts of {len(prompts[0])} tokens, past end-of-text tokens. {PAPER}",
        _draw(result, lengths, threshold),
        {"never_tripped": rows, "never_tripped_by_token": result.curve()},
        [Table("Tokens that never trip", COLUMNS, rows)],
        notes,
        ", ".join(f"{100 * row['share_never_tripped']:.2f} % of {row['generated_tokens']}" for row in rows),
    )


def _lengths(subject: Subject, room: int) -> tuple[list[int], list[str]]:
    """Generations that fit, and what is to be said of those that do not."""
    wanted = sorted(set(subject.wanted.n_generated))
    fitting = [n for n in wanted if n <= room]
    left_out = [str(n) for n in wanted if n > room]
    if not left_out:
        return fitting, []
    if room not in fitting:
        fitting.append(room)
    return fitting, [
        f"Left out: {', '.join(left_out)} generated tokens, which do not fit the context of {subject.context}. "
        f"In their place: {room}, as many as fit. A larger --n-ctx goes beyond what the model was trained on."
    ]


def _draw(result: NeverTripped, lengths: Sequence[int], sim_threshold: float) -> Figure:
    """Table 6 as a curve: the share among the first n generated tokens."""
    with style.drawing(8, 3.8) as (figure, axes):
        ax = axes[0, 0]
        percent = 100 * result.share()
        n = np.arange(1, len(percent) + 1)
        ax.plot(n, percent, color=style.BLUE, linewidth=1.5)
        top = float(np.nanmax(percent, initial=0.0))
        for i, length in enumerate(lengths):
            value = percent[length - 1]
            if math.isfinite(value):
                ax.plot(length, value, "o", color=style.BLUE, markersize=5)
                ax.annotate(
                    f"{length}: {value:.2f} %", (length, value), xytext=(0, 8 + 13 * (i % 2)),
                    textcoords="offset points", color=style.BLUE, ha="right" if length == len(percent) else "center",
                )  # fmt: skip
        ax.axvspan(0, result.warm_up_index, color=style.GREY, alpha=0.15, linewidth=0)
        ax.annotate(
            "warm-up", (0, 1.0), xycoords=ax.get_xaxis_transform(), xytext=(3, -9),
            textcoords="offset points", color=style.GREY,
        )  # fmt: skip
        ax.set_xlim(0, len(percent) * 1.01)
        top = max(1.25 * top, 0.5)
        ax.set_ylim(-0.03 * top, top)
        ax.set_xlabel("generated tokens")
        ax.set_ylabel("tokens that never trip (%)")
        ax.set_title(f"Tokens that never reach {sim_threshold:g}, of those that may skip; {len(result.never)} prompts")
    return figure
