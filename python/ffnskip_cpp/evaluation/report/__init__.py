"""What `ffnskip report` is made of. `reading` finds `results` in folders; `comparison` tests them against dense, for
cells of `tables`; `overview`, `paper_tables`, `paper_figures` and `task_tables` put these into `sections`, with
`pictures`; `paper` has the paper's own numbers, and `report` writes it all."""

from __future__ import annotations

from .report import EvaluationReport, report_evaluation

__all__ = ["EvaluationReport", "report_evaluation"]
