"""The report of evaluations: the paper's tables and figures, and more, from the runs in folders of results.

    print(report_evaluation("results"))

The same results make the same files, byte for byte.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from ...errors import ArgumentError
from ...files import made_folder, whole_file
from ...plain import plain
from ...style import matplotlib_version, png_bytes, svg_text
from ...table import write_csv
from ..store import BEGUN
from . import paper
from .overview import quality, speed
from .paper_figures import figure_3, figure_4, figure_5
from .paper_tables import table_2, table_3, table_5
from .reading import read_results
from .results import ModelResults
from .sections import Section
from .task_tables import collapse, every_figure, judged, subjects

__all__ = ["FORMATS", "EvaluationReport", "report_evaluation"]

PathLike = Union[str, "os.PathLike[str]"]

FORMATS = ("md", "csv", "png", "svg")
PICTURES = ("svg", "png")  # the first of them that there is stands in the page
PAGE = "report.md"
FOLDER = "report"  # within the one of the results
PARTS = (
    *(quality, speed, table_2, table_3, table_5, figure_3, figure_4, figure_5),
    *(every_figure, collapse, judged, subjects),
)
READING = f"""\
[Brackets] are 95 % intervals, from 2,000 bootstrap resamples of the items. * Differs from the dense model on the same
items: p < 0.05 of a paired test (McNemar's exact test where an item is right or wrong, else a permutation test), after
Holm's correction for all tests of the same figure in the table. † Nothing of what was scored could skip: the figure is
the dense model's. ↓ Less is better. The paper's numbers are of {paper.MODEL} with its own prompts and judge: they tell
how a method compares with its full model, not how good a model is. An empty cell was not measured."""


@dataclass(frozen=True, repr=False)
class EvaluationReport:
    """What was written. Its repr says where; `as_dict()` has all tables."""

    folder: Path
    files: tuple[Path, ...]
    tables: dict[str, dict[str, list[dict[str, Any]]]]
    """By model and name of the file, rows with every digit."""
    unfinished: tuple[str, ...]
    """Runs that were begun, which no table has."""
    notes: dict[str, tuple[str, ...]]
    """By model, what the paper's tables have that was not measured, and the command that measures it."""

    def as_dict(self) -> dict[str, Any]:
        """Of plain values; None for NaN."""
        return plain(self)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        lines = []
        for model, tables in self.tables.items():
            missing = f"; not measured: {len(self.notes[model])} parts of the paper's" if self.notes[model] else ""
            lines.append(f"{model}: {len(tables)} tables{missing}")
        return "\n".join([*lines, *_unfinished(self.unfinished), f"written to {self.folder}"])


def report_evaluation(
    results: PathLike | Sequence[PathLike],
    output: PathLike | None = None,
    *,
    formats: str | Sequence[str] = FORMATS,
) -> EvaluationReport:
    """Writes the report of what `evaluate` measured, by model.

    Args:
        results: The folder that `evaluate` wrote, or several, of other models as a rule.
        output: Folder for the report; made if it is missing. Default: "report" within the folder of the results.
        formats: Of "md", the page; "csv", its tables with every digit; "png" and "svg", its pictures.
    Raises:
        ArgumentError: No folder or format is given, or one that there is not; several folders without `output`.
        ValueError: There are no results, or a file of them is damaged.
        OSError: A folder is missing, or a file can't be written.
        ImportError: matplotlib is missing, and pictures are wanted.
    """
    folders = [Path(results)] if isinstance(results, (str, os.PathLike)) else [Path(folder) for folder in results]
    wanted = (formats,) if isinstance(formats, str) else tuple(formats)
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown or not wanted:
        raise ArgumentError(f"format: {', '.join(unknown) or 'none'}; there are {', '.join(FORMATS)}")
    if not folders or (output is None and len(folders) > 1):
        raise ArgumentError(f"results: {len(folders)} folders; give one, or an output for all of them")
    if any(name in wanted for name in PICTURES):
        matplotlib_version()
    models = read_results(folders)
    folder = folders[0] / FOLDER if output is None else Path(output)
    begun = tuple(path.stem for each in folders for path in sorted(each.glob(f"*{BEGUN}")))
    sections = {model.model: [section for part in PARTS for section in part(model)] for model in models}
    files: list[Path] = []
    for model in models:
        with made_folder(folder if set(wanted) == {"md"} else folder / model.model):
            for section in sections[model.model]:
                files += _write(folder / model.model, section, wanted)
    if "md" in wanted:
        with whole_file(folder / PAGE) as part:
            part.write_text(_page(models, sections, begun, wanted), encoding="utf-8")
        files.append(folder / PAGE)
    return EvaluationReport(
        folder,
        tuple(files),
        {model: {s.name: s.table.as_rows() for s in of_model if s.table} for model, of_model in sections.items()},
        begun,
        {model: tuple(note for s in of_model for note in s.notes) for model, of_model in sections.items()},
    )


def _write(folder: Path, section: Section, wanted: Sequence[str]) -> list[Path]:
    """Its files: those of the table and of the picture."""
    written = []
    if section.table is not None and "csv" in wanted:
        written.append(folder / f"{section.name}.csv")
        with whole_file(written[-1]) as part:
            write_csv(part, section.table.as_rows())
    figure = section.picture() if section.picture is not None and set(PICTURES) & set(wanted) else None
    if figure is not None and "png" in wanted:
        written.append(folder / f"{section.name}.png")
        with whole_file(written[-1]) as part:
            part.write_bytes(png_bytes(figure))
    if figure is not None and "svg" in wanted:
        written.append(folder / f"{section.name}.svg")
        with whole_file(written[-1]) as part:
            part.write_text(svg_text(figure), encoding="utf-8")
    return written


def _unfinished(begun: Sequence[str]) -> list[str]:
    """In a line, if there are any."""
    return [f"Not finished, and in no table: {', '.join(begun)}; the same ffnskip eval goes on"] if begun else []


def _page(
    models: Sequence[ModelResults], sections: dict[str, list[Section]], begun: Sequence[str], wanted: Sequence[str]
) -> str:
    parts = ["# Evaluation", READING, *_unfinished(begun)]
    for model in models:
        parts.append(f"## {model.model}")
        for section in sections[model.model]:
            parts += [f"### {section.title}", *([section.reading] if section.reading else [])]
            ending = next((name for name in PICTURES if name in wanted), None)
            if section.picture is not None and ending is not None:
                parts.append(f"![{section.title}](<{model.model}/{section.name}.{ending}>)")
            if section.table is not None:
                parts.append(section.table.as_markdown())
            parts += section.notes
    return "\n\n".join(parts) + "\n"
