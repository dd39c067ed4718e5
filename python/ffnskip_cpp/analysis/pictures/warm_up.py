"""Quality against the warm-up: Figure 5 of FFN-SkipLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ... import style
from ...measure.points import QualityPoint, measure_quality
from ..report import Column, Section, Table, decimals
from ..subject import Subject
from .measures import MEASURES, quality_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["section"]


def section(subject: Subject) -> Section:
    warm_ups, wanted = subject.warm_ups, sorted(set(subject.wanted.warm_ups))
    left_out = [str(n) for n in wanted if n not in warm_ups]
    notes = [f"Left out: warm-ups of {', '.join(left_out)}, more than half of every chunk."] if left_out else []
    configs = [subject.shown.replace(warm_up_index=n) for n in warm_ups]
    with subject.progress("quality against warm-up", subject.n_tokens * (1 + len(configs))) as told:
        points = measure_quality(subject.llm, subject.chunks, configs, warm_ups[-1], told)
    rows = [point.row() for point in points]
    first = Column("warm_up_index", "warm-up", decimals(0))
    return Section(
        "warm_up",
        "Quality against warm-up (the paper's Figure 5)",
        "What the skipping model's predictions lose against the dense model's as fewer of a chunk's first tokens run "
        f"in full, with {subject.shown_words}. Blue: tokens from {warm_ups[-1]} on, which skip whatever the warm-up, "
        "so that only what they look back at differs. Orange: all tokens, those of the warm-up included, which lose "
        "nothing. Teacher-forced, each chunk as one generation.",
        _draw(points),
        {"warm_up": rows},
        [
            Table(f"Tokens from {warm_ups[-1]} on", [first, *quality_columns()], rows),
            Table("All tokens", [first, *quality_columns("_all_rows")], rows),
        ],
        notes,
        f"KL {points[0].quality.kl:.4g} after a warm-up of {warm_ups[0]}, {points[-1].quality.kl:.4g} after "
        f"{warm_ups[-1]}, of the tokens from {warm_ups[-1]} on",
    )


def _draw(points: Sequence[QualityPoint]) -> Figure:
    """Figure 5: quality against warm_up_index."""
    with style.drawing(9.5, 3.5, 1, 3) as (figure, axes):
        warm_ups = [point.config.warm_up_index for point in points]
        last = f"tokens from {points[0].first_row} on"
        for ax, measure in zip(axes[0], MEASURES):
            whole = [measure.value(point.whole) for point in points]
            same = [measure.value(point.quality) for point in points]
            ax.axhline(measure.dense, color=style.GREY, linewidth=0.8)
            ax.plot(warm_ups, whole, color=style.ORANGE, marker="s", markersize=4, label="all tokens")
            ax.plot(warm_ups, same, color=style.BLUE, marker="o", markersize=4, label=last)
            ax.set_xlabel("warm_up_index (tokens)")
            ax.set_ylabel(measure.label)
        style.legend_below(figure, axes[0, 0])
        style.add_title(figure, f"Quality against warm-up, skip ratio {points[0].config.ratio:g}")
    return figure
