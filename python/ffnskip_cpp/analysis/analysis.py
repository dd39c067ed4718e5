"""Pictures of a model's FFN blocks and of what skipping them costs and saves.

    print(analyze("model.gguf", "text.txt", "analysis"))

Files: per picture PNG, SVG and CSV, and report.html with all of them. `pictures` says how each number is taken; speed
is measured by `bench`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import check_output, made_folder, whole_file
from ..measure.text import read_texts
from ..plain import plain
from ..profile import PathLike
from ..skip_config import TensorsName
from ..style import matplotlib_version
from .facts import facts_of
from .pictures import PICTURES
from .pictures import skip_ratio as skip_ratio_picture
from .report import Section, page
from .subject import open_subject
from .wanted import FIGURES, Wanted

__all__ = ["MAX_TOKENS", "N_GENERATED", "N_PROMPT", "N_PROMPTS", "N_SPEED", "WARM_UPS", "Analysis", "analyze"]

MAX_TOKENS = 4096
WARM_UPS = (0, 5, 10, 20, 30, 40, 60)
N_GENERATED = (512, 1024, 2048)
N_PROMPTS, N_PROMPT = 4, 128
N_SPEED = 64


@dataclass(frozen=True, repr=False)
class Analysis:
    """What was measured, and where the report is. Its repr has the main figures, `as_dict()` all of them."""

    report: Path
    facts: dict[str, str]
    """What was measured, on what and how."""
    figures: dict[str, str]
    """What each picture shows, in a line."""
    numbers: dict[str, list[dict[str, Any]]]
    """The rows of each CSV file, by its name without the ending."""

    def as_dict(self) -> dict[str, Any]:
        """Of plain values; None for NaN."""
        return plain(self)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        figures = [f"{name}: {summary}" for name, summary in self.figures.items()]
        return "\n".join([self.facts["model"], *figures, f"written to {self.report}"])


def analyze(
    model_path: PathLike,
    text: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    figures: str | Sequence[str] = FIGURES,
    skip_ratio: float | Sequence[float] | None = None,
    policy: str | Sequence[str] | None = None,
    region: str | Sequence[str] | None = None,
    tensors: TensorsName = "ffn",
    profile: PathLike | None = None,
    lora: PathLike | None = None,
    sim_threshold: float | None = None,
    cold_s: int | None = None,
    cold_e: int | None = None,
    warm_up_index: int | None = None,
    warm_ups: Sequence[int] = WARM_UPS,
    n_generated: Sequence[int] = N_GENERATED,
    n_prompts: int = N_PROMPTS,
    n_prompt: int = N_PROMPT,
    n_speed: int = N_SPEED,
    n_ctx: int | None = None,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    progress: bool | None = None,
) -> Analysis:
    """Measures, draws, and writes the files.

    Args:
        model_path, text: GGUF file, the first part if it is split; files of text, plain or .jsonl.
        output: Folder for the files; made if it is missing.
        figures: Which of FIGURES to draw; "channels" is left out where the model's channels can't be.
        skip_ratio, policy: In skip_ratio. Ratios in (0, 1], default 0.1 to 0.5 as far as they fit; the other pictures
            show Algorithm 1 at the middle one. Policies "ffn_skip", "random" and "channels", default all that the model
            can have.
        region: Where "random" chooses from, "any" or "adaptive". Default: "any"; both if no policy is given.
        tensors: Whose input channels "channels" leaves out: "ffn", or "all", those of attention's matrices too.
        profile: A skip profile, or "auto" for the model's own: shown in place of that, and in skip_ratio as well.
        lora: LoRA adapter the model is used with, FILE or FILE:SCALE.
        sim_threshold, cold_s, cold_e, warm_up_index: Of Algorithm 1. Default: the model's own.
        warm_ups: In warm_up. n_generated, n_prompts, n_prompt: tokens, prompts and their tokens, in never_tripped.
        n_speed: Tokens to measure speed with; 0: no speed.
        n_ctx, max_tokens: Tokens of a chunk (default: 512, or what the model was trained on), and of the text.
        seed: Of the random policies.
        n_threads, n_gpu_layers: Default: all processors; all layers, if there is a GPU.
        progress: Show progress bars on stderr; None: where that is a terminal.
    Raises:
        ValueError: A bad value or text; a model that can't be loaded or can't skip (`UnsupportedModelError`).
        ImportError: matplotlib is missing.
        OSError: A file is missing, can't be read or written.
        DecodeError: llama.cpp failed to decode.
    """
    return _analyzed(Wanted(**locals()))


def _analyzed(wanted: Wanted) -> Analysis:
    matplotlib_version()
    texts = read_texts(wanted.text)
    sections: list[Section] = []
    with made_folder(wanted.folder):
        report = _empty_report(wanted)
        with open_subject(wanted, texts) as subject:
            report.unlink(missing_ok=True)  # of an earlier analysis: its pictures are replaced from here on
            for name, picture in PICTURES.items():
                if name in wanted.names and not (name == "channels" and subject.leaves_out_channels_picture):
                    sections.append(picture(subject))
                    sections[-1].write(wanted.folder, wanted.inputs)
            points = skip_ratio_picture.measure(subject) if "skip_ratio" in wanted.names else None
            facts = facts_of(subject)
        if points is not None:
            sections.append(skip_ratio_picture.section(subject, points))
            sections[-1].write(wanted.folder, wanted.inputs)
        with whole_file(report, wanted.inputs) as part:
            title = f"FFN skipping in {Path(wanted.model_path).name}"
            part.write_text(page(title, facts, sections), encoding="utf-8")
    numbers = {stem: rows for section in sections for stem, rows in section.numbers.items()}
    return Analysis(report, facts, {section.name: section.summary for section in sections}, numbers)


def _empty_report(wanted: Wanted) -> Path:
    """Where the report goes, in a folder that can be written to."""
    if not os.access(wanted.folder, os.W_OK):
        raise PermissionError(f"{wanted.folder}: can't be written to")
    report = wanted.folder / "report.html"
    check_output(report, wanted.inputs)
    return report
