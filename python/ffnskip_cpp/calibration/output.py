"""The profile that a calibration writes: where, and what is in it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..llama import Llama
from ..measure.text import Text
from ..profile import PathLike, check_profile_output, embed_profile, profile_path, write_profile
from .choice import Row

__all__ = ["Destination", "summary", "text_digest"]


@dataclass(frozen=True)
class Destination:
    """Where a profile goes."""

    path: Path
    """A file of its own; of a profile that is embedded, where it would lie."""
    model: Path | None
    """The model it is embedded in."""
    note: str | None
    """What is to be said about it."""

    @classmethod
    def of(cls, model: Path, output: PathLike | None, embed: bool) -> Destination:
        """Checked before there is anything to lose.

        Raises:
            ValueError: Two places, or a file that is no profile.
            PermissionError: It can't be written.
        """
        if embed and output is not None:
            raise ValueError("embed and output: the profile goes into the model's file or into one of its own")
        usual = profile_path(model)
        path = Path(output) if output is not None else usual
        if path.exists():
            check_profile_output(path)
        if _can_write(path):
            hides = embed and usual.exists()
            note = f"{usual} goes before what is in the model; remove it" if hides else None
            return cls(path, model if embed else None, note)
        if output is None and not embed and _can_write(elsewhere := Path(usual.name)):
            note = (
                f"{usual.parent} can't be written; the profile is {elsewhere.absolute()}, where it is not found by "
                "itself: name it with --profile or skip=, or choose a place with -o"
            )
            return cls(elsewhere, None, note)
        raise PermissionError(f"{path}: can't be written" + ("" if embed or output else "; choose a place with -o"))

    @property
    def written(self) -> Path:
        return self.model or self.path

    @property
    def cache(self) -> Path:
        return self.path.with_name(self.path.name + ".progress")

    def write(self, llm: Llama, row: Row, learnt: Mapping[str, Any]) -> None:
        """The settings of a row, and what else was learnt."""
        with llm.skipping(row.config):
            resolved = llm.resolved
        if self.model is None:
            write_profile(self.path, llm.fingerprint, row.config, resolved, learnt)
            return
        with tempfile.TemporaryDirectory() as folder:
            profile = Path(folder) / "profile.gguf"
            write_profile(profile, llm.fingerprint, row.config, resolved, learnt)
            embed_profile(self.model, profile)


def _can_write(path: Path) -> bool:
    return path.absolute().parent.is_dir() and os.access(path.absolute().parent, os.W_OK)


def text_digest(texts: Sequence[Text]) -> str:
    plain = (text if isinstance(text, str) else json.dumps(text.messages) for text in texts)
    return hashlib.sha256("\0".join(plain).encode("utf-8")).hexdigest()


def summary(row: Row) -> dict[str, Any]:
    """A row as profiles list it."""
    numbers = {name: value for name, value in vars(row).items() if isinstance(value, (int, float))}
    return {"policy": row.policy, **numbers}
