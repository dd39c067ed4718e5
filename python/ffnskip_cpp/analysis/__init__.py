"""What `ffnskip analyze` is made of: what is `wanted`, the `subject` that is measured, a module for each of the
`pictures` in one `style`, and the `report`."""

from __future__ import annotations

from .analysis import Analysis, analyze

__all__ = ["Analysis", "analyze"]
