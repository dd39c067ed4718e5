"""The `ffnskip` program. A package of its own: who imports anything of `ffnskip_cpp` waits for llama_cpp and NumPy, and
Ctrl-C may come by then."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """`ffnskip_cpp.cli.main`, which says what it returns."""
    try:
        from ffnskip_cpp.cli import main as run
    except KeyboardInterrupt:
        print("ffnskip: interrupted", file=sys.stderr)
        return 130
    return run()
