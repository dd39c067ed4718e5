"""Layers in few words."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ranges"]


def ranges(layers: Iterable[int]) -> str:
    """ "3,5-7" of 3, 5, 6, 7, as --skip-layers takes it."""
    runs: list[list[int]] = []
    for il in sorted(set(layers)):
        if runs and runs[-1][1] == il - 1:
            runs[-1][1] = il
        else:
            runs.append([il, il])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
