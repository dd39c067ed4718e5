"""JSON settings of a checkpoint, read with errors that name the file, the key and what was expected."""

from __future__ import annotations

import contextlib
import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Json = dict[str, Any]


def read_json(path: Path, *, required: bool = False) -> Json:
    """The object in `path`; an absent optional file is an empty object.

    Raises:
        FileNotFoundError: The file is required and absent.
        ValueError: The file holds no JSON object.
    """
    if not path.is_file():
        if required:
            raise FileNotFoundError(f"{path.parent}: no {path.name}; expected a Hugging Face checkpoint directory")
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a surrogate pair is JSON, and no text
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError, UnicodeEncodeError
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


@contextlib.contextmanager
def expected_form(what: str) -> Iterator[None]:
    """Files come from outside: an object where a list should be, or an absent key, is bad input and no bug."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{what}: not in the expected form ({type(error).__name__}: {error})") from error


def first_of(settings: Json, keys: tuple[str, ...]) -> tuple[str, Any]:
    """The first of `keys` that is set, with its value; the first key and None where none is."""
    for key in keys:
        if settings.get(key) is not None:
            return key, settings[key]
    return keys[0], None


def whole(settings: Json, *keys: str, default: int | None = None, most: int = 2**31 - 1) -> int:
    """A positive integer setting, at most `most`, under the first of `keys` that is set.

    Raises:
        ValueError: It is absent without a default, no positive integer, or too large.
    """
    key, value = first_of(settings, keys)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"config.json: {key} is {value!r}; expected a positive integer")
    if value > most:
        raise ValueError(f"config.json: {key} is {value}; expected {most} at most")
    return value


def number(settings: Json, *keys: str, default: float | None = None) -> float:
    """A positive finite setting, under the first of `keys` that is set.

    Raises:
        ValueError: It is absent without a default, or no positive number.
    """
    key, value = first_of(settings, keys)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"config.json: {key} is {value!r}; expected a positive number")
    return float(value)


def require(settings: Json, key: str, expected: Any, why: str) -> None:
    """Refuse a setting that llama.cpp has no counterpart for; an absent one is as expected.

    Raises:
        ValueError: `key` is set to something else; `why` says what llama.cpp does.
    """
    value = settings.get(key)
    if value is not None and value != expected:
        raise ValueError(f"config.json: {key} is {json.dumps(value)}; {why}")
