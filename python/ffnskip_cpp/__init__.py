"""Input-adaptive feed-forward skipping (FFN-SkipLLM, arXiv:2404.03865) for llama.cpp.

>>> from ffnskip_cpp import Llama, demo_model
>>> llm = Llama(demo_model(), skip=0.25, verbose=False)
>>> for piece in llm.generate("Once", max_tokens=32):
...     print(piece, end="", flush=True)
"""

from __future__ import annotations

from . import _loading  # noqa: F401  before anything that needs the extension
from ._core import Profile, SkipStats, __version__
from .calibration.calibrate import calibrate
from .demo import demo_model
from .errors import (
    DecodeError,
    FfnSkipError,
    ProfileMismatchError,
    TargetUnreachableError,
    Unsupported,
    UnsupportedModelError,
)
from .llama import Llama, Trace
from .profile import read_profile
from .skip_config import SkipConfig
from .trial.trial import Trial
from .trial.work import try_model

__all__ = [
    "DecodeError",
    "FfnSkipError",
    "Llama",
    "Profile",
    "ProfileMismatchError",
    "SkipConfig",
    "SkipStats",
    "TargetUnreachableError",
    "Trace",
    "Trial",
    "Unsupported",
    "UnsupportedModelError",
    "__version__",
    "calibrate",
    "demo_model",
    "read_profile",
    "try_model",
]
