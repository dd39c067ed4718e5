"""Where programs in C and C++ find the library of this package."""

from __future__ import annotations

from pathlib import Path

from . import _core


def cmake_prefix() -> str:
    """What CMAKE_PREFIX_PATH needs for find_package(ffnskip), which finds llama.cpp in the same place.

    Headers are in ffnskip_cpp/include below it, libffnskip is in ffnskip_cpp/lib.
    """
    return str(Path(_core.__file__).parents[1])
