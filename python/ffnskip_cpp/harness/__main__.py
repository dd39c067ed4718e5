"""`python -m ffnskip_cpp.harness ...`: the harness's own command, which knows the model class `ffnskip`.

Releases of the harness up to 0.4.13 find no model class outside of their own package; later ones find it by its entry
point.
"""

from __future__ import annotations

import sys

from lm_eval.__main__ import cli_evaluate

from ..errors import ArgumentError, FfnSkipError
from .model import FfnSkipLM

__all__ = ["FfnSkipLM", "main"]


def main() -> int:
    """Returns: Exit status. What is wrong with the model or its arguments is one line on stderr; other errors are the
    harness's, or a task's, whose author wants to see where they come from."""
    try:
        cli_evaluate()
    except (ArgumentError, FfnSkipError, FileNotFoundError) as error:
        print(f"ffnskip: {error}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
