"""Input-adaptive feed-forward skipping (FFN-SkipLLM, arXiv:2404.03865) for llama.cpp.

>>> from ffnskip_cpp import Llama, demo_model
>>> llm = Llama(demo_model(), skip=0.25, verbose=False)
>>> for piece in llm.generate("Once", max_tokens=32):
...     print(piece, end="", flush=True)
"""

from __future__ import annotations

from . import _loading  # noqa: F401  before anything that needs the extension
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
