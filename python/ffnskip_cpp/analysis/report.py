"""Files of an analysis: CSV, and one HTML page that needs no other file and no network.

html = page("Analysis of model.gguf", {"model": "model.gguf"}, [section])
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import PathLike, whole_file
from ..style import png_bytes, svg_text
from ..table import is_missing, write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Column", "Section", "Table", "decimals", "page", "percent"]

Row = dict[str, Any]


# ---- the page ----


def decimals(n: int) -> Callable[[Any], str]:
    """Formats a number with n decimals and thousands separated."""
    return lambda value: f"{value:,.{n}f}"


def percent(n: int) -> Callable[[Any], str]:
    """Formats a share, 0.123 as "12.3 %"."""
    return lambda value: f"{100 * value:.{n}f} %"


@dataclass(frozen=True)
class Column:
    """A column of a table in the page: the key of the rows, its heading, and how a value is written."""

    key: str
    heading: str
    write: Callable[[Any], str] = str


@dataclass(frozen=True)
class Table:
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]


@dataclass
class Section:
    """A picture with what is said about it. Texts are plain, not HTML."""

    name: str
    title: str
    reading: str
    """How to read the picture, and how it was measured."""
    figure: Figure
    numbers: dict[str, list[Row]]
    """The rows of each CSV file, by its name without the ending."""
    tables: list[Table]
    notes: list[str]
    """What was left out, and why."""
    summary: str
    """In a line."""

    @cached_property
    def svg(self) -> str:
        return svg_text(self.figure)

    @property
    def files(self) -> list[str]:
        return [f"{self.name}.png", f"{self.name}.svg", *(f"{stem}.csv" for stem in self.numbers)]

    def write(self, folder: Path, inputs: Iterable[PathLike]) -> None:
        """Its files into a folder, in place of none of `inputs`."""
        for stem, rows in self.numbers.items():
            with whole_file(folder / f"{stem}.csv", inputs) as part:
                write_csv(part, rows)
        with whole_file(folder / f"{self.name}.svg", inputs) as part:
            part.write_text(self.svg, encoding="utf-8")
        with whole_file(folder / f"{self.name}.png", inputs) as part:
            part.write_bytes(png_bytes(self.figure))


CSS = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; }
p, li { max-width: 52rem; } figure { margin: 1rem 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
thead th { border-bottom: 2px solid #888; } th.text, td.text { text-align: left; overflow-wrap: anywhere; }
.table { overflow-x: auto; } .note { border-left: 4px solid #e69f00; padding-left: .8rem; }
.files { color: #555; font-size: .9rem; } td.text { white-space: pre-wrap; }
"""


def page(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The HTML page.

    Args:
        facts: What was measured, on what and how: names and values.
    """
    contents = "".join(f'<li><a href="#{s.name}">{_text(s.title)}</a></li>' for s in sections)
    body = "".join(_section(section) for section in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{_text(title)}</title>\n<style>{CSS}</style>\n'
        f"</head>\n<body>\n<h1>{_text(title)}</h1>\n{_facts(facts)}<ul>{contents}</ul>\n{body}</body>\n</html>\n"
    )


def _facts(facts: Mapping[str, str]) -> str:
    lines = "".join(
        f'<tr><th scope="row" class="text">{_text(name)}</th><td class="text">{_text(value)}</td></tr>\n'
        for name, value in facts.items()
    )
    return f'<div class="table"><table>\n{lines}</table></div>\n'


def _section(section: Section) -> str:
    notes = "".join(f'<p class="note">{_text(note)}</p>\n' for note in section.notes)
    tables = "".join(_table(table) for table in section.tables)
    svg = section.svg.replace("<svg ", f'<svg role="img" aria-label="{_text(section.title)}" ', 1)
    files = f'<p class="files">Files: {_text(", ".join(section.files))}</p>\n'
    return (
        f'<section id="{section.name}">\n<h2>{_text(section.title)}</h2>\n<p>{_text(section.reading)}</p>\n{notes}'
        f"<figure>\n{svg}</figure>\n{tables}{files}</section>\n"
    )


def _table(table: Table) -> str:
    def cell(tag: str, column: Column, text: str) -> str:
        kind = ' class="text"' if column.write is str else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{kind}>{_text(text)}</{tag}>"

    head = "".join(cell("th", column, column.heading) for column in table.columns)
    lines = "".join(
        f"<tr>{''.join(cell('td', column, _written(row[column.key], column)) for column in table.columns)}</tr>\n"
        for row in table.rows
    )
    return (
        f'<div class="table"><table>\n<caption>{_text(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{lines}</tbody></table></div>\n"
    )


def _written(value: Any, column: Column) -> str:
    return "" if is_missing(value) else column.write(value)


def _text(text: str) -> str:
    return html.escape(text, quote=True)
