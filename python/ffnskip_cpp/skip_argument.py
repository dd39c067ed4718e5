"""What `Llama(skip=...)` takes, and keywords that were meant for it."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import numbers
import os
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args

import llama_cpp

from ._core import Profile
from .profile import read_profile
from .skip_config import PolicyName, SkipConfig

__all__ = ["DENSE", "Skip", "Wanted", "as_wanted", "check_keywords", "is_dense"]

Skip = Union[SkipConfig, Profile, float, str, "os.PathLike[str]", None]
Wanted = Union[SkipConfig, Profile, Literal["auto"], None]
"""None: a context without a callback, which is llama.cpp's own."""

DENSE = SkipConfig(policy="dense")

_OURS = {
    **{field.name: f"skip=SkipConfig({field.name}=...)" for field in dataclasses.fields(SkipConfig)},
    "skip_ratio": "skip=0.25, or skip=SkipConfig(skip_ratio=0.25)",
    **dict.fromkeys(("skip_config", "ffn_skip", "skip_policy"), "skip=SkipConfig(...)"),
    **dict.fromkeys(("profile", "skip_profile"), 'skip="model.ffnskip.gguf"'),
    "skip": "skip=...",
    "reuse": 'reuse="all" or reuse="full"',
}
_LLAMA_CPPS = frozenset(inspect.signature(llama_cpp.Llama).parameters)


def as_wanted(skip: Skip) -> Wanted:
    """Raises ValueError where it is none of what is taken, and what reading a profile raises."""
    if skip is None or isinstance(skip, (SkipConfig, Profile)):
        return skip
    if isinstance(skip, str) and skip == "auto":
        return "auto"
    if isinstance(skip, str) and skip in get_args(PolicyName):
        return SkipConfig(policy=skip)  # type: ignore[arg-type]
    if isinstance(skip, os.PathLike) or (isinstance(skip, str) and skip.endswith(".gguf")):
        return read_profile(skip)
    if isinstance(skip, numbers.Real) and not isinstance(skip, bool):
        return SkipConfig(skip_ratio=float(skip))
    raise ValueError(
        f"skip: {skip!r} is not known; give a SkipConfig, a ratio in [0, 1], 'channels' or another policy, a profile "
        "or its path (.gguf), 'auto' or None"
    )


def is_dense(wanted: Wanted) -> bool:
    """Nothing is skipped, and that was asked for."""
    return wanted is None or (isinstance(wanted, SkipConfig) and wanted.policy == "dense")


def check_keywords(keywords: Mapping[str, Any]) -> None:
    """llama_cpp.Llama passes over keywords that it does not know; those meant for this package must not be lost so.

    Raises:
        TypeError: A keyword is one of ours, or nearly; with the right spelling.
    """
    for name in keywords:
        if name in _LLAMA_CPPS:
            continue
        near = difflib.get_close_matches(name, _OURS, n=1, cutoff=0.8)
        if near:
            raise TypeError(f"Llama() has no argument {name!r}; give {_OURS[near[0]]}")
