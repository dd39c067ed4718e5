"""What is compared: ways to skip, at a ratio each, profiles, and other files of the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from ..errors import ArgumentError
from ..gguf_file.header import Header, read_header
from ..profile import read_profile
from ..skip_config import SkipConfig

__all__ = ["DENSE", "RATIO_METHODS", "Asked", "Method", "asked_methods"]

PathLike = Union[str, "os.PathLike[str]"]

DENSE = "dense"
RATIO_METHODS = ("ffn_skip", "random", "random_adaptive_region", "short_gpt", "skip_decode", "channels")
"""Each is crossed with the skip ratios."""

WHOLE_LAYERS = ("short_gpt", "skip_decode")
"""Those that have no warm-up."""

PROFILE_ENDINGS = (".ffnskip.gguf", ".gguf")
VOCABULARY = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens")


@dataclass(frozen=True)
class Method:
    """One of them, as it is run."""

    name: str
    """"dense", "ffn_skip", "calibrated:NAME" of a profile, "file:NAME" of another model file."""
    label: str
    """For tables: "ffn_skip 25 %"."""
    ratio: float | None
    """That was asked for; None where there is none to ask for."""
    skip: SkipConfig | None
    """None: nothing is skipped."""
    model: Path | None = None
    """Another file than the user's."""


@dataclass(frozen=True)
class Asked:
    """A method as it was asked for; what it skips depends on the model, and perhaps on a text (making.py)."""

    name: str
    ratio: float | None = None
    path: Path | None = None
    """Of a profile, or of another model file."""
    skip: SkipConfig | None = None
    """What a profile says."""

    @property
    def label(self) -> str:
        if self.ratio is not None:
            return f"{self.name} {100 * self.ratio:.3g} %"
        return self.name.replace(":", " ") if self.skips else self.name.rpartition(":")[2]

    @property
    def has_ratio(self) -> bool:
        return self.name in RATIO_METHODS

    @property
    def is_file(self) -> bool:
        """Another model file."""
        return self.path is not None and self.skip is None

    @property
    def skips(self) -> bool:
        return self.name != DENSE and not self.is_file

    @property
    def has_warm_up(self) -> bool:
        if self.skip is not None:
            return self.skip.policy != "skip_decode" and not self.skip.every_row
        return self.skips and self.name not in WHOLE_LAYERS


def asked_methods(names: Sequence[PathLike], ratios: Sequence[float] | None, model: Path) -> list[Asked]:
    """What the user named, each once for each ratio if it takes one. Dense comes first, named or not: it is what all
    others are compared with.

    Args:
        names: "dense", those of `RATIO_METHODS`, and files: profiles, and other files of the model.
        ratios: None: the default of each method.
        model: The user's file.
    Raises:
        ArgumentError: A name or ratio that is wrong whatever the model; two methods that would be called the same.
        FileNotFoundError, ValueError: A file is missing or damaged, or has another vocabulary than the model.
    """
    if not names:
        raise ArgumentError(f"method: none is named; there are {_known()}")
    for ratio in ratios or ():
        if not 0 < ratio < 1:
            raise ArgumentError(f"skip-ratio: {ratio:g} is outside (0, 1)")
    if ratios is not None and len(set(ratios)) < max(len(ratios), 1):
        raise ArgumentError("skip-ratio: the list is empty, or has one of them twice")
    asked = [Asked(DENSE)]
    for name in names:
        if name in RATIO_METHODS:
            asked += [Asked(str(name), ratio) for ratio in ratios or (_default(str(name)),)]
        elif name != DENSE:
            asked.append(_of_file(name, model))
    if ratios is not None and not any(method.has_ratio for method in asked):
        raise ArgumentError(f"skip-ratio: none of the methods takes one; those that do: {', '.join(RATIO_METHODS)}")
    for i, method in enumerate(asked):
        if any((method.name, method.ratio) == (other.name, other.ratio) for other in asked[:i]):
            raise ArgumentError(f"method: two are called {method.label}; give the files other names")
    return asked


def _known() -> str:
    return f"{DENSE}, {', '.join(RATIO_METHODS)}, and files: NAME.ffnskip.gguf of a profile, NAME.gguf of another model"


def _default(name: str) -> float:
    return SkipConfig(name if name == "channels" else "ffn_skip").ratio  # type: ignore[arg-type]


def _of_file(name: PathLike, model: Path) -> Asked:
    path = Path(name)
    if not path.exists() and not path.name.endswith(".gguf"):
        raise ArgumentError(f"method: {os.fspath(name)!r} is none of {_known()}")
    header = read_header(path)
    itself = path.samefile(model)
    if not header.tensors or itself:
        if itself and not any(key.startswith("ffnskip.") for key in header.metadata):
            raise ArgumentError(f"method: {path} is the model itself, and has no profile inside; that is {DENSE}")
        return Asked(f"calibrated:{_stem(path)}", path=path, skip=read_profile(path).config)
    _check_vocabulary(header, read_header(model))
    return Asked(f"file:{_stem(path)}", path=path)


def _stem(path: Path) -> str:
    ending = next((ending for ending in PROFILE_ENDINGS if path.name.endswith(ending)), "")
    return path.name.removesuffix(ending)


def _check_vocabulary(header: Header, model: Header) -> None:
    """The same tokens, or no text is the same to both."""
    own, others = ({e.key: e.raw for e in h.entries if e.key in VOCABULARY} for h in (model, header))
    if own != others:
        raise ValueError(
            f"method: {header.path} has another vocabulary than {model.path.name}; give a file of its model"
        )
