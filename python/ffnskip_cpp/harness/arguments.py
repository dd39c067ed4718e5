"""What `--model_args` and a task's `generation_kwargs` say, as `Llama` takes it."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import llama_cpp
from lm_eval.models.utils import normalize_gen_kwargs

from ..batches import MAX_PARALLEL
from ..errors import ArgumentError, FfnSkipError
from ..gguf_file.header import read_header
from ..skip_argument import Skip
from ..skip_config import POLICIES, SkipConfig

__all__ = [
    "AUTO",
    "Generation",
    "divided",
    "generation_of",
    "n_gpu_layers_of",
    "n_parallel_of",
    "sizes_of",
    "skip_of",
]

AUTO = "auto"
AUTO_PARALLEL = 8  # texts at once where the batch size is "auto"
DEVICES = ("cpu", "cuda", "cuda:0", "mps", "mps:0")
N_CTX = 4096  # tokens, where nothing is said and the model was trained on as many

FIELDS = tuple(field.name for field in dataclasses.fields(SkipConfig))
LLAMAS = tuple(inspect.signature(llama_cpp.Llama).parameters)

SAMPLING = {  # the harness's names, and llama_cpp's
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
UNCUT = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # llama.cpp cuts the distribution where it is not told otherwise


# ---- the model ----


def divided(given: Mapping[str, Any], known: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of a SkipConfig, and arguments of llama_cpp's `Llama`.

    Args:
        known: Names that were taken out before.
    Raises:
        ArgumentError: A name is none of these.
    """
    for name in given:
        if name not in FIELDS and name not in LLAMAS:
            near = difflib.get_close_matches(name, (*known, *FIELDS, *LLAMAS), n=1)
            hint = f"; did you mean {near[0]}?" if near else ": see docs/harness.md"
            raise ArgumentError(f"model_args: {name!r} is not known{hint}")
    fields = {name: value for name, value in given.items() if name in FIELDS}
    return fields, {name: value for name, value in given.items() if name not in FIELDS}


def skip_of(skip: Skip, profile: str | os.PathLike[str] | None, fields: Mapping[str, Any]) -> Skip:
    """For `Llama(skip=...)`. Raises ArgumentError where two of them say what is skipped."""
    if profile is not None:
        others = [*([] if skip == AUTO else ["skip"]), *fields]
        if others:
            raise ArgumentError(f"profile: {profile} says what is skipped, and so does {others[0]}; leave one out")
        return Path(profile)
    if not fields:
        return skip
    values = dict(fields)
    if skip != AUTO:
        name = "skip_ratio" if _is_number(skip) else "policy"
        if name in values or (name == "policy" and skip not in POLICIES):
            first = next(iter(fields))
            raise ArgumentError(f"skip: {skip!r} says what is skipped, and so does {first}; leave one out")
        values[name] = skip
    try:
        return SkipConfig(**values)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"model_args: {error}") from error


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def n_parallel_of(batch_size: int | str, max_batch_size: int | None) -> int:
    """Texts that are generated at once. Raises ArgumentError where it is no such number, nor "auto" or "auto:N"."""
    if str(batch_size).partition(":")[0] == AUTO:
        batch_size = max_batch_size or AUTO_PARALLEL
    if not str(batch_size).isdecimal() or not 1 <= int(batch_size) <= MAX_PARALLEL:
        raise ArgumentError(f"batch_size: {batch_size!r} is no number of texts; 1 to {MAX_PARALLEL}, or auto")
    return int(batch_size)


def n_gpu_layers_of(device: str, n_gpu_layers: int | None) -> int:
    """Layers on the GPU; -1: all. Raises ArgumentError for a device that can't be chosen so."""
    if device not in DEVICES:
        raise ArgumentError(
            f"device: {device!r} can't be chosen; {', '.join(DEVICES)}. Of several GPUs CUDA_VISIBLE_DEVICES chooses"
        )
    if n_gpu_layers is not None:
        return n_gpu_layers
    return 0 if device == "cpu" else -1


def sizes_of(path: str, max_length: int | None, n_ctx: int | None) -> tuple[int, int]:
    """Tokens of one text, and of all that are in the context at once. Raises ArgumentError where they do not fit, and
    FfnSkipError where the file is no model."""
    for name, value in {"max_length": max_length, "n_ctx": n_ctx}.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ArgumentError(f"{name}: {value!r} is no number of tokens; 1 or more")
    length = max_length or n_ctx or min(_n_ctx_train(path), N_CTX)
    if n_ctx is not None and n_ctx < length:
        raise ArgumentError(f"max_length: {length} tokens do not fit n_ctx={n_ctx}")
    return length, n_ctx or length


def _n_ctx_train(path: str) -> int:
    try:
        return int(read_header(path).of_architecture("context_length", N_CTX))
    except ValueError as error:
        raise FfnSkipError(str(error)) from error


# ---- generating ----


@dataclasses.dataclass(frozen=True)
class Generation:
    """How a request wants its text."""

    max_tokens: int
    stop: tuple[str, ...]
    sampling: dict[str, Any]
    """For `Llama.generate_batch`."""


def generation_of(given: Mapping[str, Any], max_tokens: int, end: str) -> Generation:
    """
    Args:
        given: A task's generation_kwargs.
        max_tokens: Where they do not say it.
        end: Text of the model's end token, which ends the text wherever it stands.
    Raises:
        ArgumentError: llama.cpp has no such way to sample.
    """
    options = normalize_gen_kwargs(dict(given), max_tokens)
    stop, limit, samples = options.pop("until"), options.pop("max_gen_toks"), options.pop("do_sample")
    for name, value in options.items():
        if name not in SAMPLING:
            raise ArgumentError(f"generation_kwargs: {name}={value!r} is not known; there are {', '.join(SAMPLING)}")
    sampling = {**UNCUT, "temp": 1.0, **{SAMPLING[name]: value for name, value in options.items()}}
    if not samples:
        sampling["temp"] = 0.0
    return Generation(limit, tuple(dict.fromkeys(text for text in (*stop, end) if text)), sampling)
