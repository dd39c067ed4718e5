"""Similarity per layer: Figure 2 of FFN-SkipLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ... import style
from ...measure.similarity import LayerSimilarity, measure_similarity
from ..report import Column, Section, Table, decimals
from ..subject import Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "section"]

COLUMNS = (
    Column("layer", "layer", decimals(0)),
    Column("mean", "mean", decimals(4)),
    Column("quantile_10", "10 %", decimals(4)),
    Column("quantile_90", "90 %", decimals(4)),
)


def section(subject: Subject) -> Section:
    with subject.progress("similarity per layer", subject.n_tokens) as told:
        result = measure_similarity(subject.llm, subject.chunks, told)
    rows = result.rows()
    in_use, (cold_s, cold_e) = subject.cold, result.cold_regions
    return Section(
        "similarity",
        "Similarity per layer (the paper's Figure 2)",
        "Cosine of the residual before and after the FFN block: the closer to 1, the less the block changes. Line: "
        "mean over tokens; band: 10 to 90 % of the tokens. Shaded: the cold regions in use, where nothing is checked "
        f"or skipped (cold_s {in_use[0]}, cold_e {in_use[1]}). Dotted: the regions that the curve itself suggests "
        f"(cold_s {cold_s}, cold_e {cold_e}): it rises from its lowest layer in the first half on, and at the end "
        "falls by more than 0.01 below its maximum. The text is teacher-forced and nothing is skipped; "
        f"{result.n_tokens:,} tokens, without the first of each chunk.",
        draw(result, in_use, subject.config.sim_threshold),
        {"similarity": rows},
        [Table("Similarity per layer", COLUMNS, rows)],
        [
            f"The last layer, {subject.n_layer - 1}, is never checked: llama.cpp evaluates it for the rows only whose "
            "output is wanted."
        ],
        f"mean {np.nanmin(result.mean):.4f} to {np.nanmax(result.mean):.4f}; the curve suggests cold_s {cold_s}, "
        f"cold_e {cold_e}; in use are {in_use[0]} and {in_use[1]}",
    )


def draw(similarity: LayerSimilarity, cold: tuple[int, int], sim_threshold: float) -> Figure:
    """Figure 2: mean similarity per layer, its quantile band, and the cold regions.

    Args:
        cold: cold_s and cold_e that are in use; shaded. Those that the curve suggests are marked by lines.
    """
    with style.drawing(8, 4.4) as (figure, axes):
        ax = axes[0, 0]
        n_layer = len(similarity.mean)
        layers = np.arange(n_layer)
        ax.set_yscale("function", functions=style.SIMILARITY_SCALE)
        ax.fill_between(layers, similarity.low, similarity.high, color=style.BLUE, alpha=0.2, linewidth=0)
        ax.plot(layers, similarity.mean, color=style.BLUE, marker="o", markersize=4)
        _set_similarity_axis(ax, similarity)
        _shade_cold(ax, cold, n_layer)
        _mark_suggested(ax, similarity.cold_regions)
        if ax.get_ylim()[0] < sim_threshold < ax.get_ylim()[1]:
            ax.axhline(sim_threshold, color=style.VERMILION, linewidth=1, linestyle=(0, (6, 3)))
            ax.text(
                1.01, sim_threshold, f"sim_threshold\n{sim_threshold:g}", transform=ax.get_yaxis_transform(),
                color=style.DARK_RED, va="center",
            )  # fmt: skip
        _label_band(ax, similarity)
        ax.set_xlim(-0.5, n_layer - 0.5)
        style.layer_ticks(ax.xaxis, n_layer)
        ax.set_xlabel("layer")
        ax.set_ylabel("cosine of the residual before and after the FFN block\n(scale: logarithm of 1 − cosine)")
        ax.set_title(f"Similarity per layer, {similarity.n_tokens:,} tokens", pad=16)
    return figure


def _set_similarity_axis(ax: Axes, similarity: LayerSimilarity) -> None:
    stretch, unstretch = style.SIMILARITY_SCALE
    low, high = float(np.nanmin(similarity.low)), float(np.nanmax(similarity.high))
    bottom, top = float(stretch(low)), float(stretch(high))
    margin = 0.08 * max(top - bottom, 0.1)
    limits = unstretch([bottom - margin, top + margin])
    ticks = [tick for tick in style.SIMILARITY_TICKS if limits[0] <= tick <= limits[1]]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    ax.minorticks_off()
    ax.set_ylim(*limits)


def _shade_cold(ax: Axes, cold: tuple[int, int], n_layer: int) -> None:
    for first, last in ((0, cold[0]), (cold[1], n_layer)):
        if first < last:
            ax.axvspan(first - 0.5, last - 0.5, color=style.VERMILION, alpha=0.13, linewidth=0, zorder=0)
            where = (first + last - 1) / 2, 1.015
            ax.text(*where, "cold", transform=ax.get_xaxis_transform(), color=style.DARK_RED, ha="center")
    ax.text(
        n_layer - 1, 0.97, "last layer: never checked", transform=ax.get_xaxis_transform(), color=style.GREY,
        rotation=90, ha="center", va="top", fontsize=8,
    )  # fmt: skip


def _mark_suggested(ax: Axes, suggested: tuple[int, int]) -> None:
    """Where the curve itself ends to rise."""
    for layer in suggested:
        ax.axvline(layer - 0.5, color=style.GREEN, linewidth=1.4, linestyle=":")
    cold_s, cold_e = suggested
    text = f"the curve suggests cold_s {cold_s}, cold_e {cold_e}"
    where = (cold_s + cold_e - 1) / 2, 0.03
    style.label(ax, where, text, style.GREEN, xycoords=ax.get_xaxis_transform(), ha="center")


def _label_band(ax: Axes, similarity: LayerSimilarity) -> None:
    """Names the line and the band in the middle of the picture."""
    seen = np.flatnonzero(~np.isnan(similarity.mean))
    layer = int(seen[len(seen) // 2])
    style.label(ax, (layer + 0.2, similarity.high[layer]), "10 to 90 % of the tokens", style.BLUE, dy=5)
    style.label(ax, (layer + 0.2, similarity.mean[layer]), "mean", style.BLUE, dy=7)
