"""Finds out what to skip in a model, and writes its profile.

    calibration = calibrate("model.gguf", ["text.txt"], skip_ratio=0.25)
    print(calibration.chosen, calibration.path)

The text is cut into chunks. Some are held out; on the others similarities are recorded and settings searched
(search.py). The best setting of each policy is then measured on held-out text, next to the paper's uncalibrated values
and random baselines, and the one that costs least (choice.py) becomes the model's profile (work.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from .._core import __version__
from ..errors import Unsupported
from ..llama import Llama
from ..lora import as_adapter
from ..measure.chat import Chat, answered, tokens_of_chat
from ..measure.similarity import skipping
from ..measure.text import MIN_TOKENS, Chunk, Text, chunks_of_text, read_texts
from ..profile import PathLike, check_profile_output, embed_profile, profile_path, write_profile
from ..threads import check_threads
from .choice import Row
from .effort import EFFORTS
from .evaluation import Evaluator
from .journal import Journal, open_journal
from .progress import Bar
from .work import Parts, Work, check_reachable, n_compared

__all__ = ["EFFORT", "MAX_TOKENS", "SKIP_RATIO", "TYPICAL_N_CTX", "Calibration", "calibrate"]

SKIP_RATIO = 0.25
EFFORT = "normal"
TYPICAL_N_CTX = 512
TYPICAL_CHAT = 1024  # tokens
MAX_TOKENS = 20_000


@dataclass(frozen=True)
class Calibration:
    """What a calibration found."""

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
    notes: list[str]
    path: Path
    """The profile, or the model that it was embedded in."""


def calibrate(
    model_path: PathLike,
    text: Sequence[PathLike],
    *,
    skip_ratio: float | None = None,
    max_kl: float | None = None,
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
    progress: bool = False,
) -> Calibration:
    """Finds the settings for a model and writes its profile.

    An interrupted calibration goes on where it was when started again: what it measured is in a file beside the
    profile, model.ffnskip.gguf.progress, until it ends. The same arguments give the same profile, but where effort is
    in seconds.

    Args:
        model_path: GGUF file; the first part of a model that is split.
        text: Of the kind that the model is to generate: plain text in UTF-8, or .jsonl with a text or a chat a line
            (`ffnskip_cpp.measure.text.read_texts`). What the user says without an answer, the model answers first.
        skip_ratio: Share of the FFN blocks to skip, of the tokens past the warm-up, in (0, 1). A setting that skips
            more at less cost is taken; one may skip 0.01 less. Default: 0.25, unless max_kl is given.
        max_kl: In its place: the highest ratio whose KL divergence from the dense model is at most this, in nats per
            token.
        effort: "quick", "normal", "thorough"; or the seconds it may take, about.
        output: The profile. Default: model.ffnskip.gguf beside the model; in the working directory where the model's
            can't be written.
        embed: Write the profile into the model's own file instead.
        lora: LoRA adapter that the model will be used with, FILE or FILE:SCALE; the profile says which.
        n_ctx: Tokens of a chunk. Default: 512, of chats 1024, or what the model was trained on if that is less.
        max_tokens: Of the text.
        warm_up_index: Generated tokens that run in full first.
        seed: Of the choice of text to hold out.
        n_threads: Default: all processors.
        n_gpu_layers: Layers on the GPU; -1: all.
        progress: Show a progress bar on stderr.
    Raises:
        ValueError: A bad value; text that is empty, too short or binary; a model that can't be loaded or can't skip
            (`Unsupported`); a target that can't be reached, with the best that can; an output that is something else
            than a profile.
        FileNotFoundError: The model or a text is missing.
        OSError: A file can't be written, or another calibration of the model is running.
        RuntimeError: llama.cpp failed to decode.
    """
    _check(skip_ratio, max_kl, effort, output, embed, n_ctx, max_tokens, warm_up_index, seed, n_threads)
    if not os.path.isfile(model_path):
        raise FileNotFoundError(f"{os.fspath(model_path)}: no such file")
    adapter = None if lora is None else as_adapter(lora)
    path, notes = _destination(Path(model_path), output, embed)
    texts = read_texts(text)
    n_ctx_wanted = n_ctx or (TYPICAL_CHAT if any(isinstance(text, Chat) for text in texts) else TYPICAL_N_CTX)
    threads = n_threads or os.cpu_count()
    with Llama(
        os.fspath(model_path),
        skip=None,
        n_ctx=n_ctx_wanted,
        n_batch=TYPICAL_N_CTX,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=n_gpu_layers,
        verbose=False,
        **({} if adapter is None else adapter.options()),
    ) as llm:
        if llm.why_dense is not None:
            raise Unsupported(llm.why_dense)
        if max_kl is None:
            check_reachable(llm, skip_ratio or SKIP_RATIO)
        length = n_ctx or min(n_ctx_wanted, llm.n_ctx_train)
        learnt_of_adapter = {} if adapter is None else adapter.facts()
        journal_path = path.with_name(path.name + ".progress")
        subject = _subject(llm, n_gpu_layers, learnt_of_adapter)
        with open_journal(journal_path, subject) as journal, Bar(progress) as bar:
            given = _answered(llm, texts, max_tokens, journal, bar)
            cut = _chunks(llm, given, length, max_tokens, warm_up_index)
            evaluator = Evaluator(llm, journal, warm_up_index, bar)
            wanted = None if max_kl is not None else skip_ratio or SKIP_RATIO
            work = Work(llm, evaluator, Parts(cut, seed), warm_up_index, effort, wanted, bar, notes)
            found = work.at_ratio(wanted) if wanted is not None else work.within_kl(max_kl)
            calibration = Calibration(
                found.chosen,
                found.rows,
                work.tried(),
                work.similarity,
                work.cold_regions,
                work.block_kl(),
                notes,
                Path(model_path) if embed else path,
            )
            learnt = _learnt(calibration, texts, sum(map(len, cut)), seed)
            _write(llm, calibration, {**learnt, **learnt_of_adapter}, embed)
    return calibration


def _check(
    skip_ratio: float | None,
    max_kl: float | None,
    effort: str | float,
    output: PathLike | None,
    embed: bool,
    n_ctx: int | None,
    max_tokens: int,
    warm_up_index: int,
    seed: int,
    n_threads: int | None,
) -> None:
    if skip_ratio is not None and max_kl is not None:
        raise ValueError("skip-ratio and max-kl: give one of the two, the other follows from it")
    if skip_ratio is not None and not 0 < skip_ratio < 1:
        raise ValueError(f"skip-ratio: {skip_ratio:g} is outside (0, 1)")
    if max_kl is not None and not 0 < max_kl < np.inf:
        raise ValueError(f"max-kl: {max_kl:g} is no divergence that can be kept to; a number above 0")
    if (isinstance(effort, str) and effort not in EFFORTS) or (not isinstance(effort, str) and not 0 < effort < np.inf):
        raise ValueError(f"effort: {effort!r} is neither of {', '.join(EFFORTS)} nor a number of seconds above 0")
    if embed and output is not None:
        raise ValueError("embed and output: the profile goes into the model's file or into one of its own")
    if warm_up_index < 0:
        raise ValueError(f"warm-up: {warm_up_index} is negative; it counts generated tokens, 0 or more")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: {seed} is outside [0, 2**32)")
    check_threads(n_threads)
    least = warm_up_index + 2
    for name, value in (("n-ctx", n_ctx), ("max-tokens", max_tokens)):
        if value is not None and value < least:
            raise ValueError(f"{name}: {value} is too few; {warm_up_index} tokens of warm-up and 2 more are needed")


def _destination(model: Path, output: PathLike | None, embed: bool) -> tuple[Path, list[str]]:
    """Where the profile goes, and what to say about that. Checked before there is anything to lose."""
    usual = profile_path(model)
    path = Path(output) if output is not None else usual
    if path.exists():
        check_profile_output(path)
    if _can_write(path):
        hides = embed and usual.exists()
        return path, [f"{usual} goes before what is in the model; remove it"] if hides else []
    if output is None and not embed and _can_write(elsewhere := Path(usual.name)):
        return elsewhere, [
            f"{usual.parent} can't be written; the profile is {elsewhere.absolute()}, where it is not found by itself: "
            "name it with --profile or skip=, or choose a place with -o"
        ]
    raise PermissionError(f"{path}: can't be written" + ("" if embed or output else "; choose a place with -o"))


def _can_write(path: Path) -> bool:
    return path.absolute().parent.is_dir() and os.access(path.absolute().parent, os.W_OK)


def _answered(llm: Llama, texts: Sequence[Text], max_tokens: int, journal: Journal, bar: Bar) -> list[Text]:
    """The texts, with answers to what is without one, as many as there are tokens for."""
    result: list[Text] = []
    n_tokens = 0
    for text in texts:
        if isinstance(text, Chat) and n_tokens < max_tokens:
            found = journal.find("answers", text.messages)
            if found is None:
                whole = answered(llm, text)
                as_bytes = json.dumps(whole.messages).encode("utf-8")
                journal.add({"messages": np.frombuffer(as_bytes, np.uint8)}, "answers", text.messages)
            else:
                whole = Chat(tuple(json.loads(found["messages"].tobytes())), text.where)
            n_tokens += len(tokens_of_chat(llm, whole)[0])
            result.append(whole)
        elif isinstance(text, str):
            result.append(text)
    return result


def _chunks(llm: Llama, texts: Sequence[Text], n_ctx: int, max_tokens: int, warm_up_index: int) -> list[Chunk]:
    """Those in which a token may skip and predict a known one."""
    if max_tokens < n_ctx:
        raise ValueError(f"max-tokens: {max_tokens} is less than the {n_ctx} of one chunk (n-ctx)")
    cut = chunks_of_text(llm, texts, n_ctx, max_tokens=max_tokens, min_tokens=max(MIN_TOKENS, warm_up_index + 2))
    useful = [chunk for chunk in cut if n_compared(chunk, warm_up_index) > 0]
    n_tokens = sum(map(len, useful))
    if len(useful) < len(cut) and len(useful) < 2:
        raise ValueError(
            f"the text is too short: {len(useful)} chats have an answer of more than {warm_up_index} tokens, which run "
            "in full (warm-up); at least 2 are needed, one to calibrate on and one to hold out"
        )
    if n_tokens < n_ctx or len(useful) < 2:
        lacking = "max-tokens is too low" if max_tokens - n_tokens < MIN_TOKENS else "the text is too short"
        raise ValueError(
            f"{lacking}: {n_tokens} tokens in {len(useful)} chunks; at least {n_ctx} tokens (n-ctx) in 2 chunks are "
            "needed, one to calibrate on and one to hold out"
        )
    return useful


def _subject(llm: Llama, n_gpu_layers: int, adapter: dict[str, Any]) -> str:
    """What decides the outcome of an evaluation, besides setting and tokens."""
    file = os.stat(llm.model_path)
    model = (llm.fingerprint, file.st_size, file.st_mtime_ns)
    return repr((model, n_gpu_layers, sorted(adapter.items()), _versions()))


def _versions() -> str:
    return f"ffnskip {__version__}, llama-cpp-python {llama_cpp.__version__}"


# ---- the result ----


def _learnt(calibration: Calibration, texts: Sequence[Text], n_tokens: int, seed: int) -> dict[str, Any]:
    """What a profile keeps besides its settings."""
    mean, low, high = calibration.similarity.T
    chosen = calibration.chosen
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
        "block_kl": calibration.block_kl.tolist(),
        "similarity_cold_s": calibration.cold_regions[0],
        "similarity_cold_e": calibration.cold_regions[1],
        "text_sha256": _digest(texts),
        "text_tokens": n_tokens,
        "seed": seed,
        "version": _versions(),
        "candidates": json.dumps([_summary(row) for row in calibration.candidates]),
    }


def _digest(texts: Sequence[Text]) -> str:
    plain = (text if isinstance(text, str) else json.dumps(text.messages) for text in texts)
    return hashlib.sha256("\0".join(plain).encode("utf-8")).hexdigest()


def _summary(row: Row) -> dict[str, Any]:
    numbers = {name: value for name, value in vars(row).items() if isinstance(value, (int, float))}
    return {"policy": row.policy, **numbers}


def _write(llm: Llama, calibration: Calibration, learnt: dict[str, Any], embed: bool) -> None:
    config = calibration.chosen.config
    with skipping(llm, config):
        resolved = llm.resolved
    if not embed:
        write_profile(calibration.path, llm.fingerprint, config, resolved, learnt)
        return
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile.gguf"
        write_profile(profile, llm.fingerprint, config, resolved, learnt)
        embed_profile(calibration.path, profile)
