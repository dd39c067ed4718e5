"""The page that `ffnskip try` prints."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..table import markdown
from .rows import Row
from .smaller import SOURCE

if TYPE_CHECKING:
    from .trial import Trial

__all__ = ["page"]

WIDTH = 120
KINDS = {
    "profile": "{}: the model's profile",
    "search": "{}: best blocks found in a quick search",
    "paper": "{}: Algorithm 1, the paper's values",
    "channels": "{}: channels, found while generating",
    "quantisation": "{}, {:.0%} smaller",
}
COLUMNS = ("", "skipped", "speed-up", "first token", "KL divergence", "perplexity", "same top token")


def page(trial: Trial) -> str:
    notes = [textwrap.fill(note, WIDTH) for note in trial.notes]
    parts = [_heading(trial), _table(trial.rows), _how(trial), *_layers(trial.rows), _texts(trial), *notes]
    return "\n\n".join([*(part for part in parts if part), trial.verdict])


def _heading(trial: Trial) -> str:
    parts = [
        f"{trial.model}: {trial.architecture}, {trial.n_layer} layers, {trial.type}, {trial.n_bytes / 1e6:.0f} MB",
        f"{trial.n_threads} thread{'s' if trial.n_threads > 1 else ''}",
    ]
    if not math.isnan(trial.tokens_per_second):
        parts.append(
            f"dense {trial.tokens_per_second:.3g} tokens/s, first token of {trial.n_prompt} after "
            f"{1e3 * trial.first_token_seconds:.0f} ms"
        )
    return "; ".join(parts)


def _table(rows: Sequence[Row]) -> str:
    return markdown(COLUMNS, [[_name(row), *_cells(row)] for row in rows], left=COLUMNS[:1])


def _name(row: Row) -> str:
    return KINDS[row.kind].format(row.label, 1 - row.size) + (" (quoted)" if row.quoted else "")


def _cells(row: Row) -> list[str]:
    spread = "" if math.isnan(row.speed_up_q1) else f" [{row.speed_up_q1:.2f}, {row.speed_up_q3:.2f}]"
    error = "" if math.isnan(row.kl_error) else f" ± {row.kl_error:.2g}"
    return [
        "" if row.kind == "quantisation" else f"{row.skip_ratio:.1%}",
        _known(row.speed_up, "{:.2f}") + spread,
        _known(row.first_token, "{:.2f}"),
        _known(row.kl, "{:.3g}") + error,
        _known(row.perplexity_ratio, "x{:.2f}"),
        _known(row.top1_agreement, "{:.0%}"),
    ]


def _known(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)


def _how(trial: Trial) -> str:
    text = (
        "Speed-up: median [quartiles] of the ratio to the dense model, all in turn, a few tokens each. First token: "
        "the same ratio for a prompt. KL divergence (nats per token, ± standard error) and what follows: "
        f"{trial.n_tokens} tokens past a warm-up of {trial.warm_up_index}, {trial.text}."
    )
    if any(row.config is not None and row.config.policy == "channels" for row in trial.rows):
        text += " Skipped: of FFN blocks; by channels, of their weight bytes"
        memory = f", for which the weights are stored once more: {trial.weights_bytes / 2**20:,.0f} MiB of memory."
        text += memory if trial.weights_bytes else "."
    if any(row.quoted for row in trial.rows):
        text += f" Quoted, not measured: {SOURCE}; its speed is taken to be in proportion to the size of the file."
    return textwrap.fill(text, WIDTH)


def _layers(rows: Sequence[Row]) -> list[str]:
    configs = [(row.label, row.config) for row in rows if row.config is not None and row.config.label == "fixed layers"]
    found = [f"{label}: {','.join(map(str, config.layers or ()))}" for label, config in configs]
    return [f"FFN blocks left out, by layer (--skip-layers): {'; '.join(found)}"] if found else []


def _texts(trial: Trial) -> str:
    """Side by side."""
    if not trial.texts:
        return ""
    width = (WIDTH + 3) // len(trial.texts) - 3
    columns = [
        [name, "-" * width, *itertools.chain.from_iterable(_wrapped(text, width) for text in text.split("\n"))]
        for name, text in trial.texts
    ]
    lines = itertools.zip_longest(*columns, fillvalue="")
    return "\n".join(
        [f"> {trial.prompt}", "", *(" | ".join(cell.ljust(width) for cell in line).rstrip() for line in lines)]
    )


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]
