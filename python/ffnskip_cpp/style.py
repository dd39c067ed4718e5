"""How the pictures look, and what they have in common; and how they are kept.

    with drawing(8, 4.4) as (figure, axes):
        axes[0, 0].plot(...)
    Path("similarity.png").write_bytes(png_bytes(figure))

Colours are those of Okabe and Ito, told apart with any kind of colour vision; lines are labelled where they are.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#767676"
PURPLE, SKY = "#CC79A7", "#56B4E9"
DARK_RED = "#a84700"  # vermilion for text
PROFILE_STYLE: dict[str, Any] = {"color": "black", "marker": "*", "markersize": 9, "linestyle": "none"}
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
    with _applied():
        figure.savefig(buffer, format="png", dpi=PNG_DPI)
    return buffer.getvalue()


def svg_text(figure: Figure) -> str:
    """The figure as one svg element that refers to nothing outside of itself, for a file or within HTML."""
    buffer = io.StringIO()
    with _applied():
        figure.savefig(buffer, format="svg", dpi=PNG_DPI, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # without the XML declaration and a document type that names a file at w3.org
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.S)


@contextlib.contextmanager
def _applied() -> Iterator[None]:
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        yield


@contextlib.contextmanager
def drawing(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple[Figure, npt.NDArray[Any]]]:
    """A figure of so many inches and its axes, [rows, columns], to be drawn on within the block."""
    from matplotlib.figure import Figure

    with _applied():
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


# ---- similarities ----

SIMILARITY_TICKS = (-0.9, 0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
CLOSEST_TO_ONE = 1e-5


def _stretch(similarity: Any) -> Any:
    """Spreads what is close to 1, where the layers differ."""
    return -np.log10(np.maximum(1.0 - np.asarray(similarity, float), CLOSEST_TO_ONE))


def _unstretch(value: Any) -> Any:
    return 1.0 - 10.0 ** -np.asarray(value, float)


SIMILARITY_SCALE = (_stretch, _unstretch)

# ---- parts ----


def layer_ticks(axis: Any, n_layer: int) -> None:
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, n_layer) if n_layer / step <= 20)
    axis.set_ticks(range(0, n_layer, step))


def label(ax: Axes, point: tuple[float, float], text: str, color: str, dy: float = 0, **options: Any) -> None:
    """Text that stays readable over lines, `dy` points above a point."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.8}
    ax.annotate(text, point, xytext=(0, dy), textcoords="offset points", color=color, bbox=box, **options)


def add_title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=10)


def legend_below(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False)
