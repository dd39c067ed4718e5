"""JSON: an object per line, or a list of objects within one document."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...measure.text import decoded
from .entry import Entry

__all__ = ["entries_in", "entries_of_lines"]

BLANKS = re.compile(r"[ \t\n\r]*")


def entries_of_lines(path: Path) -> list[Entry]:
    """Of a .jsonl file, at least one; blank lines are passed over."""
    # Not splitlines(): a JSON string may hold other line separators, such as U+2028, as they are.
    lines = enumerate(decoded(path, path.read_bytes()).split("\n"), start=1)
    found = [Entry(_object(line, f"{path}:{number}"), f"{path}:{number}") for number, line in lines if line.strip()]
    if not found:
        raise ValueError(f"{path}: the file is empty; a JSON object per line is right")
    return found


def entries_in(path: Path, keys: Sequence[str]) -> tuple[str, list[Entry]]:
    """Of a document that is one object, the list under the first of `keys` that is there, and that key.

    Raises:
        ValueError: It is no such document; names the line.
    """
    text = decoded(path, path.read_bytes())
    if not text.strip():
        raise ValueError(f"{path}: the file is empty; a JSON object with {' or '.join(map(repr, keys))} is right")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is no JSONDecodeError
        raise ValueError(f"{path}: not JSON that can be read: {error}") from error
    key = next((key for key in keys if isinstance(document, dict) and key in document), None)
    if key is None:
        raise ValueError(f"{path}:1: no object with {' or '.join(map(repr, keys))}, a list of questions")
    if not isinstance(document[key], list) or not document[key]:
        raise ValueError(
            f"{path}:1: {key!r} is {reprlib.repr(document[key])}; a list of objects, one at least, is right"
        )
    where = [f"{path}:{line}" for line in _lines(text, key)]
    for value, place in zip(document[key], where):
        _check(value, place)
    return key, [Entry(value, place) for value, place in zip(document[key], where)]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    return _check(value, where)


def _check(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {reprlib.repr(value)} is no JSON object")
    return value


def _lines(text: str, key: str) -> Iterator[int]:
    """Line that each element of the list under `key` begins in. `text` is valid, and has such a list."""
    decode = json.JSONDecoder().raw_decode
    at = _behind(text, 0, "{")
    while True:
        name, at = decode(text, at)
        at = _behind(text, at, ":")
        if name == key:
            break
        _, at = decode(text, at)
        at = _behind(text, at, ",")
    at, line, counted = _behind(text, at, "["), 1, 0
    while True:
        line, counted = line + text.count("\n", counted, at), at
        yield line
        _, at = decode(text, at)
        if text[_blanks(text, at)] == "]":
            return
        at = _behind(text, at, ",")


def _behind(text: str, at: int, mark: str) -> int:
    """Where what follows `mark`, the next thing in the text but for blanks, begins."""
    return _blanks(text, _blanks(text, at) + len(mark))


def _blanks(text: str, at: int) -> int:
    found = BLANKS.match(text, at)
    return at if found is None else found.end()
