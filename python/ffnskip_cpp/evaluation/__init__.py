"""What skipping costs on tasks: the paper's, and others, from their official files."""

from __future__ import annotations

from .evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
