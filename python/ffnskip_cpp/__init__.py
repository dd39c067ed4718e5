"""Input-adaptive feed-forward skipping (FFN-SkipLLM, arXiv:2404.03865) for llama.cpp.

>>> from ffnskip_cpp import Llama, demo_model
>>> llm = Llama(demo_model(), skip=0.25, verbose=False)
>>> for piece in llm.generate("Once", max_tokens=32):
...     print(piece, end="", flush=True)
"""

from __future__ import annotations

# First of all: llama_cpp loads its libllama, and the extension then binds to that one instead of a copy of its own.
import llama_cpp as _llama_cpp  # noqa: F401

from ._core import Profile, SkipConfig, SkipStats, Unsupported, __version__
from .calibration.calibrate import calibrate
from .demo import demo_model
from .llama import Llama, Trace
from .profile import read_profile
from .trial.trial import Trial
from .trial.work import try_model

__all__ = [
    "Llama",
    "Profile",
    "SkipConfig",
    "SkipStats",
    "Trace",
    "Trial",
    "Unsupported",
    "__version__",
    "calibrate",
    "demo_model",
    "read_profile",
    "try_model",
]
