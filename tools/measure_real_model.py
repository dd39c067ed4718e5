"""What skipping costs a real model and what it saves: the tables of docs/real-models.md.

    python tools/measure_real_model.py smollm2.gguf --text c4.txt -t 2

Settings are calibrated on the first part of the text, with `ffnskip_cpp.calibrate`, and everything is measured on the
rest: quality past the warm-up, teacher-forced; speed in one process, all in turn token by token. Smaller quantisations
are made from the same file.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ffnskip_cpp import Llama, SkipConfig, calibrate, quantize, read_profile
from ffnskip_cpp.calibration.report import describe
from ffnskip_cpp.measure.model import open_model
from ffnskip_cpp.measure.text import N_CTX, read_texts
from ffnskip_cpp.table import markdown
from ffnskip_cpp.trial.quality import Measured, measure_quality
from ffnskip_cpp.trial.speed import Speed, measure_speed
from ffnskip_cpp.trial.texts import users_text

CALIBRATED_ON = 0.7  # of the text
WARM_UP = 30
COLUMNS = ("", "FFN blocks skipped", "speed-up", "KL divergence", "perplexity", "same top token")
DENSE = ("dense", "", "1.00", "0", "x1.00", "100 %")


def main() -> None:
    args = arguments()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        subjects: dict[str, SkipConfig | Llama] = {}
        calibration, rest = split(args.text, folder)
        opened = {"n_threads": args.threads, "n_gpu_layers": 0}
        for ratio in args.skip_ratio:
            label = f"{100 * ratio:g} %"
            subjects[f"{label}, calibrated"] = calibrated(args, calibration, ratio, folder)
            subjects[f"{label}, Algorithm 1 with the paper's values"] = SkipConfig(skip_ratio=ratio)
            subjects[f"{label}, random FFN blocks"] = SkipConfig("random", skip_ratio=ratio)
        for name in args.types:
            path = folder / f"{name}.gguf"
            written = quantize(args.model, path, name, allow_requantize=True, n_threads=args.threads)
            saved = 1 - written.n_bytes / Path(args.model).stat().st_size
            subjects[f"{name.upper()}, {saved:.0%} smaller"] = stack.enter_context(open_model(path, N_CTX, **opened))
        llm = stack.enter_context(open_model(args.model, N_CTX, **opened))
        chunks = users_text(llm, [rest], WARM_UP, N_CTX, args.tokens)
        quality = last(measure_quality(llm, list(subjects.values()), chunks, WARM_UP), "quality", len(chunks))
        n_tokens = sum(map(len, chunks))
        tokens = [token for chunk in chunks for token in chunk.tokens]
        prompt, timed = tokens[:WARM_UP], tokens[WARM_UP : WARM_UP + args.speed]
        in_turn = measure_speed(llm, [None, *subjects.values()], prompt, timed, args.threads)
        speed = last(in_turn, "speed", args.speed - 1)
        print(f"{Path(args.model).name}: {n_tokens} tokens of text, {quality[0].quality.n_rows} compared\n")
        rows = [row(*of_one, len(llm.ffn_map)) for of_one in zip(subjects, quality, speed[1:])]
        print(markdown(COLUMNS, [DENSE, *rows], left=COLUMNS[:1]))
        for name, config in subjects.items():
            if name.endswith("calibrated"):
                print(f"\n{name}: {describe(config)}")


def last(results: Iterator[list[Any]], what: str, n: int) -> list[Any]:
    for found in tqdm(results, what, total=n):
        result = found
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("--text", required=True, metavar="FILE", help="plain text, or .jsonl with a text a line")
    parser.add_argument("--skip-ratio", type=float, nargs="+", default=[0.1, 0.25], metavar="R")
    parser.add_argument("--types", nargs="*", default=["q4_0", "q3_k_m"], help="smaller quantisations (default: two)")
    parser.add_argument("--effort", default="normal", help="of each calibration: quick, normal, thorough, or seconds")
    parser.add_argument("--tokens", type=int, default=8_000, metavar="N", help="that quality is measured on")
    parser.add_argument("--speed", type=int, default=100, metavar="N", help="tokens timed in turn")
    parser.add_argument("--profiles", nargs="*", metavar="FILE", help="made before, one of each ratio; not made anew")
    parser.add_argument("-t", "--threads", type=int, default=2, metavar="N")
    args = parser.parse_args()
    if args.profiles and len(args.profiles) != len(args.skip_ratio):
        parser.error("--profiles: give one of each ratio")
    return args


def split(path: str, folder: Path) -> tuple[Path, Path]:
    """The text's first part and the rest, in files; cut at the end of a paragraph."""
    text = "\n\n".join(read_texts([path]))
    cut = text.find("\n", int(CALIBRATED_ON * len(text)))
    parts = text[:cut], text[cut:]
    for name, part in zip(("calibration.txt", "rest.txt"), parts):
        (folder / name).write_text(part, encoding="utf-8")
    return folder / "calibration.txt", folder / "rest.txt"


def calibrated(args: argparse.Namespace, text: Path, ratio: float, folder: Path) -> SkipConfig:
    if args.profiles:
        return read_profile(args.profiles[args.skip_ratio.index(ratio)]).config
    calibration = calibrate(
        args.model,
        [text],
        skip_ratio=ratio,
        policies=["blocks"],
        output=folder / f"{ratio:g}.ffnskip.gguf",
        effort=float(args.effort) if args.effort.isdigit() else args.effort,
        n_threads=args.threads,
        progress=None,
    )
    return calibration.chosen.config


def row(name: str, measured: Measured, speed: Speed, n_ffn: int) -> list[str]:
    quality = measured.quality
    median, lower, upper = speed.speed_up
    ratio = measured.n_skipped / quality.n_rows / n_ffn
    return [
        name,
        f"{ratio:.1%}" if ratio else "",
        f"{median:.2f} [{lower:.2f}, {upper:.2f}]",
        f"{quality.kl:.3g} ± {quality.kl_error:.2g}",
        f"x{quality.perplexity_ratio:.2f}",
        f"{quality.top1_agreement:.0%}",
    ]


if __name__ == "__main__":
    main()
