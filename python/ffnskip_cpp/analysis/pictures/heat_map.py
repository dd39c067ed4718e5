"""One generation, token by layer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import style
from ...measure.generation import Generation, measure_generation
from ..report import Column, Section, Table
from ..subject import Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["N_TOKENS", "label_tokens", "mark_warm_up", "range_of", "section"]

N_TOKENS = 66  # after the warm-up


def section(subject: Subject) -> Section:
    prompt, warm_up_index = subject.prompts()[0], subject.shown.warm_up_index
    wanted = warm_up_index + N_TOKENS
    n = min(wanted, subject.context - len(prompt))
    with subject.progress("heat map", len(prompt) + 2 * n + 1) as told:
        result = measure_generation(subject.llm, prompt, n, subject.shown, told)
    skipped, checked = result.skipped.sum(), np.isfinite(result.similarity).sum()
    n_blocks = max(n - warm_up_index, 0) * subject.n_layer
    share = f"{100 * skipped / n_blocks:.1f} %" if n_blocks else "none"
    notes = [f"{n} tokens, not {wanted}: the context of {subject.context} holds no more."] if n < wanted else []
    text = [("prompt", result.prompt), ("generated", "".join(result.pieces))]
    return Section(
        "heat_map",
        "One generation, token by layer",
        f"Above: what was done, by {subject.shown_words}. A block is coloured by its similarity where it was checked, "
        "orange where it was skipped, and white where it ran unchecked: in the cold regions (beyond the dotted lines), "
        "and after a token has skipped its share. Below: the similarities of the same tokens where nothing is skipped. "
        f"Blocks of tokens after the warm-up that were skipped: {share}; checks: {checked:,}. Greedy, from a prompt of "
        f"{len(prompt)} tokens.",
        _draw(result, subject.cold),
        {"heat_map": result.rows()},
        [Table("Text", [Column("part", ""), Column("text", "text")], [{"part": part, "text": t} for part, t in text])],
        notes,
        f"{share} of the FFN blocks of {max(n - warm_up_index, 0)} tokens skipped, in {checked:,} checks",
    )


def _draw(generation: Generation, cold: tuple[int, int]) -> Figure:
    """Heat map of a generation: above what Algorithm 1 did, below the similarities without skipping."""
    from matplotlib.colors import FuncNorm

    n_tokens, n_layer = generation.similarity.shape
    width, height = max(8.0, 2.0 + 0.115 * n_tokens), 1.9 + 2 * min(max(1.4, 0.12 * n_layer), 4.0)
    with style.drawing(width, height, 2, 1, sharex=True) as (figure, axes):
        limits = range_of(generation.full[:, slice(*cold)])
        norm = FuncNorm(style.SIMILARITY_SCALE, *limits)
        did, full = axes[:, 0]
        image = _heat_map(did, generation.similarity, norm)
        _heat_map(full, generation.full, norm)
        _mark_skipped(did, generation.skipped)
        mark_warm_up(did, generation.warm_up_index, n_layer)
        for ax, title in (
            (did, "what Algorithm 1 did: colour where checked, orange where skipped, white where run unchecked"),
            (full, "similarity of the same tokens where nothing is skipped; the last layer is never checked"),
        ):
            ax.set_title(title)
            ax.set_ylabel("layer")
            style.layer_ticks(ax.yaxis, n_layer)
            for boundary in cold:
                ax.axhline(boundary - 0.5, color="black", linewidth=0.8, linestyle=":")
        label_tokens(full, generation.pieces)
        did.tick_params(axis="x", length=0)
        bar = figure.colorbar(
            image, ax=axes[:, 0].tolist(), label="similarity", pad=0.01, aspect=height / 0.15, extend="both"
        )
        ticks = [tick for tick in style.SIMILARITY_TICKS if limits[0] <= tick <= limits[1]]
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        bar.minorticks_off()
    return figure


def range_of(values: Any) -> tuple[float, float]:
    """Where nearly all values lie: an outlier must not take the colours from the others."""
    low, high = np.nanquantile(values, (0.01, 0.99)).tolist()
    return low, max(high, low + 1e-4)


def _heat_map(ax: Axes, similarity: Any, norm: Any) -> Any:
    """Layers upwards, tokens to the right."""
    ax.grid(False)
    return ax.imshow(
        np.ma.masked_invalid(similarity.T), origin="lower", aspect="auto", cmap="cividis", norm=norm,
        interpolation="nearest",
    )  # fmt: skip


def _mark_skipped(ax: Axes, skipped: Any) -> None:
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([style.VERMILION])
    shown = np.ma.masked_equal(skipped.T.astype(int), 0)
    ax.imshow(shown, origin="lower", aspect="auto", cmap=colours, interpolation="nearest")


def mark_warm_up(ax: Axes, warm_up_index: int, n_layer: int, words: str = "warm-up:\nevery block runs") -> None:
    if warm_up_index > 0:
        x, y = (warm_up_index - 1) / 2, (n_layer - 1) / 2
        ax.axvspan(-0.5, warm_up_index - 0.5, facecolor="#f0f0f0", edgecolor="none", zorder=0)
        ax.text(x, y, words, color=style.GREY, ha="center", va="center")


def label_tokens(ax: Axes, pieces: Sequence[str]) -> None:
    labels = [_drawable(piece) for piece in pieces]
    ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6.5, parse_math=False)
    ax.tick_params(axis="x", length=2)
    ax.set_xlabel("generated token")


def _drawable(piece: str) -> str:
    """At most 12 characters that the font has; a line end is shown as ↵, a blank as ·."""
    font = _font()
    shown = piece.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·")
    shown = "".join(c if font.get_char_index(ord(c)) else "▯" for c in shown)
    return shown if len(shown) <= 12 else f"{shown[:11]}…"


@functools.lru_cache(maxsize=1)
def _font() -> Any:
    from matplotlib import font_manager, ft2font

    return ft2font.FT2Font(font_manager.findfont("DejaVu Sans"))  # comes with matplotlib
