"""What skipping costs a model and what it saves, on this machine, in about two minutes.

    print(try_model("model.gguf"))

The parts of a trial share its time; each ends when its share is over, with what it has.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import _core
from ..errors import Unsupported
from ..gguf_file.file_type import file_type
from ..gguf_file.header import Header, read_headers
from ..llama import Llama
from ..llama_cpp_internals import model_address
from ..measure.text import Chunk
from ..profile import PathLike
from ..skip_config import SkipConfig
from ..threads import check_threads
from . import smaller
from .quality import Measured, measure_quality
from .rows import Row
from .search import MEASURED_AGAIN, MOST_TOKENS, by_similarity, cost_on, grow, some_of
from .speed import Speed, measure_speed
from .texts import BEGINNINGS, QUESTIONS, chat_prompt, is_end, n_prompt_of, own_text, users_text
from .trial import Trial
from .verdict import best_settings

__all__ = ["SECONDS", "SKIP_RATIOS", "Work", "try_model"]

SKIP_RATIOS = (0.1, 0.25)
SECONDS = 120.0
WARM_UP = 30
N_CTX = 512
MAX_TEXT_TOKENS = 8192  # of the user's; there is no time for more
LEAST_PROMPT = 8  # tokens of the prompt that is timed
TIMED_TOKENS = 64
EXAMPLE_TOKENS = 100
LEAST_EXAMPLE = 50  # past the warm-up, or it shows nothing
MOST_EXAMPLES = 3

# The share of the time after which each part is to be over.
TEXT, SEARCH, SMALLER, QUALITY, SPEED, DENSE_EXAMPLE = 0.15, 0.45, 0.55, 0.75, 0.9, 0.93

Progress = Callable[[str], Any]
"""Told what begins."""


def try_model(
    model_path: PathLike,
    *,
    text: Sequence[PathLike] | None = None,
    skip_ratio: float | Sequence[float] | None = None,
    prompt: str | None = None,
    seconds: float = SECONDS,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    progress: Progress | None = None,
) -> Trial:
    """Measures what skipping costs and saves.

    Args:
        model_path: GGUF file; the first part of a model that is split.
        text: Files of text to measure on, plain in UTF-8 or .jsonl. Default: what the dense model itself writes.
        skip_ratio: Shares of the FFN blocks to leave out, in (0, 1). Default: as the model's profile says, or
            else 0.1 and 0.25.
        prompt: Of the texts side by side.
        seconds: What all of it is to take, at least 1. On a large model the least that tells anything takes longer.
        n_threads: Default: all processors.
        n_gpu_layers: Layers on the GPU; -1: all.
        progress: Called with a few words when a part of the work begins.
    Raises:
        ValueError: A bad value; a model that can't be loaded or can't skip (`Unsupported`); text that is too short.
        FileNotFoundError: The model or a text is missing.
        OSError: A file can't be read, or the smaller file not be written.
        RuntimeError: llama.cpp failed to decode.
    """
    ratios = (skip_ratio,) if isinstance(skip_ratio, (int, float)) else skip_ratio
    work = Work(
        model_path,
        text=text,
        skip_ratios=ratios,
        prompt=prompt,
        seconds=seconds,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        progress=progress or (lambda _: None),
    )
    work.run()
    return work.trial


@dataclass
class _Subject:
    """What a row is about."""

    row: Row
    model: Llama | None = None
    """The file of a quantisation."""

    @property
    def measured(self) -> SkipConfig | Llama | None:
        return self.model or self.row.config


@dataclass
class _Clock:
    seconds: float
    start: float = field(default_factory=time.monotonic)

    def is_over(self, share: float) -> Callable[[], bool]:
        """Whether that share of the time is over."""
        end = self.start + share * self.seconds
        return lambda: time.monotonic() >= end

    def left(self, share: float) -> float:
        return self.start + share * self.seconds - time.monotonic()


class Work:
    """A trial under way; `trial` is what is known at any time."""

    def __init__(
        self,
        model_path: PathLike,
        *,
        text: Sequence[PathLike] | None,
        skip_ratios: Sequence[float] | None,
        prompt: str | None,
        seconds: float,
        n_threads: int | None,
        n_gpu_layers: int,
        progress: Progress,
    ):
        _check(model_path, text, skip_ratios, prompt, seconds, n_threads)
        self._path = Path(model_path)
        self._text = text
        self._ratios = skip_ratios
        self._prompt = prompt or ""
        self._n_threads = n_threads or os.cpu_count() or 1
        self._n_gpu_layers = n_gpu_layers
        self._progress = progress
        self._clock = _Clock(seconds)
        self._headers: list[Header] = []
        self._subjects: list[_Subject] = []
        self._trial: Trial | None = None

    @property
    def trial(self) -> Trial:
        assert self._trial is not None, "nothing is known before the model is loaded"
        rows = tuple(subject.row for subject in self._subjects)
        return replace(self._trial, rows=rows)

    @property
    def has_begun(self) -> bool:
        return self._trial is not None

    def run(self) -> None:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ffnskip-try-")))
            self._progress("loading the model")
            self._headers = read_headers(self._path)
            llm = stack.enter_context(self._open(self._path))
            if llm.why_dense is not None:
                raise Unsupported(llm.why_dense)
            self._check_prompt(llm)
            profile = self._profile(llm)
            warm_up_index = profile.warm_up_index if profile is not None else WARM_UP
            self._trial = self._known(llm, warm_up_index)
            ratios = self._ratios or (SKIP_RATIOS if profile is None else ())
            sizes = _sizes(llm, ratios, given=self._ratios is not None)

            to_search, to_measure = self._chunks(llm, warm_up_index)
            self._subjects = [*self._of_profile(llm, profile), *self._of_ratios(llm, to_search, sizes, warm_up_index)]
            self._subjects += self._smaller(llm, folder, stack)
            self._measure_quality(llm, to_measure, warm_up_index)
            self._measure_speed(llm, to_measure)
            self._write_examples(llm)
            self._change(complete=True)

    def _open(self, path: Path) -> Llama:
        return Llama(
            os.fspath(path),
            skip=None,
            n_ctx=N_CTX,
            n_batch=N_CTX,
            n_threads=self._n_threads,
            n_threads_batch=self._n_threads,
            n_gpu_layers=self._n_gpu_layers,
            verbose=False,
        )

    def _known(self, llm: Llama, warm_up_index: int) -> Trial:
        return Trial(
            model=self._path.name,
            architecture=self._headers[0].architecture,
            type=file_type(model_address(llm)),
            n_bytes=sum(os.path.getsize(header.path) for header in self._headers),
            n_layer=llm.n_layer,
            n_threads=self._n_threads,
            warm_up_index=warm_up_index,
        )

    def _change(self, **changes: Any) -> None:
        assert self._trial is not None
        self._trial = replace(self._trial, **changes)

    def _note(self, note: str) -> None:
        self._change(notes=(*self.trial.notes, note))

    def _check_prompt(self, llm: Llama) -> None:
        """A model without a chat template continues texts."""
        if not self._prompt:
            self._prompt = QUESTIONS[0] if llm.metadata.get("tokenizer.chat_template") else BEGINNINGS[2]
        n, most = len(chat_prompt(llm, self._prompt)), N_CTX - EXAMPLE_TOKENS
        if n > most:
            raise ValueError(f"prompt: {n} tokens are too many for a trial; at most {most}")

    # ---- what is tried ----

    def _profile(self, llm: Llama) -> SkipConfig | None:
        profile = _core.find_profile(model_address(llm), llm.model_path)
        return None if profile is None else profile.config

    def _of_profile(self, llm: Llama, profile: SkipConfig | None) -> list[_Subject]:
        if profile is None:
            return []
        self._progress("reading the profile")
        with llm.skipping(profile):
            resolved = llm.resolved
        ratio = (len(profile.layers or ()) + resolved["max_skip"]) / len(llm.ffn_map)
        label = _percent(ratio)
        return [
            _Subject(Row(label, "profile", profile, ratio)),
            *self._of_paper(llm, label, ratio, profile.warm_up_index),
        ]

    def _of_paper(self, llm: Llama, label: str, ratio: float, warm_up_index: int) -> list[_Subject]:
        config = SkipConfig(skip_ratio=ratio, warm_up_index=warm_up_index)
        try:
            with llm.skipping(config):
                pass
        except ValueError as error:  # too few layers for the paper's cold regions
            self._note(f"The paper's values at {label}: {error}")
            return []
        return [_Subject(Row(label, "paper", config, ratio))]

    def _of_ratios(
        self, llm: Llama, chunks: Sequence[Chunk], sizes: dict[float, int], warm_up_index: int
    ) -> list[_Subject]:
        if not sizes:
            return []
        order = self._search(llm, chunks, max(sizes.values()))
        found = []
        for ratio, n in sizes.items():
            config = SkipConfig("fixed", layers=sorted(order[:n]), warm_up_index=warm_up_index)
            label = _percent(ratio)
            found.append(_Subject(Row(label, "search", config, n / len(llm.ffn_map))))
            found += self._of_paper(llm, label, ratio, warm_up_index)
        return found

    def _search(self, llm: Llama, chunks: Sequence[Chunk], n: int) -> list[int]:
        self._progress(f"searching the {n} FFN blocks that cost least")
        few = some_of(chunks, 0)
        order, cost = by_similarity(llm, few), cost_on(llm, few)
        start = time.monotonic()
        cost(order[:1])
        tokens_per_second = sum(map(len, few)) / (time.monotonic() - start)
        n_settings = len(order) + MEASURED_AGAIN * n
        n_tokens = int(self._clock.left(SEARCH) * tokens_per_second / n_settings)
        if n_tokens > sum(map(len, few)):
            cost = cost_on(llm, some_of(chunks, min(n_tokens, MOST_TOKENS)))
        found, is_complete = grow(order, cost, n, self._clock.is_over(SEARCH))
        if not is_complete:
            self._note(
                "The time was too short for the quick search: some blocks were chosen by similarity, or by their "
                "cost alone. A longer --time finds better ones."
            )
        return found

    def _smaller(self, llm: Llama, folder: Path, stack: ExitStack) -> list[_Subject]:
        trial = self.trial
        n_weights = sum(tensor.n_elements for header in self._headers for tensor in header.tensors)
        bits = 8 * trial.n_bytes / max(n_weights, 1)
        if trial.n_bytes > smaller.MOST_BYTES:
            return [
                _Subject(
                    Row(
                        name,
                        "quantisation",
                        size=size,
                        kl=kl,
                        perplexity_ratio=perplexity,
                        speed_up=1 / size,
                        quoted=True,
                    )
                )
                for name, size, kl, perplexity in smaller.quoted(trial.type, bits)
            ]
        self._progress("quantising the model to the next smaller types")
        names = smaller.candidates(trial.type, bits)
        files = smaller.smaller_files(
            self._path, trial.n_bytes, names, folder, self._n_threads, self._clock.is_over(SMALLER)
        )
        found = []
        try:
            for name, path in files:
                row = Row(name, "quantisation", size=path.stat().st_size / trial.n_bytes)
                found.append(_Subject(row, stack.enter_context(self._open(path))))
        except (ValueError, OSError) as error:
            self._note(f"A smaller quantisation to compare with could not be made: {error}")
        if not names:
            self._note(f"There is no smaller type than {trial.type} to compare with.")
        return found

    # ---- measuring ----

    def _chunks(self, llm: Llama, warm_up_index: int) -> tuple[list[Chunk], list[Chunk]]:
        """To search on and to measure on; never the same."""
        n_ctx = min(N_CTX, self._headers[0].of_architecture("context_length", N_CTX))
        if self._text is not None:
            self._progress("reading the text")
            is_over = self._clock.is_over(TEXT)
            chunks = users_text(llm, self._text, warm_up_index, n_ctx, MAX_TEXT_TOKENS, is_over)
            words = "of the text given"
        else:
            self._progress("letting the dense model write the text to measure on")
            chunks = own_text(llm, warm_up_index, n_ctx, self._clock.is_over(TEXT))
            words = "which the dense model wrote itself (sampled at a temperature of 0.8)"
        self._change(text=words)
        return chunks[1::2], chunks[::2]

    def _measure_quality(self, llm: Llama, chunks: Sequence[Chunk], warm_up_index: int) -> None:
        subjects = [subject for subject in self._subjects if not subject.row.quoted]
        if not subjects:
            return
        self._progress("measuring what is lost")
        for found in measure_quality(
            llm,
            [s.measured for s in subjects if s.measured is not None],
            chunks,
            warm_up_index,
            self._clock.is_over(QUALITY),
        ):
            for subject, measured in zip(subjects, found):
                subject.row = _with_quality(subject.row, measured, len(llm.ffn_map))
            self._change(n_tokens=found[0].quality.n_rows)

    def _measure_speed(self, llm: Llama, chunks: Sequence[Chunk]) -> None:
        self._progress("measuring speed, all in turn")
        subjects = [subject for subject in self._subjects if not subject.row.quoted]
        chunk = max(chunks, key=len)
        n_prompt = max(n_prompt_of(chunk), LEAST_PROMPT)
        prompt, tokens = chunk.tokens[:n_prompt], chunk.tokens[n_prompt : n_prompt + TIMED_TOKENS]
        self._change(n_prompt=n_prompt)
        for dense, *found in measure_speed(
            llm, [None, *(s.measured for s in subjects)], prompt, tokens, self._n_threads, self._clock.is_over(SPEED)
        ):
            for subject, speed in zip(subjects, found):
                subject.row = _with_speed(subject.row, speed)
            self._change(tokens_per_second=dense.tokens_per_second, first_token_seconds=dense.first_token_seconds)

    def _write_examples(self, llm: Llama) -> None:
        self._progress("writing the same text with and without")
        tokens = chat_prompt(llm, self._prompt)
        settings = [("dense", None), *((row.label, row.config) for row in best_settings(self.trial.rows))]
        self._change(prompt=self._prompt)
        n_tokens, is_over = EXAMPLE_TOKENS, self._clock.is_over(DENSE_EXAMPLE)
        for name, config in settings[:MOST_EXAMPLES]:
            with llm.skipping(config):
                answer, text = _greedy(llm, tokens, n_tokens, is_over)
            if config is None:  # which has the length that there is time for
                n_tokens, is_over = max(len(answer), LEAST_EXAMPLE), lambda: False
            self._change(texts=(*self.trial.texts, (name, text)))


def _check(
    model_path: PathLike,
    text: Sequence[PathLike] | None,
    skip_ratios: Sequence[float] | None,
    prompt: str | None,
    seconds: float,
    n_threads: int | None,
) -> None:
    if not os.path.isfile(model_path):
        raise FileNotFoundError(f"{os.fspath(model_path)}: no such file")
    for path in text or ():
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{os.fspath(path)}: no such file")
    for ratio in skip_ratios or ():
        if not 0 < ratio < 1:
            raise ValueError(f"skip-ratio: {ratio:g} is outside (0, 1)")
    if prompt is not None and not prompt.strip():
        raise ValueError("prompt: it is empty")
    if not 1 <= seconds < math.inf:
        raise ValueError(f"time: {seconds:g} seconds; give 1 or more")
    check_threads(n_threads)


def _sizes(llm: Llama, ratios: Sequence[float], *, given: bool) -> dict[float, int]:
    """Of each ratio the number of blocks to leave out, at least one; a half is rounded up, as max_skip is."""
    n_ffn, most = len(llm.ffn_map), int(llm.skippable.sum())
    sizes = {ratio: max(1, math.floor(ratio * n_ffn + 0.5)) for ratio in ratios}
    for ratio, n in list(sizes.items()):
        if n > most:
            if given:
                raise ValueError(f"skip-ratio: {ratio:g} can't be reached; at most {most / n_ffn:.3f}")
            del sizes[ratio]
    return sizes


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"


def _greedy(llm: Llama, prompt: Sequence[int], n: int, is_over: Callable[[], bool]) -> tuple[list[int], str]:
    """At most n tokens, and no more than LEAST_EXAMPLE when the time is over; and their text."""
    tokens: list[int] = []
    for token in llm.generate(prompt, max_tokens=n, temp=0.0, repeat_penalty=1.0):
        if is_end(llm, token) or (len(tokens) >= LEAST_EXAMPLE and is_over()):
            break
        tokens.append(token)
    return tokens, llm.detokenize(tokens, prev_tokens=list(prompt[-1:])).decode("utf-8", "replace").strip()


def _with_quality(row: Row, measured: Measured, n_ffn: int) -> Row:
    quality = measured.quality
    row = replace(
        row,
        kl=quality.kl,
        kl_error=measured.kl_error,
        perplexity_ratio=quality.perplexity_ratio,
        top1_agreement=quality.top1_agreement,
    )
    return row if row.config is None else replace(row, skip_ratio=measured.n_skipped / quality.n_rows / n_ffn)


def _with_speed(row: Row, speed: Speed) -> Row:
    median, lower, upper = speed.speed_up
    return replace(row, speed_up=median, speed_up_q1=lower, speed_up_q3=upper, first_token=speed.first_token)
