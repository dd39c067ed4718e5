"""Pictures of a model's FFN blocks and of what skipping them costs and saves: `ffnskip analyze`.

    from ffnskip_cpp.analysis.analysis import Options, analyze
    print(analyze(Options("model.gguf", texts=("text.txt",), output="analysis", threads=2)))

Files: per picture PNG, SVG and CSV, and report.html with all of them. `analysis.measure` says how each number is taken;
speed is measured by `bench`.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np

from .. import llama_cpp_internals as internals
from .._core import Profile, __version__, find_profile
from ..benchmark.benchmark import bench
from ..benchmark.options import AUTO, RATIO_POLICIES
from ..errors import Unsupported
from ..files import check_output, whole_file
from ..gguf_file.file_type import file_type
from ..gguf_file.header import read_header
from ..llama import Llama
from ..lora import as_adapter
from ..measure.similarity import (
    QualityPoint,
    measure_generation,
    measure_never_tripped,
    measure_quality,
    measure_similarity,
    skipping,
)
from ..measure.text import MIN_TOKENS, chunks_of_tokens, read_texts
from ..profile import read_profile
from ..skip_config import SkipConfig
from ..threads import check_threads
from . import draw
from .report import Column, Section, Table, decimals, page, percent, write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "Options", "analyze"]

FIGURES = ("similarity", "never_tripped", "warm_up", "heat_map", "skip_ratio")
SKIP_RATIOS = (0.1, 0.2, 0.25, 0.3, 0.5)
TYPICAL_N_CTX = 512
HEAT_MAP_TOKENS = 66  # after the warm-up
PAPER_TABLE_6 = "The paper reports 1.73 %, 1.05 % and 0.98 % for 512, 1024 and 2048 tokens (LLaMA-2 7B, threshold 0.9)."


@dataclass(frozen=True)
class Options:
    """What to analyse and how. None stands for the model's own or the default value."""

    model_path: str
    texts: tuple[str, ...]
    output: str
    threads: int = 1
    n_ctx: int | None = None
    max_tokens: int = 4096
    skip_ratios: tuple[float, ...] | None = None
    policies: tuple[str, ...] = RATIO_POLICIES
    sim_threshold: float | None = None
    cold_s: int | None = None
    cold_e: int | None = None
    warm_up_index: int | None = None
    seed: int = 0
    warm_ups: tuple[int, ...] = (0, 5, 10, 20, 30, 40, 60)
    n_generated: tuple[int, ...] = (512, 1024, 2048)
    n_prompts: int = 4
    n_prompt: int = 128
    n_speed: int = 64
    n_gpu_layers: int = -1
    figures: tuple[str, ...] = FIGURES
    profile: str | None = None  # a file, or "auto", the model's own
    lora: str | None = None  # FILE or FILE:SCALE

    def check(self) -> None:
        """Raises ValueError (field, value, range), and FileNotFoundError for the model."""
        for name, values, least in (
            ("n-ctx", () if self.n_ctx is None else (self.n_ctx,), MIN_TOKENS),
            ("max-tokens", (self.max_tokens,), MIN_TOKENS),
            ("warm-ups", self.warm_ups, 0),
            ("generated", self.n_generated, 1),
            ("prompts", (self.n_prompts,), 1),
            ("prompt-tokens", (self.n_prompt,), 1),
            ("speed-tokens", (self.n_speed,), 0),
        ):
            for value in values:
                if value < least:
                    raise ValueError(f"{name}: {value} is too few; at least {least}")
        check_threads(self.threads)
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"skip-seed: {self.seed} is outside [0, 2**64)")
        for ratio in self.skip_ratios or ():
            if not 0 < ratio <= 1:
                raise ValueError(f"skip-ratio: {ratio:g} is outside (0, 1]")
        for name, values, known in (
            ("policy", self.policies, RATIO_POLICIES),
            ("figures", self.figures, FIGURES),
        ):
            for value in values:
                if value not in known:
                    raise ValueError(f"{name}: {value!r} is not known; known are {', '.join(known)}")
        if not Path(self.model_path).is_file():
            raise FileNotFoundError(f"{self.model_path}: no such file")
        if self.lora is not None:
            as_adapter(self.lora)


def analyze(options: Options) -> Path:
    """Measures, and writes the files.

    Returns:
        The path of report.html.
    Raises:
        ValueError: A bad option; text that is empty, too short or binary; a model that can't be loaded or can't skip
            (`Unsupported`); a setting that does not fit it.
        ImportError: matplotlib is missing.
        OSError: A file can't be read or written.
        RuntimeError: llama.cpp failed to decode.
    """
    options.check()
    draw.matplotlib_version()
    texts = read_texts(options.texts)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise PermissionError(f"{output}: can't be written to")
    inputs = (options.model_path, *options.texts)
    check_output(output / "report.html", inputs)
    with _open(options) as llm:
        analysis = _Analysis(llm, options, texts)
        report = output / "report.html"
        report.unlink(missing_ok=True)  # of an earlier analysis: its pictures are replaced from here on
        wanted = [name for name in FIGURES if name in options.figures and name != "skip_ratio"]
        sections = [getattr(analysis, name)() for name in wanted]
        quality = analysis.quality() if "skip_ratio" in options.figures else None
        facts = analysis.facts()
    if quality is not None:  # with the model closed: measuring speed opens it in its own way
        sections.append(analysis.skip_ratio(quality))
    with whole_file(report, inputs) as part:
        part.write_text(page(f"FFN skipping in {Path(options.model_path).name}", facts, sections), encoding="utf-8")
    return report


# ---- the model ----


def _trained_context(path: str) -> int:
    """Tokens of context the model was trained on, from its file."""
    return int(read_header(path).of_architecture("context_length", TYPICAL_N_CTX))


def _sizes(options: Options, trained: int) -> tuple[int, int]:
    """Tokens of a chunk of text, and of the context that generation has."""
    n_ctx = options.n_ctx or min(TYPICAL_N_CTX, trained)
    return n_ctx, max(n_ctx, min(trained, options.n_prompt + max(options.n_generated)))


@contextlib.contextmanager
def _open(options: Options) -> Iterator[Llama]:
    trained = _trained_context(options.model_path)
    n_ctx, context = _sizes(options, trained)
    llm = Llama(
        options.model_path,
        skip="auto",
        n_ctx=context,
        n_batch=min(n_ctx, TYPICAL_N_CTX),
        n_threads=options.threads,
        n_threads_batch=options.threads,
        n_gpu_layers=options.n_gpu_layers,
        verbose=False,
        **({} if options.lora is None else as_adapter(options.lora).options()),
    )
    with contextlib.closing(llm):
        if llm.why_dense is not None:
            raise Unsupported(llm.why_dense)
        yield llm


class _Analysis:
    """One method per picture: measures, writes its files, and returns its section of the report."""

    def __init__(self, llm: Llama, options: Options, texts: Sequence[str]):
        self.llm = llm
        self.options = options
        self.output = Path(options.output)
        self.inputs = (options.model_path, *options.texts)
        self.n_layer = llm.n_layer
        self.n_ctx, self.context = _sizes(options, llm.n_ctx_train)
        self.chunks = chunks_of_tokens(llm, texts, self.n_ctx, max_tokens=options.max_tokens)
        self.n_tokens = sum(map(len, self.chunks))
        self.config = self._base_config()
        self.ratios, self.ratio_notes = self._fitting_ratios()
        self.config = _with_ratio(self.config, self.ratios[(len(self.ratios) - 1) // 2])
        with skipping(llm, self.config):
            resolved = llm.resolved
        self.cold = (resolved["cold_s"], resolved["cold_e"])
        self.profile = self._profile()
        self._check_warm_ups()

    def _profile(self) -> Profile | None:
        given, llm = self.options.profile, self.llm
        if given is None:
            return None
        if given != AUTO:
            profile = read_profile(given)
            with llm.skipping(profile.path):  # refuses that of another model
                return profile
        profile = find_profile(internals.model_address(llm), self.options.model_path)
        if profile is None:
            raise ValueError(f"profile: auto, but there is no profile beside or in {self.options.model_path}")
        return profile

    @property
    def shown(self) -> SkipConfig:
        """The setting of the pictures that show a single one, of whatever policy."""
        return self.config if self.profile is None else self.profile.config

    def _shown_setting(self) -> str:
        if self.profile is None:
            return f"Algorithm 1 at a skip ratio of {self.config.skip_ratio:g}"
        return f"the setting of {Path(self.profile.path).name} ({self.profile.config.label})"

    def _base_config(self) -> SkipConfig:
        """Algorithm 1 with the values given, or those that the model has by itself."""
        options = self.options
        with skipping(self.llm, self.llm.skip or SkipConfig()):
            own = self.llm.resolved

        def value(name: str) -> Any:
            given = getattr(options, name)
            return own[name] if given is None else given

        names = ("sim_threshold", "cold_s", "cold_e", "warm_up_index")
        return SkipConfig("ffn_skip", **{name: value(name) for name in names}, max_skip=0, seed=options.seed)

    def _check_warm_ups(self) -> None:
        """Before any work is done."""
        longest, figures = max(map(len, self.chunks)), self.options.figures
        self.warm_ups = [n for n in sorted(set(self.options.warm_ups)) if n <= longest // 2]
        if "warm_up" in figures and not self.warm_ups:
            raise ValueError(f"warm-ups: none is at most half of the longest chunk, {longest} tokens")
        longest_warm_up = max(self.config.warm_up_index, self.shown.warm_up_index)
        if "skip_ratio" in figures and longest_warm_up > longest - 2:  # the last token predicts no other
            raise ValueError(f"warm-up: {longest_warm_up} tokens leave none of any chunk to skip")

    def _fits(self, config: SkipConfig) -> bool:
        try:
            with skipping(self.llm, config):
                return True
        except ValueError:
            return False

    def _fitting_ratios(self) -> tuple[list[float], list[str]]:
        """Those given, all of which must fit the model; or those of the default that do, and differ in it."""
        with skipping(self.llm, self.config):  # refuses what is wrong whatever the ratio
            pass
        if self.options.skip_ratios is not None:
            ratios = sorted(set(self.options.skip_ratios))
            for policy in dict.fromkeys(("ffn_skip", *self.options.policies)):
                for ratio in ratios:
                    with skipping(self.llm, _with_ratio(self.config, ratio, policy)):
                        pass
            return ratios, []
        closest: dict[int, float] = {}  # of the ratios that give a number of blocks, the one that is nearest to it
        for ratio in sorted(SKIP_RATIOS, key=lambda ratio: abs(ratio * self.n_layer - round(ratio * self.n_layer))):
            closest.setdefault(round(ratio * self.n_layer), ratio)
        fitting = [ratio for n, ratio in closest.items() if n > 0 and self._fits(_with_ratio(self.config, ratio))]
        if not fitting:
            raise ValueError(f"none of the skip ratios {SKIP_RATIOS} fits the {self.n_layer} layers; give --skip-ratio")
        left_out = [f"{ratio:g}" for ratio in SKIP_RATIOS if ratio not in fitting]
        note = f"Skip ratios left out: {', '.join(left_out)}: the model can't reach them, or another one is the same."
        return sorted(fitting), [note] if left_out else []

    # ---- pictures ----

    def similarity(self) -> Section:
        with _bar("similarity per layer", self.n_tokens) as progress:
            result = measure_similarity(self.llm, self.chunks, progress)
        rows = result.rows()
        figure = draw.draw_similarity(result, self.cold, self.config.sim_threshold)
        cold_s, cold_e = result.cold_regions
        return self._section(
            "similarity",
            "Similarity per layer (the paper's Figure 2)",
            "Cosine of the residual before and after the FFN block: the closer to 1, the less the block changes. "
            "Line: mean over tokens; band: 10 to 90 % of the tokens. Shaded: the cold regions in use, where nothing is "
            f"checked or skipped (cold_s {self.cold[0]}, cold_e {self.cold[1]}). Dotted: the regions that the curve "
            f"itself suggests (cold_s {cold_s}, cold_e {cold_e}): it rises from its lowest layer in the first half on, "
            "and at the end falls by more than 0.01 below its maximum. The text is teacher-forced and nothing is "
            f"skipped; {result.n_tokens:,} tokens, without the first of each chunk.",
            figure,
            {"similarity": rows},
            [
                Table(
                    "Similarity per layer",
                    [
                        Column("layer", "layer", decimals(0)),
                        Column("mean", "mean", decimals(4)),
                        Column("quantile_10", "10 %", decimals(4)),
                        Column("quantile_90", "90 %", decimals(4)),
                    ],
                    rows,
                )
            ],
            [
                f"The last layer, {self.n_layer - 1}, is never checked: llama.cpp evaluates it for the rows only whose "
                "output is wanted."
            ],
        )

    def _prompts(self) -> list[list[int]]:
        """Beginnings of chunks, of one length."""
        n = min(self.options.n_prompt, max(1, self.context // 4), max(map(len, self.chunks)))
        return [chunk[:n] for chunk in self.chunks if len(chunk) >= n][: self.options.n_prompts]

    def never_tripped(self) -> Section:
        prompts = self._prompts()
        lengths, notes = self._lengths(self.context - len(prompts[0]))
        if len(prompts) < self.options.n_prompts:
            notes.append(f"{len(prompts)} prompts, not {self.options.n_prompts}: the text has no more.")
        with _bar("tokens that never trip", len(prompts) * (lengths[-1] + 1)) as progress:
            result = measure_never_tripped(self.llm, prompts, lengths[-1], self.config, progress)
        rows = result.rows(lengths)
        threshold = self.config.sim_threshold
        return self._section(
            "never_tripped",
            "Tokens that never trip (the paper's Table 6)",
            f"Tokens whose similarity stays below sim_threshold ({threshold:g}) in every layer of the adaptive region, "
            "so that they skip nothing; cumulative, of the tokens after the warm-up. Greedy generation with Algorithm "
            f"1 from {len(prompts)} prompts of {len(prompts[0])} tokens, past end-of-text tokens. {PAPER_TABLE_6}",
            draw.draw_never_tripped(result, lengths, threshold),
            {"never_tripped": rows, "never_tripped_by_token": result.curve()},
            [
                Table(
                    "Tokens that never trip",
                    [
                        Column("generated_tokens", "generated tokens", decimals(0)),
                        Column("tokens_that_may_skip", "may skip, all prompts", decimals(0)),
                        Column("never_tripped", "never tripped", decimals(0)),
                        Column("share_never_tripped", "share", percent(4)),
                        Column("share_of_all_tokens", "share with warm-up", percent(4)),
                    ],
                    rows,
                )
            ],
            notes,
        )

    def _lengths(self, room: int) -> tuple[list[int], list[str]]:
        """Generations that fit, and what is to be said of those that do not."""
        wanted = sorted(set(self.options.n_generated))
        fitting = [n for n in wanted if n <= room]
        left_out = [str(n) for n in wanted if n > room]
        if not left_out:
            return fitting, []
        if room not in fitting:
            fitting.append(room)
        return fitting, [
            f"Left out: {', '.join(left_out)} generated tokens, which do not fit the context of {self.context}. "
            f"In their place: {room}, as many as fit. A larger --n-ctx goes beyond what the model was trained on."
        ]

    def warm_up(self) -> Section:
        warm_ups = self.warm_ups
        left_out = [str(n) for n in sorted(set(self.options.warm_ups)) if n not in warm_ups]
        notes = [f"Left out: warm-ups of {', '.join(left_out)}, more than half of every chunk."] if left_out else []
        configs = [_with_warm_up(self.shown, n) for n in warm_ups]
        with _bar("quality against warm-up", self.n_tokens * (1 + len(configs))) as progress:
            points = measure_quality(self.llm, self.chunks, configs, warm_ups[-1], progress)
        rows = [point.row() for point in points]
        return self._section(
            "warm_up",
            "Quality against warm-up (the paper's Figure 5)",
            "What the skipping model's predictions lose against the dense model's as fewer of a chunk's first tokens "
            f"run in full, with {self._shown_setting()}. Blue: tokens from {warm_ups[-1]} on, which "
            "skip whatever the warm-up, so that only what they look back at differs. Orange: all tokens, those of the "
            "warm-up included, which lose nothing. Teacher-forced, each chunk as one generation.",
            draw.draw_warm_up(points),
            {"warm_up": rows},
            [
                Table(
                    f"Tokens from {warm_ups[-1]} on",
                    [Column("warm_up_index", "warm-up", decimals(0)), *_quality_columns("")],
                    rows,
                ),
                Table(
                    "All tokens",
                    [Column("warm_up_index", "warm-up", decimals(0)), *_quality_columns("_all_rows")],
                    rows,
                ),
            ],
            notes,
        )

    def heat_map(self) -> Section:
        prompt = self._prompts()[0]
        wanted = self.shown.warm_up_index + HEAT_MAP_TOKENS
        n = min(wanted, self.context - len(prompt))
        with _bar("heat map", len(prompt) + 2 * n + 1) as progress:
            result = measure_generation(self.llm, prompt, n, self.shown, progress)
        skipped, checked = result.skipped.sum(), np.isfinite(result.similarity).sum()
        n_blocks = max(n - self.shown.warm_up_index, 0) * self.n_layer
        share = f"{100 * skipped / n_blocks:.1f} %" if n_blocks else "none"
        notes = [f"{n} tokens, not {wanted}: the context of {self.context} holds no more."] if n < wanted else []
        return self._section(
            "heat_map",
            "One generation, token by layer",
            f"Above: what was done, by {self._shown_setting()}. A block is coloured by its similarity where it was "
            "checked, orange where it "
            "was skipped, and white where it ran unchecked: in the cold regions (beyond the dotted lines), and after a "
            "token has skipped its share. Below: the similarities of the same tokens where nothing is skipped. "
            f"Blocks of tokens after the warm-up that were skipped: {share}; checks: {checked:,}. "
            f"Greedy, from a prompt of {len(prompt)} tokens.",
            draw.draw_generation(result, self.cold),
            {"heat_map": result.rows()},
            [
                Table(
                    "Text",
                    [Column("part", ""), Column("text", "text")],
                    [
                        {"part": "prompt", "text": result.prompt},
                        {"part": "generated", "text": "".join(result.pieces)},
                    ],
                )
            ],
            notes,
        )

    def quality(self) -> list[QualityPoint]:
        """The measurement for `skip_ratio` that needs the model open."""
        configs = [_with_ratio(self.config, ratio, policy) for policy in self.options.policies for ratio in self.ratios]
        configs = [config for config in configs if self._fits(config)]
        if self.profile is not None:
            configs.append(self.profile.config)
        with _bar("quality against skip ratio", self.n_tokens * (1 + len(configs))) as progress:
            points = measure_quality(self.llm, self.chunks, configs, progress=progress)
        if self.profile is not None:
            points[-1].name = f"profile {Path(self.profile.path).name}"
        return points

    def skip_ratio(self, points: list[QualityPoint]) -> Section:
        notes = list(self.ratio_notes)
        speeds = self._speeds(notes)
        rows = [point.row() for point in points]
        files: dict[str, list[dict[str, Any]]] = {"skip_ratio_quality": rows}
        tables = [
            Table(
                "Quality, of tokens that may skip",
                [
                    Column("policy", "policy"),
                    Column("skip_ratio_target", "target", percent(1)),
                    Column("skip_ratio", "skipped", percent(1)),
                    Column("checks_per_token", "checks", decimals(1)),
                    *_quality_columns(""),
                ],
                rows,
            )
        ]
        if speeds:
            files["skip_ratio_speed"] = [{k: v for k, v in row.items() if k != "versions"} for row in speeds]
            tables.append(Table("Speed", SPEED_COLUMNS, speeds))
        return self._section(
            "skip_ratio",
            "Speed and quality against skip ratio" if speeds else "Quality against skip ratio",
            "What skipping saves and costs as more FFN blocks are skipped, for Algorithm 1 and the paper's two "
            "baselines. Quality is teacher-forced, each chunk as one generation, counted over tokens that may skip. "
            "Speed is that of single tokens: plain llama.cpp and every setting decode in turn, token by token, in one "
            "process, and all tokens skip as many blocks as they may (`ffnskip bench`).",
            draw.draw_skip_ratio(points, speeds),
            files,
            tables,
            notes,
        )

    def _speeds(self, notes: list[str]) -> list[dict[str, Any]] | None:
        options = self.options
        if options.n_speed == 0:
            notes.append("Speed was not measured (--speed-tokens 0).")
            return None
        result = bench(
            options.model_path,
            n_threads=options.threads,
            n_gen=options.n_speed,
            n_gpu_layers=options.n_gpu_layers,
            skip_ratio=self.ratios,
            cold_s=self.cold[0],
            cold_e=self.cold[1],
            profile=options.profile,
            lora=options.lora,
        )
        return [row.as_dict() for row in result.rows]

    def _section(
        self,
        name: str,
        title: str,
        reading: str,
        figure: Figure,
        numbers: dict[str, list[dict[str, Any]]],
        tables: list[Table],
        notes: list[str],
    ) -> Section:
        """Writes the picture and its numbers."""
        files = [f"{name}.png", f"{name}.svg", *(f"{stem}.csv" for stem in numbers)]
        for stem, rows in numbers.items():
            with whole_file(self.output / f"{stem}.csv", self.inputs) as part:
                write_csv(part, rows)
        svg = draw.svg_text(figure)
        with whole_file(self.output / f"{name}.svg", self.inputs) as part:
            part.write_text(svg, encoding="utf-8")
        with whole_file(self.output / f"{name}.png", self.inputs) as part:
            part.write_bytes(draw.png_bytes(figure))
        return Section(name, title, reading, svg, tables, notes, files)

    # ---- what the report says of itself ----

    def facts(self) -> list[tuple[str, str]]:
        llm, config, options = self.llm, self.config, self.options
        versions = {
            "ffnskip": __version__,
            "llama-cpp-python": llama_cpp.__version__,
            "numpy": np.__version__,
            "matplotlib": draw.matplotlib_version(),
            "Python": platform.python_version(),
        }
        texts = [f"{Path(path).name} (sha256 {_sha256(path)[:16]})" for path in options.texts]
        trained = llm.n_ctx_train
        beyond = f"; more than the {trained} the model was trained on" if self.context > trained else ""
        return [
            ("model", f"{Path(options.model_path).name}, {_description(llm)}, {self.n_layer} layers"),
            ("fingerprint", llm.fingerprint),
            ("text", ", ".join(texts)),
            ("tokens", f"{self.n_tokens:,} in {len(self.chunks)} chunks of at most {self.n_ctx}"),
            ("context for generation", f"{self.context}{beyond}"),
            (
                "Algorithm 1",
                f"sim_threshold {config.sim_threshold:g}, layers [{self.cold[0]}, {self.cold[1]}), warm_up_index "
                f"{config.warm_up_index}; skip ratio {config.skip_ratio:g} where a picture shows a single one",
            ),
            *([("profile", f"{self.profile.path}, {self.profile.config.label}")] if self.profile else []),
            *([("LoRA adapter", options.lora)] if options.lora else []),
            ("seeds", f"random policies {config.seed}; tokens of the speed test 0; generation is greedy and has none"),
            ("threads", str(options.threads)),
            ("machine", f"{_processor()}, {platform.system()} {platform.machine()}"),
            ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
            ("date", datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
        ]


SPEED_COLUMNS = [
    Column("policy", "setting"),
    Column("skip_ratio", "skipped", percent(1)),
    Column("tokens_per_second", "tokens/s", decimals(2)),
    Column("speed_up", "ratio to dense", decimals(3)),
    Column("speed_up_q1", "lower quartile", decimals(3)),
    Column("speed_up_q3", "upper quartile", decimals(3)),
    Column("ideal_speed_up", "bytes allow", decimals(3)),
]


def _quality_columns(suffix: str) -> list[Column]:
    return [
        Column(f"kl{suffix}", "KL (nats/token)", decimals(4)),
        Column(f"top1_agreement{suffix}", "same top token", percent(1)),
        Column(f"perplexity{suffix}", "perplexity", decimals(3)),
        Column(f"perplexity_ratio{suffix}", "ratio to dense", decimals(4)),
        Column(f"n_rows{suffix}", "tokens", decimals(0)),
    ]


def _with_ratio(config: SkipConfig, ratio: float, policy: Any = "ffn_skip") -> SkipConfig:
    return config.replace(policy=policy, skip_ratio=ratio, max_skip=None)


def _with_warm_up(config: SkipConfig, n: int) -> SkipConfig:
    return config.replace(warm_up_index=n)


def _description(llm: Llama) -> str:
    arch = llm.metadata.get("general.architecture", "unknown architecture")
    return f"{arch}, {internals.n_params(llm) / 1e6:,.1f}M parameters, {file_type(internals.model_address(llm))}"


def _sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _processor() -> str:
    """The processor's name, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "processor unknown"


@contextlib.contextmanager
def _bar(description: str, n_tokens: int) -> Iterator[Callable[[int], Any]]:
    """A progress bar on a terminal's stderr, with the time left; yields what to call with tokens done."""
    from tqdm import tqdm

    with tqdm(total=n_tokens, desc=description, unit=" tokens", leave=False, disable=None) as bar:
        yield bar.update
