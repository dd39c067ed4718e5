"""How well a text is predicted, and how far the predictions are from the dense model's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...measure.text import decoded
from ..data.json_text import entries_of_lines
from .base import Item, Metric, Record, Settings, Subject
from .ids import content_id, numbered

__all__ = ["Perplexity", "Piece"]

LONGEST, SHORTEST = 2000, 200
"""Characters of a piece: some 500 tokens of English, and more than a warm-up."""

PIECE = re.compile(rf"\S(?:[\s\S]{{0,{LONGEST - 2}}}\S)?(?!\S)|\S{{{LONGEST}}}")
"""As many whole words as there is room for; part of one where it is longer than that."""


@dataclass(frozen=True)
class Piece(Item):
    """Of a text. Cut by characters, so that every model has the same ones."""

    text: str


class Perplexity:
    """Plain text, or lines of JSON with text. The rows behind the warm-up count, of all methods alike."""

    name = "perplexity"
    metrics: tuple[Metric, ...] = (
        Metric("kl", "kl", "rows", higher_is_better=False),
        Metric("same_top", "same_top", "rows", percent=True),
        Metric("perplexity", "nll", "rows", exponential=True, higher_is_better=False),
        Metric("perplexity_ratio", "nll_more", "rows", exponential=True, higher_is_better=False),
    )

    def read(self, path: Path) -> list[Piece]:
        if path.suffix.lower() == ".jsonl":
            texts = [(entry.text("text"), entry.where) for entry in entries_of_lines(path)]
            pieces = [Piece(content_id(found[0]), "", where, found[0]) for text, where in texts for found in _cut(text)]
        else:
            text = decoded(path, path.read_bytes())
            pieces = [
                Piece(content_id(found[0]), "", f"{path}:{text.count(chr(10), 0, found.start()) + 1}", found[0])
                for found in _cut(text)
            ]
        if not pieces:
            raise ValueError(f"{path}: no text of {SHORTEST} characters in it, which a piece has at least")
        return numbered(pieces)

    def run(self, subject: Subject, items: Sequence[Piece], settings: Settings) -> Iterator[Record]:
        for item in items:
            tokens = subject.tokenize(item.text)
            rows, n_may_skip = subject.compare(tokens[: subject.n_ctx()])
            values = {
                "kl": float(rows.kl.sum()),
                "same_top": float(rows.same_top1.sum()),
                "nll": float(rows.nll.sum()),
                "nll_more": float((rows.nll - rows.nll_dense).sum()),
                "rows": float(len(rows)),
            }
            shown = {"tokens_cut": max(0, len(tokens) - subject.n_ctx())}
            yield Record(item.id, item.group, values, len(rows), n_may_skip, shown)


def _cut(text: str) -> list[re.Match[str]]:
    """Pieces of it, but for one at its end that is too short."""
    return [found for found in PIECE.finditer(text) if len(found[0]) >= SHORTEST]
