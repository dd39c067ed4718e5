"""Share of channels kept, token by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ... import style
from ...measure.generation import ChannelGeneration, measure_channels
from ..report import Column, Section, Table, percent
from ..subject import Subject
from .heat_map import N_TOKENS, label_tokens, mark_warm_up, range_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["section"]

INPUTS = {
    "qkv": "input of Q, K and V",
    "o": "input of attention's output matrix",
    "up": "input of gate and up",
    "down": "input of down",
}
COLUMNS = (
    Column("input", "input"),
    Column("kept", "channels kept", percent(1)),
    Column("least", "least, of a layer and token", percent(1)),
    Column("most", "most", percent(1)),
)


def section(subject: Subject) -> Section:
    prompt, config = subject.prompts()[0], subject.channels
    wanted = config.n_full + N_TOKENS
    n = min(wanted, subject.context - len(prompt))
    with subject.progress("channels kept", n + 1) as told:
        result = measure_channels(subject.llm, prompt, n, config, told)
    notes = [f"{n} tokens, not {wanted}: the context of {subject.context} holds no more."] if n < wanted else []
    rows = [_shares(result, kind) for kind in result.kinds]
    found = "" if config.channel_thresholds else " Thresholds are found in the first tokens, which are grey here."
    return Section(
        "channels",
        "Channels kept, token by layer",
        "Of the channels of what a layer's matrices read, the share that each token kept: those that reach the layer's "
        f"threshold, however many they are.{found} Rows that are dark throughout are layers that need little of their "
        f"weights, dark columns are tokens that need little. Greedy, from a prompt of {len(prompt)} tokens, by "
        f"{_words(subject)}.",
        _draw(result),
        {"channels": result.rows()},
        [Table("Tokens after the warm-up", COLUMNS, rows)],
        notes,
        ", ".join(f"{row['kept']:.1%} of the channels of the {row['input']} kept" for row in rows),
    )


def _words(subject: Subject) -> str:
    config = subject.channels
    if config.channel_thresholds:
        return subject.shown_words
    return f"policy channels at a skip ratio of {config.ratio:.2g} of weight bytes"


def _shares(result: ChannelGeneration, kind: str) -> dict[str, Any]:
    kept = result.of(kind)[result.n_full :]
    if not np.isfinite(kept).any():
        return {"input": INPUTS[kind], "kept": 1.0, "least": 1.0, "most": 1.0}
    return {
        "input": INPUTS[kind],
        "kept": float(np.nanmean(kept)),
        "least": float(np.nanmin(kept)),
        "most": float(np.nanmax(kept)),
    }


def _draw(result: ChannelGeneration) -> Figure:
    """A heat map for each kind of input, above one another."""
    n_tokens, n_layer = result.kept.shape[:2]
    each = min(max(1.4, 0.12 * n_layer), 4.0)
    width, height = max(8.0, 2.0 + 0.115 * n_tokens), 1.5 + len(result.kinds) * each
    with style.drawing(width, height, len(result.kinds), 1, sharex=True) as (figure, axes):
        for ax, kind in zip(axes[:, 0], result.kinds):
            image = _heat_map(ax, 100 * result.of(kind), result.n_full)
            mark_warm_up(ax, result.n_full, n_layer, "warm-up:\nall channels kept")
            ax.set_title(f"{INPUTS[kind]}: channels kept")
            ax.set_ylabel("layer")
            style.layer_ticks(ax.yaxis, n_layer)
            ax.tick_params(axis="x", length=0)
            figure.colorbar(image, ax=ax, label="kept (%)", pad=0.01, aspect=each / 0.15, extend="both")
        label_tokens(axes[-1, 0], result.pieces)
    return figure


def _heat_map(ax: Axes, percents: Any, n_full: int) -> Any:
    """Layers upwards, tokens to the right; nothing where the warm-up is."""
    shown = np.ma.masked_invalid(percents.T.copy())
    shown[:, :n_full] = np.ma.masked
    low, high = range_of(shown.filled(np.nan)) if shown.count() else (0.0, 100.0)
    ax.grid(False)
    return ax.imshow(
        shown, origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=high, interpolation="nearest"
    )  # fmt: skip
