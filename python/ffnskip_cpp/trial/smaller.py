"""Smaller quantisations of the same model: made and measured where the file is small enough, quoted where it is not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .rows import Row

__all__ = ["MOST_BYTES", "QUOTED", "SOURCE", "Quoted", "candidates", "quoted", "smaller_files"]

MOST_BYTES = 2_000_000_000  # of a file that is quantised for a trial: larger ones take minutes
MOST_FILES = 2
LEAST_SAVING = 0.03  # of the file; a type may save nothing where a model's shape does not suit it


@dataclass(frozen=True)
class Quoted:
    """A row of llama.cpp's own table."""

    gib: float
    perplexity: float
    kl: float
    """From F16, nats per token."""


SOURCE = "Llama 3 8B, from llama.cpp's tools/perplexity/README.md (revision f364eb6f, Wikitext, no importance matrix)"
QUOTED = {
    "f16": Quoted(14.97, 6.233160, 0.000551),
    "q8_0": Quoted(7.96, 6.234284, 0.001355),
    "q6_k": Quoted(6.14, 6.253382, 0.005452),
    "q5_1": Quoted(5.65, 6.337857, 0.018045),
    "q5_k_m": Quoted(5.33, 6.288607, 0.010762),
    "q5_k_s": Quoted(5.21, 6.336598, 0.016595),
    "q5_0": Quoted(5.21, 6.363224, 0.022239),
    "q4_1": Quoted(4.78, 6.682737, 0.071683),
    "q4_k_m": Quoted(4.58, 6.407115, 0.031273),
    "q4_k_s": Quoted(4.37, 6.500529, 0.043136),
    "q4_0": Quoted(4.34, 6.700147, 0.071940),
    "q3_k_l": Quoted(4.03, 6.787876, 0.087176),
    "q3_k_m": Quoted(3.74, 6.888498, 0.101913),
    "q3_k_s": Quoted(3.41, 7.863786, 0.228217),
    "q2_k": Quoted(2.96, 9.751568, 0.445132),
}
GIB_PER_BIT = QUOTED["f16"].gib / 16

# What people choose among, from large to small.
LADDER = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")


def candidates(type_name: str, bits_per_weight: float) -> list[str]:
    """The types of LADDER that are smaller than this one, the largest first.

    Args:
        type_name: "q4_k_m", say.
        bits_per_weight: Of the file; decides where the type is not in the table.
    """
    own = QUOTED[type_name].gib if type_name in QUOTED else bits_per_weight * GIB_PER_BIT
    return [name for name in LADDER if QUOTED[name].gib <= own * (1 - LEAST_SAVING)]


def smaller_files(
    model: Path, n_bytes: int, names: Sequence[str], folder: Path, threads: int, is_over: Callable[[], bool]
) -> Iterator[tuple[str, Path]]:
    """Writes files of the next smaller types into `folder`, as long as there is time; one at least.

    Quantised again from the user's file, of `n_bytes`, which is a little worse than from F16.
    """
    from ..gguf_file.quantization import quantize  # a command too, imported only when it is used

    found = 0
    for name in names:
        if found == MOST_FILES or (found and is_over()):
            return
        path = folder / f"{name}.gguf"
        quantize(model, path, name, n_threads=threads, progress=False, allow_requantize=True)
        if path.stat().st_size <= n_bytes * (1 - LEAST_SAVING):
            found += 1
            yield name, path
        else:
            path.unlink()


def quoted(type_name: str, bits_per_weight: float) -> list[Row]:
    """Of the next smaller types: size, the KL divergence it adds and its perplexity over the own one's, after
    llama.cpp's table; speed in proportion to the size. The KL divergences there are from F16; what they differ by
    stands for that between two types."""
    names = candidates(type_name, bits_per_weight)
    own = QUOTED.get(type_name) or min(QUOTED.values(), key=lambda row: abs(row.gib - bits_per_weight * GIB_PER_BIT))
    return [
        Row(
            name,
            "quantisation",
            size=row.gib / own.gib,
            kl=max(row.kl - own.kl, 0.0),
            perplexity_ratio=row.perplexity / own.perplexity,
            speed_up=own.gib / row.gib,
            quoted=True,
        )
        for name, row in itertools.islice(((name, QUOTED[name]) for name in names), MOST_FILES)
    ]
