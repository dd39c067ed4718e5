"""Finds out what to skip in a model, and writes its profile.

    calibration = calibrate("model.gguf", ["text.txt"], skip_ratio=0.25)
    print(calibration)

The text is cut into chunks. Some are held out; on the others similarities are recorded and settings searched
(search.py). The best setting of each policy is then measured on held-out text, next to the paper's uncalibrated values
and random baselines, and the one that costs least (choice.py) becomes the model's profile (work.py).

An interrupted calibration goes on where it was when started again: what it measured is in a file beside the profile,
model.ffnskip.gguf.progress, until it ends. The same arguments give the same profile, but where effort is in seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from .._core import __version__
from ..llama import Llama
from ..lora import Adapter
from ..measure.chat import Chat
from ..measure.model import check_model, open_model
from ..measure.text import N_CTX, Text, read_texts
from ..plain import plain
from ..profile import PathLike
from ..progress import progress_bar
from ..skip_config import TensorsName
from .cache import open_cache
from .choice import Row
from .costs import Costs
from .evaluation import Evaluator
from .output import Destination, summary, text_digest
from .parts import Parts, all_answered, useful_chunks
from .progress import Bar
from .report import page
from .wanted import EFFORT, MAX_TOKENS, Wanted
from .work import Work

__all__ = ["CHAT_N_CTX", "Calibration", "calibrate"]

CHAT_N_CTX = 1024  # tokens of a chunk, if there are chats


@dataclass(frozen=True, repr=False)
class Calibration:
    """What a calibration found. Its repr is a page to read, `as_dict()` for programs."""

    chosen: Row
    candidates: list[Row]
    """On held-out text: the best setting of each policy, then those it is compared with."""
    tried: list[Row]
    """On the calibration text, in the order they were tried; each by as much text as it was in the race for."""
    similarity: npt.NDArray[np.float64]
    """float64 [n_layer, 3]: mean, 10 % and 90 % quantile; NaN where unchecked."""
    cold_regions: tuple[int, int]
    """Of the mean similarity (section 3.2 of the paper); the chosen setting may have others."""
    block_kl: npt.NDArray[np.float64]
    """float64 [n_layer]: KL divergence where the FFN block of the layer is left out alone; NaN where it can't be."""
    layer_influence: npt.NDArray[np.float64]
    """float64 [n_layer]: 1 - the mean cosine of what goes into a layer and what comes out of it, where policy short_gpt
    was tried; else NaN."""
    costs: Costs | None
    """The times that were saved, in milliseconds; None where it was bytes."""
    notes: list[str]
    path: Path
    """The profile, or the model that it was embedded in."""

    def as_dict(self) -> dict[str, Any]:
        """Of plain values; None for NaN."""
        return plain(self)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return page(self)


def calibrate(
    model_path: PathLike,
    text: PathLike | Sequence[PathLike],
    *,
    skip_ratio: float | None = None,
    max_kl: float | None = None,
    policies: Sequence[str] | None = None,
    tensors: TensorsName = "ffn",
    costs: PathLike | None = None,
    n_depth: int = 0,
    effort: str | float = EFFORT,
    output: PathLike | None = None,
    embed: bool = False,
    lora: PathLike | None = None,
    n_ctx: int | None = None,
    max_tokens: int = MAX_TOKENS,
    warm_up_index: int = 30,
    seed: int = 0,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    progress: bool | None = None,
) -> Calibration:
    """Finds the settings for a model and writes its profile.

    Args:
        model_path: GGUF file; the first part of a model that is split.
        text: Files of the kind that the model is to generate: plain text in UTF-8, or .jsonl with a text or a chat a
            line (`measure.text.read_texts`). What the user says without an answer, the model answers first.
        skip_ratio: Share of the weight bytes of `tensors` not to be read, which of FFN blocks is the share of them to
            skip, for the tokens past the warm-up, in (0, 1). A setting that skips more at less cost is taken; one may
            skip 0.01 less.
        max_kl: In its place, the highest ratio whose KL divergence from the dense model is at most this, nats a token.
            Default: 0.05, unless skip_ratio is given.
        policies: What is tried, of "blocks", "channels" and "blocks+channels", channels beside a block. Default: all
            of these that the model allows. With skip_ratio "short_gpt" and "skip_decode" too: whole layers.
        tensors: What is left out: FFN blocks and input channels of their matrices, "ffn", or "all", attention blocks
            and channels of their matrices too.
        costs: What is to be saved is time, and shares are shares of it: "measured" on this machine, or a JSON file, of
            a table like `Calibration.costs` or of a whole report. Default: bytes.
        n_depth: Tokens in the context while costs are measured.
        effort: "quick", "normal", "thorough"; or the seconds it may take, about.
        output: The profile. Default: model.ffnskip.gguf beside the model, or in the working directory if it can't be.
        embed: Write the profile into the model's own file instead.
        lora: LoRA adapter that the model will be used with, FILE or FILE:SCALE; the profile says which.
        n_ctx: Tokens of a chunk. Default: 512, of chats 1024, or what the model was trained on if that is less.
        max_tokens: Of the text.
        warm_up_index: Generated tokens that run in full first.
        seed: Of the choice of text to hold out.
        n_threads, n_gpu_layers: Default: all processors; all layers, if there is a GPU.
        progress: Show a progress bar on stderr; None: where that is a terminal.
    Raises:
        ValueError: A bad value or text; an output that is no profile; a model that can't be loaded or can't skip
            (`UnsupportedModelError`); a target that can't be reached (`TargetUnreachableError`).
        OSError: A file is missing or can't be written, or another calibration of the model is running.
        DecodeError: llama.cpp failed to decode.
    """
    chosen = None if policies is None else tuple(policies)
    table = None if costs is None else os.fspath(costs)
    wanted = Wanted(skip_ratio, max_kl, chosen, tensors, table, n_depth, effort, n_ctx, max_tokens, warm_up_index, seed)
    check_model(model_path, n_threads, lora)
    destination = Destination.of(Path(model_path), output, embed)
    texts = read_texts(text)
    longest = n_ctx or (CHAT_N_CTX if any(isinstance(text, Chat) for text in texts) else N_CTX)
    with open_model(model_path, longest, n_threads=n_threads, n_gpu_layers=n_gpu_layers, lora=lora) as llm:
        length = n_ctx or min(longest, llm.n_ctx_train)
        with progress_bar("calibrating", 0, unit="tokens", show=progress) as bar:
            return _calibrated(llm, texts, length, wanted, destination, Bar(bar))


def _calibrated(
    llm: Llama, texts: Sequence[Text], n_ctx: int, wanted: Wanted, destination: Destination, bar: Bar
) -> Calibration:
    adapter = Adapter(llm.lora_path, llm.lora_scale).facts() if llm.lora_path else {}
    with open_cache(destination.cache, _subject(llm, adapter), repr((wanted, text_digest(texts)))) as cache:
        answered = all_answered(llm, texts, wanted.max_tokens, cache)
        parts = Parts(useful_chunks(llm, answered, n_ctx, wanted.max_tokens, wanted.warm_up_index), wanted.seed)
        notes = [] if destination.note is None else [destination.note]
        work = Work(llm, Evaluator(llm, cache, wanted.warm_up_index, bar), parts, wanted, bar, notes)
        found = work.found()
        seen = work.similarity
        calibration = Calibration(
            found.chosen,
            found.rows,
            work.tried(),
            np.stack([seen.mean, seen.low, seen.high], axis=1),
            seen.cold_regions,
            work.block_kl(),
            work.layer_influence(),
            None if wanted.costs is None else work.costs,
            notes,
            destination.written,
        )
        learnt = _learnt(calibration, texts, parts.n_tokens, wanted.seed)
        destination.write(llm, found.chosen, {**learnt, **adapter})
    return calibration


def _subject(llm: Llama, adapter: dict[str, Any]) -> str:
    """What decides the outcome of an evaluation, besides setting and tokens."""
    file = os.stat(llm.model_path)
    model = (llm.fingerprint, file.st_size, file.st_mtime_ns)
    return repr((model, llm.model_params.n_gpu_layers, sorted(adapter.items()), _versions()))


def _versions() -> str:
    return f"ffnskip {__version__}, llama-cpp-python {llama_cpp.__version__}"


def _learnt(calibration: Calibration, texts: Sequence[Text], n_tokens: int, seed: int) -> dict[str, Any]:
    """What a profile keeps besides its settings."""
    mean, low, high = calibration.similarity.T
    chosen = calibration.chosen
    of_blocks = {} if np.isnan(calibration.block_kl).all() else {"block_kl": calibration.block_kl.tolist()}
    influence = calibration.layer_influence
    of_layers = {} if np.isnan(influence).all() else {"layer_influence": influence.tolist()}
    of_costs = {} if calibration.costs is None else {"costs": json.dumps(calibration.costs.as_dict())}
    of_channels = {"channels_kept": chosen.channels_kept.ravel().tolist()} if chosen.channels_kept.size else {}
    return {
        "skip_ratio": chosen.skip_ratio,
        "kl": chosen.kl,
        "kl_error": chosen.kl_error,
        "top1_agreement": chosen.top1_agreement,
        "perplexity_ratio": chosen.perplexity_ratio,
        "similarity_mean": mean.tolist(),
        "similarity_low": low.tolist(),
        "similarity_high": high.tolist(),
        "block_influence": (1.0 - mean).tolist(),
        **of_blocks,
        **of_layers,
        **of_channels,
        **of_costs,
        "similarity_cold_s": calibration.cold_regions[0],
        "similarity_cold_e": calibration.cold_regions[1],
        "text_sha256": text_digest(texts),
        "text_tokens": n_tokens,
        "seed": seed,
        "version": _versions(),
        "candidates": json.dumps([summary(row) for row in calibration.candidates]),
    }
