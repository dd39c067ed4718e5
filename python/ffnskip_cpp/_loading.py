"""Loads the extension, in the one way that leaves a single libllama in the process; to be imported before it."""

from __future__ import annotations

import os
import sys

# llama_cpp loads its libllama first, and the extension then binds to that one instead of a copy of its own.
import llama_cpp  # noqa: F401

# Functions are bound as they are called. A libllama of another version may lack some of them, and the extension can
# then still load, compare the versions and say which they are.
_flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_LAZY)
try:
    from . import _core  # noqa: F401
finally:
    sys.setdlopenflags(_flags)
