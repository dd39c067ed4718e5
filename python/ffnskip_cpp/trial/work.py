"""What skipping costs a model and what it saves, on this machine, in about two minutes.

    print(try_model("model.gguf"))

The parts of a trial share its time; each ends when its share is over, with what it has.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Union

from .._core import CHANNEL_TOKENS, find_profile
from ..benchmark.in_turn import Speed, measure_speed
from ..errors import ArgumentError
from ..gguf_file.file_type import file_type
from ..gguf_file.header import Header, read_headers
from ..llama import Llama
from ..llama_cpp_internals import model_address
from ..measure.model import check_model, open_model
from ..measure.text import N_CTX, Chunk, as_paths
from ..profile import PathLike
from ..progress import progress_bar
from ..skip_config import SkipConfig
from .course import Course
from .quality import Measured, measure_quality
from .rows import Row
from .subjects import of_channels, of_profile, of_quantisations, of_search, sizes_of
from .texts import BEGINNINGS, QUESTIONS, chat_prompt, is_end, own_text, users_text
from .trial import Trial
from .verdict import best_settings

__all__ = ["CHANNEL_RATIOS", "SECONDS", "SEED", "SKIP_RATIOS", "TrialInterrupted", "try_model"]

SKIP_RATIOS = (0.1, 0.25)  # of FFN blocks
CHANNEL_RATIOS = (1 / 3,)  # of their weight bytes
SECONDS = 120.0
SEED = 1
WARM_UP = 30
MAX_TEXT_TOKENS = 8192  # of the user's; there is no time for more
LEAST_PROMPT = CHANNEL_TOKENS + 8  # tokens of the prompt that is timed; thresholds of channels are found in its last
TIMED_TOKENS = 64
EXAMPLE_TOKENS = 100
LEAST_EXAMPLE = 50  # past the warm-up, or it shows nothing
MOST_EXAMPLES = 3

# The share of the time after which each part is to be over.
TEXT, SEARCH, SMALLER, QUALITY, SPEED, DENSE_EXAMPLE = 0.15, 0.45, 0.55, 0.75, 0.9, 0.93
N_PARTS = 8  # with loading the model

Progress = Union[bool, None, Callable[[str], Any]]


class TrialInterrupted(KeyboardInterrupt):
    """`trial`: what was known when Ctrl-C was pressed."""

    def __init__(self, trial: Trial):
        super().__init__()
        self.trial = trial


def try_model(
    model_path: PathLike,
    *,
    text: PathLike | Sequence[PathLike] | None = None,
    skip_ratio: float | Sequence[float] | None = None,
    prompt: str | None = None,
    seconds: float = SECONDS,
    seed: int = SEED,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    progress: Progress = None,
) -> Trial:
    """Measures what skipping costs and saves.

    Args:
        model_path: GGUF file; the first part of a model that is split.
        text: Files of text to measure on, plain in UTF-8 or .jsonl. Default: what the dense model itself writes.
        skip_ratio: Shares of the FFN blocks to leave out, in (0, 1), and of its weight bytes by channels. Default: as
            the model's profile says, or else 0.1 and 0.25; by channels a third.
        prompt: Of the texts side by side.
        seconds: What all of it is to take, at least 1. On a large model the least that tells anything takes longer.
        seed: Of what the dense model writes.
        n_threads: Default: all processors.
        n_gpu_layers: Layers on the GPU; -1: all.
        progress: Show a progress bar on stderr; None: where that is a terminal. A function is called with a few words
            when a part of the work begins.
    Raises:
        ValueError: A bad value; a model that can't be loaded or can't skip (`UnsupportedModelError`); a ratio that it
            can't reach (`TargetUnreachableError`); text that is too short.
        OSError: A file is missing or can't be read, or the smaller file not be written.
        DecodeError: llama.cpp failed to decode.
        TrialInterrupted: Ctrl-C was pressed; what was measured by then comes with it.
    """
    ratios = (skip_ratio,) if isinstance(skip_ratio, (int, float)) else skip_ratio
    wanted = _Wanted(model_path, text, ratios, prompt, seconds, seed, n_threads, n_gpu_layers)
    with _told(progress) as begins:
        work = _Work(wanted, begins)
        try:
            work.run()
        except KeyboardInterrupt:
            if work.course.has_begun:
                raise TrialInterrupted(work.course.trial) from None
            raise
    return work.course.trial


@dataclass(frozen=True)
class _Wanted:
    """As `try_model` has them; checked."""

    model_path: PathLike
    text: PathLike | Sequence[PathLike] | None
    ratios: Sequence[float] | None
    prompt: str | None
    seconds: float
    seed: int
    n_threads: int | None
    n_gpu_layers: int

    def __post_init__(self) -> None:
        check_model(self.model_path, self.n_threads)
        for name, some in (("text", self.text), ("skip-ratio", self.ratios)):
            if isinstance(some, (list, tuple)) and not some:
                raise ArgumentError(f"{name}: the list is empty; name at least one, or leave it out")
        for path in as_paths(self.text or ()):
            if not os.path.isfile(path):
                raise FileNotFoundError(f"{os.fspath(path)}: no such file")
        for ratio in self.ratios or ():
            if not 0 < ratio < 1:
                raise ArgumentError(f"skip-ratio: {ratio:g} is outside (0, 1)")
        if self.prompt is not None and not self.prompt.strip():
            raise ArgumentError("prompt: it is empty")
        if not 1 <= self.seconds < math.inf:
            raise ArgumentError(f"time: {self.seconds:g} seconds; give 1 or more")
        if not 0 <= self.seed < 2**32:
            raise ArgumentError(f"seed: {self.seed} is outside [0, 2**32)")


@contextlib.contextmanager
def _told(progress: Progress) -> Iterator[Callable[[str], Any]]:
    """What to call with a few words when a part begins."""
    if callable(progress):
        yield progress
        return
    with progress_bar("", N_PARTS, unit="parts", show=progress) as bar:

        def begins(what: str) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update()

        yield begins


class _Work:
    """Does it all; `course` is what is known at any time."""

    def __init__(self, wanted: _Wanted, begins: Callable[[str], Any]):
        self.course = Course(wanted.seconds, begins)
        self._wanted = wanted
        self._path = Path(wanted.model_path)
        self._prompt = wanted.prompt or ""
        self._n_threads = wanted.n_threads or os.cpu_count() or 1
        self._headers: list[Header] = []

    def run(self) -> None:
        wanted, course = self._wanted, self.course
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ffnskip-try-")))
            course.begins("loading the model")
            self._headers = read_headers(self._path)
            opened = open_model(self._path, N_CTX, n_threads=self._n_threads, n_gpu_layers=wanted.n_gpu_layers)
            llm = stack.enter_context(opened)
            self._check_prompt(llm)
            found = find_profile(model_address(llm), llm.model_path)
            profile = None if found is None else found.config
            warm_up_index = WARM_UP if profile is None else max(profile.warm_up_index, CHANNEL_TOKENS)
            course.start(self._known(llm, warm_up_index))
            ratios = wanted.ratios or (SKIP_RATIOS if profile is None else ())
            sizes = sizes_of(llm, ratios, given=wanted.ratios is not None)

            to_search, to_measure = self._chunks(llm, warm_up_index)
            if profile is not None:
                course.subjects += of_profile(llm, profile, course)
            course.subjects += of_search(llm, to_search, sizes, warm_up_index, course, SEARCH)
            if profile is None or profile.policy != "channels":
                course.subjects += of_channels(llm, wanted.ratios or CHANNEL_RATIOS, warm_up_index, course)
            course.change(weights_bytes=llm.weights_bytes)
            course.subjects += of_quantisations(self._headers, folder, stack, course, wanted.n_gpu_layers, SMALLER)
            self._measure_quality(llm, to_measure, warm_up_index)
            self._measure_speed(llm, to_measure)
            self._write_examples(llm)
            course.change(complete=True)

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

    def _check_prompt(self, llm: Llama) -> None:
        """A model without a chat template continues texts."""
        if not self._prompt:
            self._prompt = QUESTIONS[0] if llm.metadata.get("tokenizer.chat_template") else BEGINNINGS[2]
        n, most = len(chat_prompt(llm, self._prompt)), N_CTX - EXAMPLE_TOKENS
        if n > most:
            raise ValueError(f"prompt: {n} tokens are too many for a trial; at most {most}")

    def _chunks(self, llm: Llama, warm_up_index: int) -> tuple[list[Chunk], list[Chunk]]:
        """To search on and to measure on; never the same."""
        n_ctx = min(N_CTX, self._headers[0].of_architecture("context_length", N_CTX))
        wanted, is_over = self._wanted, self.course.is_over(TEXT)
        if wanted.text is not None:
            self.course.begins("reading the text")
            chunks = users_text(llm, wanted.text, warm_up_index, n_ctx, MAX_TEXT_TOKENS, is_over)
            words = "of the text given"
        else:
            self.course.begins("letting the dense model write the text to measure on")
            chunks = own_text(llm, warm_up_index, n_ctx, wanted.seed, is_over)
            words = "which the dense model wrote itself (sampled at a temperature of 0.8)"
        self.course.change(text=words)
        return chunks[1::2], chunks[::2]

    def _measure_quality(self, llm: Llama, chunks: Sequence[Chunk], warm_up_index: int) -> None:
        course = self.course
        subjects = [subject for subject in course.subjects if not subject.row.quoted]
        if not subjects:
            return
        course.begins("measuring what is lost")
        measured = [s.measured for s in subjects if s.measured is not None]
        for found in measure_quality(llm, measured, chunks, warm_up_index, course.is_over(QUALITY)):
            for subject, of_it in zip(subjects, found):
                subject.row = _with_quality(subject.row, of_it)
            course.change(n_tokens=found[0].quality.n_rows)

    def _measure_speed(self, llm: Llama, chunks: Sequence[Chunk]) -> None:
        course = self.course
        course.begins("measuring speed, all in turn")
        subjects = [subject for subject in course.subjects if not subject.row.quoted]
        chunk = max(chunks, key=len)
        n_prompt = max(chunk.n_prompt, LEAST_PROMPT)
        prompt, tokens = chunk.tokens[:n_prompt], chunk.tokens[n_prompt : n_prompt + TIMED_TOKENS]
        course.change(n_prompt=n_prompt)
        in_turn = [None, *(s.measured for s in subjects)]
        for dense, *found in measure_speed(llm, in_turn, prompt, tokens, self._n_threads, course.is_over(SPEED)):
            for subject, speed in zip(subjects, found):
                subject.row = _with_speed(subject.row, speed)
            course.change(tokens_per_second=dense.tokens_per_second, first_token_seconds=dense.first_token_seconds)

    def _write_examples(self, llm: Llama) -> None:
        course = self.course
        course.begins("writing the same text with and without")
        tokens = chat_prompt(llm, self._prompt)
        settings: list[tuple[str, SkipConfig | None]] = [("dense", None)]
        settings += [(row.name, row.config) for row in best_settings(course.trial.rows)[1 - MOST_EXAMPLES :]]
        course.change(prompt=self._prompt)
        n_tokens, is_over = EXAMPLE_TOKENS, course.is_over(DENSE_EXAMPLE)
        for name, config in settings:
            with llm.skipping(config):
                answer, text = _greedy(llm, tokens, n_tokens, is_over)
            if config is None:  # which has the length that there is time for
                n_tokens, is_over = max(len(answer), LEAST_EXAMPLE), lambda: False
            course.change(texts=(*course.trial.texts, (name, text)))


def _greedy(llm: Llama, prompt: Sequence[int], n: int, is_over: Callable[[], bool]) -> tuple[list[int], str]:
    """At most n tokens, and no more than LEAST_EXAMPLE when the time is over; and their text."""
    tokens: list[int] = []
    for token in llm.generate(prompt, max_tokens=n, temp=0.0, repeat_penalty=1.0):
        if is_end(llm, token) or (len(tokens) >= LEAST_EXAMPLE and is_over()):
            break
        tokens.append(token)
    return tokens, llm.detokenize(tokens, prev_tokens=list(prompt[-1:])).decode("utf-8", "replace").strip()


def _with_quality(row: Row, measured: Measured) -> Row:
    quality = measured.quality
    row = replace(
        row,
        kl=quality.kl,
        kl_error=quality.kl_error,
        perplexity_ratio=quality.perplexity_ratio,
        top1_agreement=quality.top1_agreement,
    )
    return row if row.config is None else replace(row, skip_ratio=measured.n_skipped / quality.n_rows)


def _with_speed(row: Row, speed: Speed) -> Row:
    median, lower, upper = speed.speed_up
    return replace(row, speed_up=median, speed_up_q1=lower, speed_up_q3=upper, first_token=speed.first_token)
