"""What `ffnskip bench` is made of: `options` says what to measure, `runners` decode, `timing` takes the times, `rows`
are the result, and `report` prints it."""

from __future__ import annotations

from .benchmark import bench
from .rows import Benchmark, BenchmarkRow

__all__ = ["Benchmark", "BenchmarkRow", "bench"]
