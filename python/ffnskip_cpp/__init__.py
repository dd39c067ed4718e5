"""Input-adaptive feed-forward skipping (FFN-SkipLLM, arXiv:2404.03865) for llama.cpp.

>>> from ffnskip_cpp import Llama, demo_model
>>> llm = Llama(demo_model(), skip=0.25, verbose=False)
>>> for piece in llm.generate("Once", max_tokens=32):
...     print(piece, end="", flush=True)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _loading  # noqa: F401  before anything that needs the extension
from ._core import Profile, __version__
from .cmake import cmake_prefix
from .demo import demo_model
from .errors import (
    DecodeError,
    FfnSkipError,
    ProfileMismatchError,
    TargetUnreachableError,
    Unsupported,
    UnsupportedModelError,
)
from .llama import Llama
from .profile import read_profile
from .skip_config import SkipConfig
from .stats import SkipStats, Trace

if TYPE_CHECKING:
    from .analysis.analysis import Analysis, analyze
    from .benchmark.benchmark import bench
    from .benchmark.rows import Benchmark, BenchmarkRow
    from .calibration.calibration import Calibration, calibrate
    from .conversion.conversion import convert
    from .gguf_file.model_file import ModelFile
    from .gguf_file.quantization import quantize
    from .inspection.inspection import inspect
    from .inspection.report import Inspection
    from .trial.trial import Trial
    from .trial.work import TrialInterrupted, try_model

__all__ = [
    "Analysis",
    "Benchmark",
    "BenchmarkRow",
    "Calibration",
    "DecodeError",
    "FfnSkipError",
    "Inspection",
    "Llama",
    "ModelFile",
    "Profile",
    "ProfileMismatchError",
    "SkipConfig",
    "SkipStats",
    "TargetUnreachableError",
    "Trace",
    "Trial",
    "TrialInterrupted",
    "Unsupported",
    "UnsupportedModelError",
    "__version__",
    "analyze",
    "bench",
    "calibrate",
    "cmake_prefix",
    "convert",
    "demo_model",
    "inspect",
    "quantize",
    "read_profile",
    "try_model",
]

# What a program that only generates does not wait for: imported when it is asked for.
_LAZY = {
    "Analysis": "analysis.analysis",
    "Benchmark": "benchmark.rows",
    "BenchmarkRow": "benchmark.rows",
    "Calibration": "calibration.calibration",
    "Inspection": "inspection.report",
    "ModelFile": "gguf_file.model_file",
    "Trial": "trial.trial",
    "TrialInterrupted": "trial.work",
    "analyze": "analysis.analysis",
    "bench": "benchmark.benchmark",
    "calibrate": "calibration.calibration",
    "convert": "conversion.conversion",
    "inspect": "inspection.inspection",
    "quantize": "gguf_file.quantization",
    "try_model": "trial.work",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
