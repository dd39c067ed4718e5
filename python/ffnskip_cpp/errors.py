"""What goes wrong, by kind. The C++ core raises these too; every message names the value and what would be right."""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "DecodeError",
    "FfnSkipError",
    "ProfileMismatchError",
    "TargetUnreachableError",
    "Unsupported",
    "UnsupportedModelError",
]


class ArgumentError(ValueError):
    """An argument that is wrong whatever the model. Commands end with status 2, as where an option is spelled wrong."""


class FfnSkipError(ValueError):
    """What was asked for can't be had from this model."""


class UnsupportedModelError(FfnSkipError):
    """The model or context has no FFN block that can be skipped, or one that is not understood."""


class ProfileMismatchError(FfnSkipError):
    """A skip profile of another model."""


class TargetUnreachableError(FfnSkipError):
    """No setting that was found reaches the target; the message says what the best one reaches."""


class DecodeError(RuntimeError):
    """llama.cpp did not decode a batch. `status`: what llama_decode returned; 1 where the context is full."""

    def __init__(self, message: str, status: int):
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


Unsupported = UnsupportedModelError
"""The name of older versions."""
