"""What the command lines of several `ffnskip` commands need of argparse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["list_of"]


def list_of(convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A `type=` for values with commas between them: "1,2" is (1, 2) for `list_of(int)`."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(convert(part) for part in text.split(","))

    parse.__name__ = f"list of {convert.__name__}"  # argparse puts it into its message
    return parse
