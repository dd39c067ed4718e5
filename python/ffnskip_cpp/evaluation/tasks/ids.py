"""Names of items: the official ones, or, where a file has none, one that follows from what an item says."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from .base import Item

__all__ = ["content_id", "distinct", "numbered"]

ItemT = TypeVar("ItemT", bound=Item)

DIGITS = 12  # of a hash: among a million items two are alike once in 500 files


def content_id(*texts: str) -> str:
    """The same wherever and whenever these texts are read."""
    return hashlib.sha256("\0".join(texts).encode("utf-8")).hexdigest()[:DIGITS]


def distinct(items: Iterable[ItemT]) -> list[ItemT]:
    """The items. ValueError where two have the same official id."""
    found: dict[str, ItemT] = {}
    for item in items:
        if item.id in found:
            raise ValueError(
                f"{item.where}: the id {item.id!r} is that of {found[item.id].where} too; each has its own"
            )
        found[item.id] = item
    return list(found.values())


def numbered(items: Iterable[ItemT]) -> list[ItemT]:
    """The items; of those that say the same, the second is "...#2"."""
    seen: Counter[str] = Counter()
    result = []
    for item in items:
        seen[item.id] += 1
        result.append(item if seen[item.id] == 1 else replace(item, id=f"{item.id}#{seen[item.id]}"))
    return result
