"""What is tried: the model's profile, or what a quick search finds; the paper's values; smaller quantisations."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ..blocks import ffn_blocks
from ..errors import TargetUnreachableError, UnsupportedModelError
from ..gguf_file.header import Header
from ..llama import Llama
from ..measure.model import open_model
from ..measure.text import N_CTX, Chunk
from ..skip_config import SkipConfig
from . import smaller
from .course import Course, Subject
from .rows import Row
from .search import MEASURED_AGAIN, MOST_TOKENS, by_similarity, cost_on, grow, some_of

__all__ = ["of_channels", "of_profile", "of_quantisations", "of_search", "sizes_of"]


def of_profile(llm: Llama, profile: SkipConfig, course: Course) -> list[Subject]:
    """The model's profile, and the paper's values that skip as much, or of channels what needs no profile."""
    course.begins("reading the profile")
    with llm.skipping(profile):
        resolved = llm.resolved
    if profile.policy == "channels":
        row = Row(_percent(profile.ratio), "profile", profile, profile.ratio)
        return [Subject(row), *of_channels(llm, [profile.ratio], profile.warm_up_index, course)]
    ratio = (len(profile.layers or ()) + resolved["max_skip"]) / len(ffn_blocks(llm.blocks))
    label = _percent(ratio)
    row = Row(label, "profile", profile, ratio)
    return [Subject(row), *_of_paper(llm, label, ratio, profile.warm_up_index, course)]


def of_channels(llm: Llama, ratios: Sequence[float], warm_up_index: int, course: Course) -> list[Subject]:
    """For each ratio the channels that reach least, as far as weights of the model can be stored by channel."""
    course.begins("storing the weights by channel")
    configs = [SkipConfig("channels", skip_ratio=ratio, warm_up_index=warm_up_index) for ratio in ratios]
    try:
        for config in configs:
            with llm.skipping(config):
                pass
    except UnsupportedModelError as error:
        course.note(f"Channels can't be left out: {error}")
        return []
    return [Subject(Row(_percent(config.ratio), "channels", config, config.ratio)) for config in configs]


def _of_paper(llm: Llama, label: str, ratio: float, warm_up_index: int, course: Course) -> list[Subject]:
    config = SkipConfig(skip_ratio=ratio, warm_up_index=warm_up_index)
    try:
        with llm.skipping(config):
            pass
    except ValueError as error:  # too few layers for the paper's cold regions
        course.note(f"The paper's values at {label}: {error}")
        return []
    return [Subject(Row(label, "paper", config, ratio))]


def sizes_of(llm: Llama, ratios: Sequence[float], *, given: bool) -> dict[float, int]:
    """Of each ratio the number of blocks to leave out, at least one; a half is rounded up, as max_skip is.

    Args:
        given: By the user, so that what can't be reached is refused and not passed over.
    """
    n_ffn, most = len(ffn_blocks(llm.blocks)), int(llm.skippable.sum())
    sizes = {ratio: max(1, math.floor(ratio * n_ffn + 0.5)) for ratio in ratios}
    for ratio, n in list(sizes.items()):
        if n > most:
            if given:
                raise TargetUnreachableError(f"skip-ratio: {ratio:g} can't be reached; at most {most / n_ffn:.3f}")
            del sizes[ratio]
    return sizes


def of_search(
    llm: Llama, chunks: Sequence[Chunk], sizes: dict[float, int], warm_up_index: int, course: Course, share: float
) -> list[Subject]:
    """For each size the FFN blocks that cost least, and the paper's values that skip as much.

    Args:
        share: Of the time, after which the search is to be over.
    """
    if not sizes:
        return []
    order = _search(llm, chunks, max(sizes.values()), course, share)
    found = []
    for ratio, n in sizes.items():
        config = SkipConfig(layers=sorted(order[:n]), max_skip=0, warm_up_index=warm_up_index)
        label = _percent(ratio)
        found.append(Subject(Row(label, "search", config, n / len(ffn_blocks(llm.blocks)))))
        found += _of_paper(llm, label, ratio, warm_up_index, course)
    return found


def _search(llm: Llama, chunks: Sequence[Chunk], n: int, course: Course, share: float) -> list[int]:
    course.begins(f"searching the {n} FFN blocks that cost least")
    few = some_of(chunks, 0)
    order, cost = by_similarity(llm, few), cost_on(llm, few)
    start = time.monotonic()
    cost(order[:1])
    tokens_per_second = sum(map(len, few)) / (time.monotonic() - start)
    n_settings = len(order) + MEASURED_AGAIN * n
    n_tokens = int(course.left(share) * tokens_per_second / n_settings)
    if n_tokens > sum(map(len, few)):
        cost = cost_on(llm, some_of(chunks, min(n_tokens, MOST_TOKENS)))
    found, is_complete = grow(order, cost, n, course.is_over(share))
    if not is_complete:
        course.note(
            "The time was too short for the quick search: some blocks were chosen by similarity, or by their cost "
            "alone. A longer --time finds better ones."
        )
    return found


def of_quantisations(
    headers: Sequence[Header], folder: Path, stack: ExitStack, course: Course, n_gpu_layers: int, share: float
) -> list[Subject]:
    """The next smaller types of the same model: quantised into `folder` and opened on `stack`; quoted if it is large.

    Args:
        share: Of the time, after which no other file is begun.
    """
    trial = course.trial
    n_weights = sum(tensor.n_elements for header in headers for tensor in header.tensors)
    bits = 8 * trial.n_bytes / max(n_weights, 1)
    if trial.n_bytes > smaller.MOST_BYTES:
        return [Subject(row) for row in smaller.quoted(trial.type, bits)]
    course.begins("quantising the model to the next smaller types")
    names = smaller.candidates(trial.type, bits)
    if not names:
        course.note(f"There is no smaller type than {trial.type} to compare with.")
    files = smaller.smaller_files(headers[0].path, trial.n_bytes, names, folder, trial.n_threads, course.is_over(share))
    found = []
    try:
        for name, path in files:
            row = Row(name, "quantisation", size=path.stat().st_size / trial.n_bytes)
            opened = open_model(path, N_CTX, n_threads=trial.n_threads, n_gpu_layers=n_gpu_layers)
            found.append(Subject(row, stack.enter_context(opened)))
    except (ValueError, OSError) as error:
        course.note(f"A smaller quantisation to compare with could not be made: {error}")
    return found


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"
