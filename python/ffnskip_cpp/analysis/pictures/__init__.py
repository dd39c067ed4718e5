"""The pictures of an analysis, each in a module of its own: what is measured, what is drawn, what is said about it."""

from __future__ import annotations

from collections.abc import Callable

from ..report import Section
from ..subject import Subject
from . import channels, heat_map, never_tripped, similarity, warm_up

__all__ = ["PICTURES"]

PICTURES: dict[str, Callable[[Subject], Section]] = {
    "similarity": similarity.section,
    "never_tripped": never_tripped.section,
    "warm_up": warm_up.section,
    "heat_map": heat_map.section,
    "channels": channels.section,
}
"""Those that need nothing but the model. `skip_ratio` measures speed as well, for which the model must be closed."""
