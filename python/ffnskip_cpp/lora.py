"""A LoRA adapter beside a model, for commands that measure the model as it will be used: FILE or FILE:SCALE."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LORA_HELP", "Adapter", "as_adapter"]

LORA_HELP = "LoRA adapter the model is used with, FILE:SCALE with another weight than 1"

HASHED_AT_ONCE = 2**20  # bytes


@dataclass(frozen=True)
class Adapter:
    path: str
    scale: float = 1.0

    def options(self) -> dict[str, Any]:
        """For `Llama`."""
        return {"lora_path": self.path, "lora_scale": self.scale}

    def sha256(self) -> str:
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while block := file.read(HASHED_AT_ONCE):
                digest.update(block)
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """What a profile says of it."""
        return {"lora": Path(self.path).name, "lora_scale": self.scale, "lora_sha256": self.sha256()}


def as_adapter(given: str | os.PathLike[str]) -> Adapter:
    """
    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The scale is no finite number.
    """
    text = os.fspath(given)
    path, colon, scale = text.rpartition(":")
    if os.path.isfile(text):
        return Adapter(text)
    if not colon or not os.path.isfile(path):
        raise FileNotFoundError(f"lora: {text}: no such file")
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"lora: {scale!r} in {text} is no scale; FILE:SCALE takes a number, such as 0.5")
    return Adapter(path, value)
