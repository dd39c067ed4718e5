"""Files that were written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..plain import plain

__all__ = ["ModelFile", "WrittenFile"]


class WrittenFile(os.PathLike[str]):
    """A dataclass that stands for its path wherever one is taken."""

    path: Path

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return os.fspath(self.path)

    def as_dict(self) -> dict[str, Any]:
        """Of plain values."""
        return plain(self)  # type: ignore[no-any-return]


@dataclass(frozen=True, repr=False)
class ModelFile(WrittenFile):
    """What `convert` and `quantize` return. It stands for its path wherever one is taken: `Llama(str(model_file))`."""

    path: Path
    type: str
    """The type of most of its matrices, such as "q4_k_m"."""
    n_bytes: int

    def __repr__(self) -> str:
        return f"{self.path}: {self.n_bytes / 1e6:.1f} MB"
