"""Find out what to skip in a model: `ffnskip calibrate`, and `calibrate` for Python.

    calibration = calibrate("model.gguf", ["text.txt"], skip_ratio=0.25)
    print(calibration.chosen, calibration.path)

The text is cut into chunks. Some are held out; on the others similarities are recorded and settings searched
(calibration/search.py). The best setting of each policy is then measured on held-out text, next to the paper's
uncalibrated values and a random baseline, and the one that costs least becomes the model's profile.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from ._core import SkipConfig, Unsupported, __version__
from .analysis.measure import skipping
from .calibration.evaluation import Evaluator
from .calibration.journal import open_journal
from .calibration.work import Parts, Row, Work, check_reachable
from .llama import Llama
from .profile import PathLike, embed_profile, profile_path, write_profile
from .text import MIN_TOKENS, chunks_of_tokens, read_texts

__all__ = ["Calibration", "Row", "add_arguments", "calibrate", "run"]

SKIP_RATIO = 0.25
TYPICAL_N_CTX = 512
MAX_TOKENS = 20_000


@dataclass(frozen=True)
class Calibration:
    """What a calibration found."""

    chosen: Row
    candidates: list[Row]
    """On held-out text: the best setting of each policy, then those it is compared with."""
    tried: list[Row]
    """On the calibration text, in the order they were tried."""
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
    output: PathLike | None = None,
    embed: bool = False,
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
    profile, model.ffnskip.gguf.progress, until it ends. The same arguments give the same profile.

    Args:
        model_path: GGUF file; the first part of a model that is split.
        text: Plain text in UTF-8, or .jsonl with a "text" a line; of the kind that the model is to generate.
        skip_ratio: Share of the FFN blocks to skip, of the tokens past the warm-up, in (0, 1); met within 0.01.
            Default: 0.25, unless max_kl is given.
        max_kl: In its place: the highest ratio whose KL divergence from the dense model is at most this, in nats per
            token.
        output: The profile. Default: model.ffnskip.gguf beside the model; in the working directory where the model's
            can't be written.
        embed: Write the profile into the model's own file instead.
        n_ctx: Tokens of a chunk. Default: 512, or what the model was trained on if that is less.
        max_tokens: Of the text.
        warm_up_index: Generated tokens that run in full first.
        seed: Of the choice of text to hold out.
        n_threads: Default: all processors.
        n_gpu_layers: Layers on the GPU; -1: all.
        progress: Show a progress bar on stderr.
    Raises:
        ValueError: A bad value; text that is empty, too short or binary; a model that can't be loaded or can't skip
            (`Unsupported`); a target that can't be reached, with the best that can.
        FileNotFoundError: The model or a text is missing.
        OSError: A file can't be written.
        RuntimeError: llama.cpp failed to decode.
    """
    _check(skip_ratio, max_kl, output, embed, n_ctx, max_tokens, warm_up_index, seed, n_threads)
    if not os.path.isfile(model_path):
        raise FileNotFoundError(f"{os.fspath(model_path)}: no such file")
    path, notes = _destination(Path(model_path), output, embed)
    texts = read_texts(text)
    threads = n_threads or os.cpu_count()
    with Llama(
        os.fspath(model_path),
        skip=None,
        n_ctx=n_ctx or TYPICAL_N_CTX,
        n_batch=TYPICAL_N_CTX,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=n_gpu_layers,
        verbose=False,
    ) as llm:
        if llm.why_dense is not None:
            raise Unsupported(llm.why_dense)
        if max_kl is None:
            check_reachable(llm, skip_ratio or SKIP_RATIO)
        chunks = _chunks(llm, texts, n_ctx or min(TYPICAL_N_CTX, llm._model.n_ctx_train()), max_tokens, warm_up_index)
        journal_path = path.with_name(path.name + ".progress")
        with open_journal(journal_path, _subject(llm, n_gpu_layers)) as journal, _Bar(progress) as bar:
            evaluator = Evaluator(llm, journal, warm_up_index, bar)
            work = Work(llm, evaluator, Parts(chunks, seed), warm_up_index, bar, notes)
            found = work.at_ratio(skip_ratio or SKIP_RATIO) if max_kl is None else work.within_kl(max_kl)
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
            _write(llm, calibration, _learnt(calibration, texts, sum(map(len, chunks)), seed), embed)
    return calibration


def _check(
    skip_ratio: float | None,
    max_kl: float | None,
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
    if embed and output is not None:
        raise ValueError("embed and output: the profile goes into the model's file or into one of its own")
    if warm_up_index < 0:
        raise ValueError(f"warm-up: {warm_up_index} is negative; it counts generated tokens, 0 or more")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: {seed} is outside [0, 2**32)")
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"threads: {n_threads} can't compute anything; 1 or more")
    least = warm_up_index + 2
    for name, value in (("n-ctx", n_ctx), ("max-tokens", max_tokens)):
        if value is not None and value < least:
            raise ValueError(f"{name}: {value} is too few; {warm_up_index} tokens of warm-up and 2 more are needed")


def _destination(model: Path, output: PathLike | None, embed: bool) -> tuple[Path, list[str]]:
    """Where the profile goes, and what to say about that. Checked before there is anything to lose."""
    usual = profile_path(model)
    path = Path(output) if output is not None else usual
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the name of a file")
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


def _chunks(llm: Llama, texts: Sequence[str], n_ctx: int, max_tokens: int, warm_up_index: int) -> list[list[int]]:
    if max_tokens < n_ctx:
        raise ValueError(f"max-tokens: {max_tokens} is less than the {n_ctx} of one chunk (n-ctx)")
    chunks = chunks_of_tokens(llm, texts, n_ctx, max_tokens=max_tokens, min_tokens=max(MIN_TOKENS, warm_up_index + 2))
    n_tokens = sum(map(len, chunks))
    if n_tokens < n_ctx or len(chunks) < 2:
        lacking = "max-tokens is too low" if max_tokens - n_tokens < MIN_TOKENS else "the text is too short"
        raise ValueError(
            f"{lacking}: {n_tokens} tokens in {len(chunks)} chunks; at least {n_ctx} tokens (n-ctx) in 2 chunks are "
            "needed, one to calibrate on and one to hold out"
        )
    return chunks


def _subject(llm: Llama, n_gpu_layers: int) -> str:
    """What decides the outcome of an evaluation, besides setting and tokens."""
    file = os.stat(llm.model_path)
    return repr((llm._controller.fingerprint, file.st_size, file.st_mtime_ns, n_gpu_layers, _versions()))


def _versions() -> str:
    return f"ffnskip {__version__}, llama-cpp-python {llama_cpp.__version__}"


class _Bar:
    """A progress bar in tokens, with the time left. How many there will be is known as the work goes on."""

    def __init__(self, shown: bool):
        from tqdm import tqdm

        self._bar = tqdm(total=0, desc="calibrating", unit=" tokens", leave=False, disable=None if shown else True)

    def expect(self, n_tokens: int) -> None:
        self._bar.total = self._bar.n + n_tokens
        self._bar.refresh()

    def __call__(self, n_tokens: int) -> None:
        self._bar.total = max(self._bar.total, self._bar.n + n_tokens)
        self._bar.update(n_tokens)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()


# ---- the result ----


def _learnt(calibration: Calibration, texts: Sequence[str], n_tokens: int, seed: int) -> dict[str, Any]:
    """What a profile keeps besides its settings."""
    mean, low, high = calibration.similarity.T
    chosen = calibration.chosen
    return {
        "skip_ratio": chosen.skip_ratio,
        "kl": chosen.kl,
        "top1_agreement": chosen.top1_agreement,
        "perplexity_ratio": chosen.perplexity_ratio,
        "similarity_mean": mean.tolist(),
        "similarity_low": low.tolist(),
        "similarity_high": high.tolist(),
        "block_influence": (1.0 - mean).tolist(),
        "block_kl": calibration.block_kl.tolist(),
        "region": list(calibration.cold_regions),
        "text_sha256": hashlib.sha256("\0".join(texts).encode("utf-8")).hexdigest(),
        "text_tokens": n_tokens,
        "seed": seed,
        "version": _versions(),
        "candidates": json.dumps([_summary(row) for row in calibration.candidates]),
    }


def _summary(row: Row) -> dict[str, Any]:
    numbers = {name: value for name, value in vars(row).items() if isinstance(value, (int, float))}
    return {"policy": row.policy, **numbers}


def _write(llm: Llama, calibration: Calibration, learnt: dict[str, Any], embed: bool) -> None:
    config = calibration.chosen.config
    with skipping(llm, config):
        resolved = llm._controller.resolved
    if not embed:
        write_profile(calibration.path, llm._controller.fingerprint, config, resolved, learnt)
        return
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile.gguf"
        write_profile(profile, llm._controller.fingerprint, config, resolved, learnt)
        embed_profile(calibration.path, profile)


# ---- command line ----

COLUMNS: dict[str, Callable[[Row], str]] = {
    "policy": lambda row: row.policy,
    "skipped": lambda row: f"{row.skip_ratio:.1%}",
    "KL": lambda row: f"{row.kl:.5f}",
    "same top token": lambda row: f"{row.top1_agreement:.2%}",
    "perplexity": lambda row: f"x{row.perplexity_ratio:.4f}",
    "checks": lambda row: f"{row.checks:.1f}",
    "settings": lambda row: describe(row.config),
}
LEFT = ("policy", "settings")


def describe(config: SkipConfig) -> str:
    """The values of a setting that differ from one candidate to the next."""
    parts = [] if config.layers is None else [f"layers {','.join(map(str, config.layers))}"]
    if config.policy != "fixed" and config.cold_s is not None:
        parts.append(f"[{config.cold_s}, {config.cold_e}) max_skip {config.max_skip}")
        if config.layer_thresholds is None:
            parts.append(f"threshold {config.sim_threshold:.5g}")
    return ", ".join(parts)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [list(COLUMNS), *([cell(row) for cell in COLUMNS.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    rule = ["-" * width if name in LEFT else "-" * (width - 1) + ":" for name, width in zip(COLUMNS, widths)]
    lines.insert(1, rule)
    return "\n".join(
        f"| {' | '.join(_padded(name, cell, width) for name, cell, width in zip(COLUMNS, line, widths))} |"
        for line in lines
    )


def _padded(name: str, cell: str, width: int) -> str:
    return cell.ljust(width) if name in LEFT else cell.rjust(width)


def report(calibration: Calibration) -> str:
    """What the command prints."""
    chosen, held_out = calibration.chosen, calibration.candidates
    lines = [
        f"Tried on {calibration.tried[0].n_tokens} tokens:",
        "",
        table(calibration.tried),
        "",
        f"On {chosen.n_tokens} tokens of held-out text, the best of each policy:",
        "",
        table(held_out),
        "",
        f"chosen: {chosen.policy}, {describe(chosen.config)}",
    ]
    algorithm_1 = next((row for row in held_out if row.policy == "ffn_skip"), None)
    if algorithm_1 is None:
        lines.append("Algorithm 1 can't skip that much")
    elif chosen.policy != "ffn_skip":
        worse = algorithm_1.kl > chosen.kl or algorithm_1.skip_ratio < chosen.skip_ratio
        lines.append(
            f"Algorithm 1 is {'not the best' if worse else 'no better'} here: KL {algorithm_1.kl:.5f} at {algorithm_1.skip_ratio:.1%}, "
            f"against {chosen.kl:.5f} at {chosen.skip_ratio:.1%}"
        )
    lines += [f"note: {note}" for note in calibration.notes]
    return "\n".join([*lines, f"written to {calibration.path}"])


HELP = """\
KL: divergence from the dense model, nats per token; same top token: share of tokens with the same most likely next one;
perplexity: times the dense model's; checks: similarities computed per token. All of them, and the share of FFN blocks
skipped, are of tokens past the warm-up, teacher-forced.

An interrupted calibration goes on where it was when the same command is given again.

example:
  ffnskip calibrate model.gguf --text text.txt --skip-ratio 0.25"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    parser.add_argument("model", metavar="MODEL.gguf", help="model to calibrate; the first part, if it is split")
    parser.add_argument(
        "--text",
        nargs="+",
        required=True,
        metavar="FILE",
        help='text of the kind to be generated: plain, in UTF-8, or .jsonl with a "text" a line',
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--skip-ratio", type=float, metavar="R", help=f"share of the FFN blocks to skip (default: {SKIP_RATIO})"
    )
    target.add_argument("--max-kl", type=float, metavar="X", help="skip as much as costs no more KL divergence")
    parser.add_argument("--embed", action="store_true", help="write the profile into the model's file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the profile (default: MODEL.ffnskip.gguf beside the model)"
    )
    parser.add_argument(
        "--n-ctx",
        type=int,
        metavar="N",
        help=f"tokens of a chunk of text (default: {TYPICAL_N_CTX}, or the model's context if shorter)",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help="of the text (default: %(default)s)"
    )
    parser.add_argument(
        "--warm-up", type=int, default=30, metavar="N", help="generated tokens that run in full (default: %(default)s)"
    )
    parser.add_argument(
        "-s", "--seed", type=int, default=0, metavar="N", help="of the choice of held-out text (default: %(default)s)"
    )
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: all processors")
    parser.add_argument("-ngl", "--n-gpu-layers", type=int, default=-1, metavar="N", help="layers on the GPU; -1: all")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP


def run(args: argparse.Namespace) -> int:
    """Do what parsed `args` ask; 0 on success, 2 with one line on stderr otherwise, 130 when interrupted."""
    try:
        calibration = calibrate(
            args.model,
            args.text,
            skip_ratio=args.skip_ratio,
            max_kl=args.max_kl,
            output=args.output,
            embed=args.embed,
            n_ctx=args.n_ctx,
            max_tokens=args.max_tokens,
            warm_up_index=args.warm_up,
            seed=args.seed,
            n_threads=args.threads,
            n_gpu_layers=args.n_gpu_layers,
            progress=True,
        )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"ffnskip calibrate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ffnskip calibrate: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(report(calibration))
    return 0
