"""What the command lines of several `ffnskip` commands need of argparse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["list_of", "ranges"]


def list_of(convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A `type=` for values with commas between them: "1,2" is (1, 2) for `list_of(int)`."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(convert(part) for part in text.split(","))

    parse.__name__ = f"list of {convert.__name__}"  # argparse puts it into its message
    return parse


def ranges(layers: Iterable[int]) -> str:
    """ "3,5-7" of 3, 5, 6, 7, as --skip-layers takes it."""
    runs: list[list[int]] = []
    for il in sorted(set(layers)):
        if runs and runs[-1][1] == il - 1:
            runs[-1][1] = il
        else:
            runs.append([il, il])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
