"""Pictures of what `measure` found, as matplotlib figures.

    figure = draw_similarity(similarity, cold=(2, 14), sim_threshold=0.9)
    Path("similarity.png").write_bytes(png_bytes(figure))

Colours are those of Okabe and Ito, told apart with any kind of colour vision; lines are labelled where they are.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..measure.quality import Quality
from ..measure.similarity import Generation, LayerSimilarity, NeverTripped, QualityPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "draw_generation",
    "draw_never_tripped",
    "draw_similarity",
    "draw_skip_ratio",
    "draw_warm_up",
    "matplotlib_version",
    "png_bytes",
    "svg_text",
]

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#767676"
DARK_RED = "#a84700"  # vermilion for text
PROFILE_STYLE: dict[str, Any] = {"color": "black", "marker": "*", "markersize": 9, "linestyle": "none"}
POLICY_STYLE = {
    "ffn_skip": (BLUE, "o", "Algorithm 1"),
    "random in adaptive region": (ORANGE, "s", "random, adaptive region"),
    "random": (VERMILION, "^", "random, any layer"),
}
STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "svg.hashsalt": "ffnskip",  # the same file for the same numbers
    "svg.fonttype": "path",  # looks the same where the font is not installed
}
PNG_DPI = 150


def matplotlib_version() -> str:
    """Raises ImportError, with what to install, where there is none."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(f"pictures need matplotlib: pip install 'ffnskip_cpp[plots]' ({error})") from error
    return matplotlib.__version__


def png_bytes(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="png", dpi=PNG_DPI)
    return buffer.getvalue()


def svg_text(figure: Figure) -> str:
    """The figure as one svg element that refers to nothing outside of itself, for a file or within HTML."""
    buffer = io.StringIO()
    with _style():
        figure.savefig(buffer, format="svg", dpi=PNG_DPI, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # without the XML declaration and a document type that names a file at w3.org
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.S)


@contextlib.contextmanager
def _style() -> Iterator[None]:
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        yield


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


# ---- similarity per layer ----

SIMILARITY_TICKS = (-0.9, 0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
CLOSEST_TO_ONE = 1e-5


def _stretch(similarity: Any) -> Any:
    """Spreads what is close to 1, where the layers differ."""
    return -np.log10(np.maximum(1.0 - np.asarray(similarity, float), CLOSEST_TO_ONE))


def _unstretch(value: Any) -> Any:
    return 1.0 - 10.0 ** -np.asarray(value, float)


def draw_similarity(similarity: LayerSimilarity, cold: tuple[int, int], sim_threshold: float) -> Figure:
    """Figure 2: mean similarity per layer, its quantile band, and the cold regions.

    Args:
        cold: cold_s and cold_e that are in use; shaded. Those that the curve suggests are marked by lines.
    """
    with _style():
        figure, axes = _figure(8, 4.4)
        ax = axes[0, 0]
        n_layer = len(similarity.mean)
        layers = np.arange(n_layer)
        ax.set_yscale("function", functions=(_stretch, _unstretch))
        ax.fill_between(layers, similarity.low, similarity.high, color=BLUE, alpha=0.2, linewidth=0)
        ax.plot(layers, similarity.mean, color=BLUE, marker="o", markersize=4)
        _set_similarity_axis(ax, similarity)
        _shade_cold(ax, cold, n_layer)
        _mark_suggested(ax, similarity.cold_regions)
        if ax.get_ylim()[0] < sim_threshold < ax.get_ylim()[1]:
            ax.axhline(sim_threshold, color=VERMILION, linewidth=1, linestyle=(0, (6, 3)))
            ax.text(
                1.01, sim_threshold, f"sim_threshold\n{sim_threshold:g}", transform=ax.get_yaxis_transform(),
                color=DARK_RED, va="center",
            )  # fmt: skip
        _label_band(ax, similarity)
        ax.set_xlim(-0.5, n_layer - 0.5)
        _layer_ticks(ax.xaxis, n_layer)
        ax.set_xlabel("layer")
        ax.set_ylabel("cosine of the residual before and after the FFN block\n(scale: logarithm of 1 − cosine)")
        ax.set_title(f"Similarity per layer, {similarity.n_tokens:,} tokens", pad=16)
    return figure


def _set_similarity_axis(ax: Axes, similarity: LayerSimilarity) -> None:
    low, high = float(np.nanmin(similarity.low)), float(np.nanmax(similarity.high))
    bottom, top = float(_stretch(low)), float(_stretch(high))
    margin = 0.08 * max(top - bottom, 0.1)
    limits = _unstretch([bottom - margin, top + margin])
    ticks = [tick for tick in SIMILARITY_TICKS if limits[0] <= tick <= limits[1]]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    ax.minorticks_off()
    ax.set_ylim(*limits)


def _shade_cold(ax: Axes, cold: tuple[int, int], n_layer: int) -> None:
    for first, last in ((0, cold[0]), (cold[1], n_layer)):
        if first < last:
            ax.axvspan(first - 0.5, last - 0.5, color=VERMILION, alpha=0.13, linewidth=0, zorder=0)
            ax.text(
                (first + last - 1) / 2, 1.015, "cold", transform=ax.get_xaxis_transform(), color=DARK_RED, ha="center"
            )
    ax.text(
        n_layer - 1, 0.97, "last layer: never checked", transform=ax.get_xaxis_transform(), color=GREY, rotation=90,
        ha="center", va="top", fontsize=8,
    )  # fmt: skip


def _mark_suggested(ax: Axes, suggested: tuple[int, int]) -> None:
    """Where the curve itself ends to rise."""
    for layer in suggested:
        ax.axvline(layer - 0.5, color=GREEN, linewidth=1.4, linestyle=":")
    cold_s, cold_e = suggested
    text = f"the curve suggests cold_s {cold_s}, cold_e {cold_e}"
    _label(ax, ((cold_s + cold_e - 1) / 2, 0.03), text, GREEN, xycoords=ax.get_xaxis_transform(), ha="center")


def _label_band(ax: Axes, similarity: LayerSimilarity) -> None:
    """Names the line and the band in the middle of the picture."""
    seen = np.flatnonzero(~np.isnan(similarity.mean))
    layer = int(seen[len(seen) // 2])
    _label(ax, (layer + 0.2, similarity.high[layer]), "10 to 90 % of the tokens", BLUE, dy=5)
    _label(ax, (layer + 0.2, similarity.mean[layer]), "mean", BLUE, dy=7)


def _layer_ticks(axis: Any, n_layer: int) -> None:
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, n_layer) if n_layer / step <= 20)
    axis.set_ticks(range(0, n_layer, step))


def _label(ax: Axes, point: tuple[float, float], text: str, color: str, dy: float = 0, **options: Any) -> None:
    """Text that stays readable over lines, `dy` points above a point."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.8}
    ax.annotate(text, point, xytext=(0, dy), textcoords="offset points", color=color, bbox=box, **options)


# ---- tokens that never trip ----


def draw_never_tripped(result: NeverTripped, lengths: Sequence[int], sim_threshold: float) -> Figure:
    """Table 6 as a curve: the share among the first n generated tokens."""
    with _style():
        figure, axes = _figure(8, 3.8)
        ax = axes[0, 0]
        percent = 100 * result.share()
        n = np.arange(1, len(percent) + 1)
        ax.plot(n, percent, color=BLUE, linewidth=1.5)
        top = float(np.nanmax(percent, initial=0.0))
        for i, length in enumerate(lengths):
            value = percent[length - 1]
            if math.isfinite(value):
                ax.plot(length, value, "o", color=BLUE, markersize=5)
                ax.annotate(
                    f"{length}: {value:.2f} %", (length, value), xytext=(0, 8 + 13 * (i % 2)),
                    textcoords="offset points", color=BLUE, ha="right" if length == len(percent) else "center",
                )  # fmt: skip
        ax.axvspan(0, result.warm_up_index, color=GREY, alpha=0.15, linewidth=0)
        ax.annotate(
            "warm-up", (0, 1.0), xycoords=ax.get_xaxis_transform(), xytext=(3, -9),
            textcoords="offset points", color=GREY,
        )  # fmt: skip
        ax.set_xlim(0, len(percent) * 1.01)
        top = max(1.25 * top, 0.5)
        ax.set_ylim(-0.03 * top, top)
        ax.set_xlabel("generated tokens")
        ax.set_ylabel("tokens that never trip (%)")
        ax.set_title(f"Tokens that never reach {sim_threshold:g}, of those that may skip; {len(result.never)} prompts")
    return figure


# ---- quality ----


@dataclass(frozen=True)
class _Measure:
    """A measure of quality as it is drawn."""

    label: str
    value: Callable[[Quality], float]
    dense: float  # of the dense model
    linear_width: float  # where values of very different size are drawn together, linear up to here, then logarithmic


MEASURES = (
    _Measure("KL from dense (nats per token)", lambda quality: quality.kl, 0.0, 0.01),
    _Measure("same top token as dense (%)", lambda quality: 100 * quality.top1_agreement, 100.0, math.inf),
    _Measure("perplexity above dense (%)", lambda quality: 100 * (quality.perplexity_ratio - 1), 0.0, 1.0),
)
SPREAD = 10.0


def draw_warm_up(points: Sequence[QualityPoint]) -> Figure:
    """Figure 5: quality against warm_up_index."""
    with _style():
        figure, axes = _figure(9.5, 3.5, 1, 3)
        warm_ups = [point.config.warm_up_index for point in points]
        for ax, measure in zip(axes[0], MEASURES):
            whole = [measure.value(point.whole) for point in points]
            same = [measure.value(point.quality) for point in points]
            ax.axhline(measure.dense, color=GREY, linewidth=0.8)
            ax.plot(warm_ups, whole, color=ORANGE, marker="s", markersize=4, label="all tokens")
            ax.plot(warm_ups, same, color=BLUE, marker="o", markersize=4, label=f"tokens from {points[0].first_row} on")
            ax.set_xlabel("warm_up_index (tokens)")
            ax.set_ylabel(measure.label)
        _legend_below(figure, axes[0, 0])
        _title(figure, f"Quality against warm-up, skip ratio {points[0].config.skip_ratio:g}")
    return figure


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=10)


def _legend_below(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False)


def draw_skip_ratio(points: Sequence[QualityPoint], speeds: Sequence[dict[str, Any]] | None) -> Figure:
    """Quality, and speed where it was measured, against the share of FFN blocks skipped."""
    with _style():
        figure, axes = _figure(9.5, 6.4, 2, 2) if speeds else _figure(9.5, 3.5, 1, 3)
        flat = list(axes.flat)
        if speeds:
            _draw_speed(flat.pop(0), speeds)
        for ax, measure in zip(flat, MEASURES):
            _draw_quality(ax, points, measure)
        _legend_below(figure, flat[0])
        dense = points[0].quality.perplexity_dense
        subject = "Speed and quality" if speeds else "Quality"
        _title(figure, f"{subject} against the share of FFN blocks skipped; perplexity of dense {dense:,.2f}")
    return figure


def _draw_quality(ax: Axes, points: Sequence[QualityPoint], measure: _Measure) -> None:
    largest = []
    ax.axhline(measure.dense, color=GREY, linewidth=0.8)
    for policy, (color, marker, label) in POLICY_STYLE.items():
        own = [point for point in points if point.config.label == policy and point.name is None]
        if own:
            x, y = zip((0.0, measure.dense), *sorted((100 * p.skip_ratio, measure.value(p.quality)) for p in own))
            ax.plot(x, y, color=color, marker=marker, markersize=4, label=label)
            largest.append(max(map(abs, y)))
    for point in points:
        if point.name is not None:
            y = measure.value(point.quality)
            ax.plot(100 * point.skip_ratio, y, **PROFILE_STYLE, label=point.name)
            largest.append(abs(y))
    if max(largest) > SPREAD * min(largest) and math.isfinite(measure.linear_width):
        _set_asinh_axis(ax, measure.linear_width, max(largest))
    ax.set_xlabel("FFN blocks skipped, of tokens that may skip (%)")
    ax.set_ylabel(measure.label)


def _set_asinh_axis(ax: Axes, linear_width: float, largest: float) -> None:
    """Linear near 0, logarithmic from `linear_width` on, where the ticks are powers of ten."""
    ax.set_yscale("asinh", linear_width=linear_width)
    powers = [linear_width * 10**i for i in range(max(1, math.ceil(math.log10(largest / linear_width)) + 1))]
    bottom, top = ax.get_ylim()
    ticks = [tick for tick in (*(-power for power in powers), 0.0, *powers) if bottom <= tick <= top]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def _draw_speed(ax: Axes, speeds: Sequence[dict[str, Any]]) -> None:
    rows = sorted((row for row in speeds if row["policy"] == "ffn_skip"), key=lambda row: row["skip_ratio"])
    x = [100 * row["skip_ratio"] for row in rows]
    speed_up = [row["speed_up"] for row in rows]
    errors = [
        [row["speed_up"] - row["speed_up_q1"] for row in rows],
        [row["speed_up_q3"] - row["speed_up"] for row in rows],
    ]
    ideal = [row["ideal_speed_up"] for row in rows]
    for row in speeds:
        if row["policy"].startswith("profile "):
            ax.plot(100 * row["skip_ratio"], row["speed_up"], **PROFILE_STYLE)
    ax.plot([0, *x], [1, *ideal], color=GREY, linestyle="--", linewidth=1)
    ax.errorbar(x, speed_up, yerr=errors, color=GREEN, marker="o", markersize=4, capsize=2)
    ax.axhline(1, color=GREY, linewidth=0.8)
    ax.text(0.03, 0.93, "-- what the bytes not read allow", color=GREY, transform=ax.transAxes)
    ax.text(0.03, 0.85, "● measured: median and quartiles", color="#00704f", transform=ax.transAxes)
    ax.margins(y=0.2)
    ax.set_xlabel("FFN blocks skipped (%)")
    ax.set_ylabel("tokens per second, ratio to dense")


# ---- token by layer ----


def draw_generation(generation: Generation, cold: tuple[int, int]) -> Figure:
    """Heat map of a generation: above what Algorithm 1 did, below the similarities without skipping."""
    from matplotlib.colors import FuncNorm

    with _style():
        n_tokens, n_layer = generation.similarity.shape
        width, height = max(8.0, 2.0 + 0.115 * n_tokens), 1.9 + 2 * min(max(1.4, 0.12 * n_layer), 4.0)
        figure, axes = _figure(width, height, 2, 1, sharex=True)
        norm = FuncNorm((_stretch, _unstretch), *_range_of(generation.full[:, slice(*cold)]))
        did, full = axes[:, 0]
        image = _heat_map(did, generation.similarity, norm)
        _heat_map(full, generation.full, norm)
        _mark_skipped(did, generation.skipped)
        _mark_warm_up(did, generation.warm_up_index, n_layer)
        for ax, title in (
            (did, "what Algorithm 1 did: colour where checked, orange where skipped, white where run unchecked"),
            (full, "similarity of the same tokens where nothing is skipped; the last layer is never checked"),
        ):
            ax.set_title(title)
            ax.set_ylabel("layer")
            _layer_ticks(ax.yaxis, n_layer)
            for boundary in cold:
                ax.axhline(boundary - 0.5, color="black", linewidth=0.8, linestyle=":")
        _label_tokens(full, generation.pieces)
        did.tick_params(axis="x", length=0)
        bar = figure.colorbar(
            image, ax=axes[:, 0].tolist(), label="similarity", pad=0.01, aspect=height / 0.15, extend="both"
        )
        ticks = [tick for tick in SIMILARITY_TICKS if norm.vmin <= tick <= norm.vmax]
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        bar.minorticks_off()
    return figure


def _range_of(similarity: Any) -> tuple[float, float]:
    """Where nearly all values lie: an outlier must not take the colours from the others."""
    low, high = np.nanquantile(similarity, (0.01, 0.99)).tolist()
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

    ax.imshow(
        np.ma.masked_equal(skipped.T.astype(int), 0), origin="lower", aspect="auto", cmap=ListedColormap([VERMILION]),
        interpolation="nearest",
    )  # fmt: skip


def _mark_warm_up(ax: Axes, warm_up_index: int, n_layer: int) -> None:
    if warm_up_index > 0:
        x, y = (warm_up_index - 1) / 2, (n_layer - 1) / 2
        ax.axvspan(-0.5, warm_up_index - 0.5, facecolor="#f0f0f0", edgecolor="none", zorder=0)
        ax.text(x, y, "warm-up:\nevery block runs", color=GREY, ha="center", va="center")


def _label_tokens(ax: Axes, pieces: Sequence[str]) -> None:
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
