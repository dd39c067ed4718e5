"""How much memory there is to take."""

from __future__ import annotations

import math
import re
from pathlib import Path

__all__ = ["available_memory"]


def available_memory() -> float:
    """Bytes that can be taken; infinite where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    match = re.search(r"MemAvailable: *(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return int(match.group(1)) * 1024 if match else math.inf
