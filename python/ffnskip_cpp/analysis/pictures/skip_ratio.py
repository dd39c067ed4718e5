"""Speed and quality against the share of the FFN that is skipped: of its blocks, or of its weight bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import style
from ...benchmark.benchmark import bench
from ...measure.points import QualityPoint, measure_quality
from ..report import Column, Section, Table, decimals, percent
from ..subject import Subject
from .measures import MEASURES, Measure, quality_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["measure", "section"]

POLICY_STYLE = {
    "ffn_skip": (style.BLUE, "o", "Algorithm 1"),
    "random in adaptive region": (style.ORANGE, "s", "random, adaptive region"),
    "random": (style.VERMILION, "^", "random, any layer"),
    "channels": (style.GREEN, "D", "channels"),
}
TIMED = ("ffn_skip", "channels")  # of the others each skips as much as ffn_skip
SKIPPED = "FFN blocks or weight bytes skipped"
SPREAD = 10.0
SPEED_COLUMNS = (
    Column("policy", "setting"),
    Column("skip_ratio", "skipped", percent(1)),
    Column("tokens_per_second", "tokens/s", decimals(2)),
    Column("speed_up", "ratio to dense", decimals(3)),
    Column("speed_up_q1", "lower quartile", decimals(3)),
    Column("speed_up_q3", "upper quartile", decimals(3)),
    Column("ideal_speed_up", "bytes allow", decimals(3)),
)
QUALITY_COLUMNS = (
    Column("policy", "policy"),
    Column("skip_ratio_target", "target", percent(1)),
    Column("skip_ratio", "skipped", percent(1)),
    Column("checks_per_token", "checks", decimals(1)),
    *quality_columns(),
)


def measure(subject: Subject) -> list[QualityPoint]:
    """Quality: what needs the model open."""
    configs, profile = subject.configs(), subject.profile
    if profile is not None:
        configs.append(profile.config)
    with subject.progress("quality against skip ratio", subject.n_tokens * (1 + len(configs))) as told:
        points = measure_quality(subject.llm, subject.chunks, configs, progress=told)
    if profile is not None:
        points[-1].name = f"profile {Path(profile.path).name}"
    return points


def section(subject: Subject, points: list[QualityPoint]) -> Section:
    """Measures speed, with the model closed: that opens it in its own way."""
    notes = list(subject.ratio_notes)
    if subject.wanted.n_speed == 0:
        notes.append("Speed was not measured (--speed-tokens 0).")
    speeds = _speeds(subject) if subject.wanted.n_speed else []
    rows = [point.row() for point in points]
    numbers = {"skip_ratio_quality": rows}
    tables = [Table("Quality, of tokens that may skip", QUALITY_COLUMNS, rows)]
    if speeds:
        numbers["skip_ratio_speed"] = [{k: v for k, v in row.items() if k != "versions"} for row in speeds]
        tables.append(Table("Speed", SPEED_COLUMNS, speeds))
    return Section(
        "skip_ratio",
        "Speed and quality against skip ratio" if speeds else "Quality against skip ratio",
        "What skipping saves and costs as more of the FFN is skipped: of its blocks, by Algorithm 1 and the paper's "
        "two baselines, or of its weight bytes, by channels. "
        "Quality is teacher-forced, each chunk as one generation, counted over tokens that may skip. Speed is that of "
        "single tokens: plain llama.cpp and every setting decode in turn, token by token, in one process, and all "
        "tokens skip as much as they may (`ffnskip bench`).",
        _draw(points, speeds),
        numbers,
        tables,
        notes,
        _summary(rows, speeds),
    )


def _speeds(subject: Subject) -> list[dict[str, Any]]:
    wanted, (cold_s, cold_e) = subject.wanted, subject.cold
    benchmark = bench(
        wanted.model_path,
        n_threads=wanted.n_threads,
        n_gen=wanted.n_speed,
        n_gpu_layers=wanted.n_gpu_layers,
        skip_ratio=subject.ratios,
        policy=_timed(subject),
        tensors=subject.wanted.tensors if "channels" in _timed(subject) else "ffn",
        cold_s=cold_s,
        cold_e=cold_e,
        profile=wanted.profile,
        lora=wanted.lora,
        progress=wanted.progress,
    )
    return [row.as_dict() for row in benchmark.rows]


def _timed(subject: Subject) -> list[str]:
    asked = [policy["policy"] for policy in subject.policies]
    return ["ffn_skip", *(["channels"] if "channels" in asked else [])]


def _summary(rows: Sequence[dict[str, Any]], speeds: Sequence[dict[str, Any]]) -> str:
    """A line for each setting."""
    speed_up = {(row["policy"], row["skip_ratio_target"]): row["speed_up"] for row in speeds}
    lines = []
    for row in rows:
        faster = speed_up.get((row["policy"], row["skip_ratio_target"]))
        lines.append(
            f"{row['policy']}, {row['skip_ratio']:.1%} skipped: KL {row['kl']:.4g}, perplexity "
            f"x{row['perplexity_ratio']:.3f}" + (f", speed x{faster:.2f}" if faster else "")
        )
    return "".join(f"\n  {line}" for line in lines)


def _draw(points: Sequence[QualityPoint], speeds: Sequence[dict[str, Any]]) -> Figure:
    """Quality, and speed where it was measured, against the share skipped."""
    with style.drawing(*((9.5, 6.4, 2, 2) if speeds else (9.5, 3.5, 1, 3))) as (figure, axes):
        flat = list(axes.flat)
        if speeds:
            _draw_speed(flat.pop(0), speeds)
        for ax, measure in zip(flat, MEASURES):
            _draw_quality(ax, points, measure)
        style.legend_below(figure, flat[0])
        dense = points[0].quality.perplexity_dense
        subject = "Speed and quality" if speeds else "Quality"
        style.add_title(figure, f"{subject} against the share of the FFN skipped; perplexity of dense {dense:,.2f}")
    return figure


def _draw_quality(ax: Axes, points: Sequence[QualityPoint], measure: Measure) -> None:
    largest: list[float] = []
    ax.axhline(measure.dense, color=style.GREY, linewidth=0.8)
    for policy, (color, marker, label) in POLICY_STYLE.items():
        own = [point for point in points if point.config.label == policy and point.name is None]
        if own:
            line = [(0.0, measure.dense), *sorted((100 * p.skip_ratio, measure.value(p.quality)) for p in own)]
            ax.plot(*zip(*line), color=color, marker=marker, markersize=4, label=label)
            largest.append(max(abs(y) for _, y in line))
    for point in points:
        if point.name is not None:
            y = measure.value(point.quality)
            ax.plot(100 * point.skip_ratio, y, **style.PROFILE_STYLE, label=point.name)
            largest.append(abs(y))
    if max(largest) > SPREAD * min(largest) and math.isfinite(measure.linear_width):
        _set_asinh_axis(ax, measure.linear_width, max(largest))
    ax.set_xlabel(f"{SKIPPED}, of tokens that may skip (%)")
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
    for policy in TIMED:
        rows = sorted((row for row in speeds if row["policy"] == policy), key=lambda row: row["skip_ratio"])
        if rows:
            _draw_speed_of(ax, rows, *POLICY_STYLE[policy][:2])
    for row in speeds:
        if row["policy"].startswith("profile "):
            ax.plot(100 * row["skip_ratio"], row["speed_up"], **style.PROFILE_STYLE)
    ax.axhline(1, color=style.GREY, linewidth=0.8)
    ax.text(0.03, 0.93, "-- what the bytes not read allow", color=style.GREY, transform=ax.transAxes)
    ax.text(0.03, 0.85, "— measured: median and quartiles", color=style.GREY, transform=ax.transAxes)
    ax.margins(y=0.2)
    ax.set_xlabel(f"{SKIPPED} (%)")
    ax.set_ylabel("tokens per second, ratio to dense")


def _draw_speed_of(ax: Axes, rows: Sequence[dict[str, Any]], color: str, marker: str) -> None:
    x = [100 * row["skip_ratio"] for row in rows]
    speed_up = [row["speed_up"] for row in rows]
    errors = [
        [row["speed_up"] - row["speed_up_q1"] for row in rows],
        [row["speed_up_q3"] - row["speed_up"] for row in rows],
    ]
    ax.plot([0, *x], [1, *(row["ideal_speed_up"] for row in rows)], color=color, linestyle="--", linewidth=1, alpha=0.6)
    ax.errorbar(x, speed_up, yerr=errors, color=color, marker=marker, markersize=4, capsize=2)
