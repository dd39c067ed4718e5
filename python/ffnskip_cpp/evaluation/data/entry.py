"""One entry of a file: an object of JSON, a row of a table; and what it must hold."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ...measure.text import encodable

__all__ = ["Entry"]

Element = TypeVar("Element")


@dataclass(frozen=True)
class Entry:
    """Fields by name. What reads them raises ValueError with the entry's place where a field is not what it must be."""

    fields: Mapping[str, Any]
    where: str
    """file:line."""

    def get(self, key: str) -> Any:
        """Whatever is there."""
        if key not in self.fields:
            there = ", ".join(map(repr, self.fields)) or "nothing"
            raise ValueError(f"{self.where}: no {key!r} in it; it has {reprlib.repr(there)[1:-1]}")
        return self.fields[key]

    def text(self, key: str) -> str:
        """More than blanks."""
        return _text(self.get(key), repr(key), self.where)

    def id(self, key: str) -> str:
        """An official one, which is a text or a whole number."""
        given = self.get(key)
        if isinstance(given, int) and not isinstance(given, bool):
            return str(given)
        return self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """In a list, at least one, and none of them blank."""
        return self._list(key, "texts", lambda given: _text(given, repr(key), self.where))

    def any_texts(self, key: str) -> tuple[str, ...]:
        """In a list, which may be empty, as may they."""
        return self._list(key, "texts", lambda given: encodable(given, repr(key), self.where), least=0)

    def entries(self, key: str) -> tuple[Entry, ...]:
        """Objects in a list, at least one."""
        return self._list(key, "objects", lambda given: self._inner(given, key))

    def entry(self, key: str) -> Entry:
        """An object."""
        return self._inner(self.get(key), key)

    def _list(self, key: str, of: str, read: Callable[[Any], Element], least: int = 1) -> tuple[Element, ...]:
        given = self.get(key)
        if not isinstance(given, list) or len(given) < least:
            raise ValueError(f"{self.where}: {key!r} is {reprlib.repr(given)}; a list of {of} is right")
        return tuple(map(read, given))

    def _inner(self, given: Any, key: str) -> Entry:
        if not isinstance(given, dict):
            raise ValueError(f"{self.where}: {key!r} holds {reprlib.repr(given)}; an object is right")
        return Entry(given, self.where)


def _text(given: Any, name: str, where: str) -> str:
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"{where}: {name} holds {reprlib.repr(given)}; a text that is not blank is right")
    return encodable(given, name, where)
