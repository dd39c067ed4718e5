"""Why llama.cpp could not load a model, from its log: llama_cpp itself says "Failed to load model from file" alone.

with explained():
    llm = llama_cpp.Llama("model.gguf", verbose=False)
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
from collections.abc import Iterator
from typing import Any

import llama_cpp

__all__ = ["explained"]

GGML_LOG_LEVEL_ERROR = 4

_FAILED = re.compile(r"Failed to (load|create|get|initialize) ")  # what llama_cpp says for want of a reason
_SAYS_NOTHING = re.compile(r"failed to (load model|initialize the context)$|failed to load model from ")
_PREFIXES = re.compile(r"^(\w+: )?(error loading model: )?(error loading model (hyperparameters|vocabulary): )?")

_lock = threading.Lock()
_heard = threading.local()  # of the load that this thread is in: .lines, its errors, and .quiet
_n_listening = 0
_before: tuple[Any, Any] = (llama_cpp.llama_log_callback(), None)  # callback and its user data


@contextlib.contextmanager
def explained(*, quiet: bool = False) -> Iterator[None]:
    """Within the block, llama_cpp's errors about a model or context get llama.cpp's reason, in the same line.

    Args:
        quiet: llama_cpp prints nothing of llama.cpp's log. (With verbose=False it prints some of the warnings.) A
            callback of the user's own goes on hearing all.
    Raises:
        ValueError, RuntimeError: As llama_cpp does, with the reason.
    """
    outer = getattr(_heard, "lines", None), getattr(_heard, "quiet", False)
    _heard.lines, _heard.quiet = [], quiet
    try:
        with _listening():
            yield
    except (ValueError, RuntimeError) as error:
        reason = _reason(_heard.lines)
        if not reason or not _FAILED.match(str(error)):
            raise
        raise type(error)(f"{error}: {reason}") from error
    finally:
        _heard.lines, _heard.quiet = outer


def _reason(lines: list[str]) -> str:
    telling = [line for line in lines if line and not _SAYS_NOTHING.search(line)]
    return _PREFIXES.sub("", telling[-1]) if telling else ""


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    """llama.cpp has one log for all threads: the first to come takes it over, the last one gives it back."""
    global _n_listening, _before
    with _lock:
        if _n_listening == 0:
            _before = _current()
            llama_cpp.llama_log_set(_listen, ctypes.c_void_p(0))
        _n_listening += 1
    try:
        yield
    finally:
        with _lock:
            _n_listening -= 1
            if _n_listening == 0 and _address(_current()[0]) == _address(_listen):  # or someone has set it meanwhile
                llama_cpp.llama_log_set(*_before)


def _current() -> tuple[Any, Any]:
    callback, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(user_data))
    return callback, user_data


def _address(callback: Any) -> int | None:
    return ctypes.cast(callback, ctypes.c_void_p).value


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _listen(level: int, text: bytes, _user_data: Any) -> None:
    lines = getattr(_heard, "lines", None)
    if lines is not None and level == GGML_LOG_LEVEL_ERROR:
        lines.append(text.decode(errors="replace").strip())
    callback, user_data = _before
    if callback and not (getattr(_heard, "quiet", False) and _address(callback) == _PRINTS):
        callback(level, text, user_data)


_PRINTS = _address(_current()[0])  # llama_cpp's own callback, which it sets when it is imported
