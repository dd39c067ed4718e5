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
from ._core import Block, BlockWeight, Profile, RowKind, __version__
from .batches import Completion
from .cmake import cmake_prefix
from .demo import demo_model
from .devices import add_rpc_servers
from .drafts import DraftStats, SkippingDraft
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
from .scoring import Score
from .skip_config import ResolvedConfig, SkipConfig
from .stats import SkipStats, Trace

if TYPE_CHECKING:
    from .analysis import Analysis, analyze
    from .benchmark import Benchmark, BenchmarkRow, bench
    from .calibration import Calibration, calibrate
    from .channels import ChannelsFile, write_channels
    from .conversion import convert
    from .evaluation import Evaluation, evaluate
    from .evaluation.judge.judge import judge
    from .evaluation.judge.verdicts import Judgement
    from .evaluation.report import EvaluationReport, report_evaluation
    from .gguf_file.model_file import ModelFile
    from .gguf_file.quantization import quantize
    from .inspection import Inspection, inspect
    from .trial import Trial, TrialInterrupted, try_model


__all__ = [
    "Analysis",
    "Benchmark",
    "BenchmarkRow",
    "Block",
    "BlockWeight",
    "Calibration",
    "ChannelsFile",
    "Completion",
    "DecodeError",
    "DraftStats",
    "Evaluation",
    "EvaluationReport",
    "FfnSkipError",
    "Inspection",
    "Judgement",
    "Llama",
    "ModelFile",
    "Profile",
    "ProfileMismatchError",
    "ResolvedConfig",
    "RowKind",
    "Score",
    "SkipConfig",
    "SkipStats",
    "SkippingDraft",
    "TargetUnreachableError",
    "Trace",
    "Trial",
    "TrialInterrupted",
    "Unsupported",
    "UnsupportedModelError",
    "__version__",
    "add_rpc_servers",
    "analyze",
    "bench",
    "calibrate",
    "cmake_prefix",
    "convert",
    "demo_model",
    "evaluate",
    "inspect",
    "judge",
    "quantize",
    "read_profile",
    "report_evaluation",
    "try_model",
    "write_channels",
]

# What a program that only generates does not wait for: imported when it is asked for.
_LAZY = {
    "Analysis": "analysis",
    "Benchmark": "benchmark",
    "BenchmarkRow": "benchmark",
    "Calibration": "calibration",
    "ChannelsFile": "channels",
    "Evaluation": "evaluation",
    "EvaluationReport": "evaluation.report",
    "Inspection": "inspection",
    "Judgement": "evaluation.judge.verdicts",
    "ModelFile": "gguf_file.model_file",
    "Trial": "trial",
    "TrialInterrupted": "trial",
    "analyze": "analysis",
    "bench": "benchmark",
    "calibrate": "calibration",
    "convert": "conversion",
    "evaluate": "evaluation",
    "inspect": "inspection",
    "judge": "evaluation.judge.judge",
    "quantize": "gguf_file.quantization",
    "report_evaluation": "evaluation.report",
    "try_model": "trial",
    "write_channels": "channels",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
