"""Quantise a GGUF file with llama.cpp's own llama_model_quantize.

    from ffnskip_cpp import quantize
    quantize("model-f16.gguf", "model-q4_k_m.gguf", "q4_k_m")

llama.cpp runs in a child process: an assertion in it, or Ctrl-C, ends the child and not the caller. The result is
written to a temporary file and renamed when complete.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..files import PathLike, whole_file
from ..progress import progress_bar
from ..threads import check_threads
from .file_type import find_type, known_types
from .header import read_headers
from .header_check import check_header
from .imatrix import check_imatrix, use_imatrix
from .model_file import ModelFile

__all__ = ["quantize"]

# What the child executes. It takes over this process's sys.path, so that both load the same packages.
_CHILD = """
import json, sys
request = json.loads(sys.argv[1])
sys.path[:] = request["sys_path"]
from ffnskip_cpp.gguf_file.quantization import _quantize_here
sys.exit(_quantize_here(**request["arguments"]))
"""

_PROGRESS = re.compile(r"\[ *(\d+)/ *(\d+)\]")  # llama.cpp logs [   3/ 291] and the tensor's name
_FAILURE = "failed to quantize: "  # llama.cpp logs the reason after this


def quantize(
    src: PathLike,
    dst: PathLike,
    type: str,
    *,
    allow_requantize: bool = False,
    imatrix: PathLike | None = None,
    leave_output_tensor: bool = False,
    pure: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    n_threads: int | None = None,
    progress: bool | None = None,
) -> ModelFile:
    """Write `src` with its matrices in another type.

    Args:
        src: A GGUF file (the first part, if it is split) with F32, F16 or BF16 matrices.
        dst: The file to write; an existing one is replaced, and survives a failure.
        type: Such as "q4_k_m", in any case; q3_k, q4_k and q5_k mean their _m variant. A wrong one lists all.
        allow_requantize: Quantise matrices of `src` that are quantised already, too. Worse than from F16.
        imatrix: An importance matrix of the model, a GGUF file as llama-imatrix writes it: how much each input channel
            of each matrix counts. iq1_*, iq2_* and q2_k_s need one, and all but q8_0 are better with one.
        leave_output_tensor: Keep the output matrix in the type it has.
        pure: Every matrix in the type itself, none in a larger one (q4_k_m keeps some in q6_k).
        output_tensor_type, token_embedding_type: A tensor type of ggml, "q8_0" say, for the output matrix and for the
            token embeddings. Where these are one matrix, either is for it.
        n_threads: Worker threads; None: all processors.
        progress: Show a progress bar on stderr; None: where that is a terminal.
    Raises:
        FileNotFoundError: `src`, `imatrix` or the directory of `dst` does not exist.
        ValueError: A bad argument, a damaged file, or a conversion that llama.cpp refuses; the message says why.
        OSError: The file could not be written, such as on a full disk.
    """
    check_threads(n_threads)
    src, dst, type = Path(src), Path(dst), find_type(type)
    params: dict[str, Any] = {
        "ftype": known_types()[type],
        "allow_requantize": allow_requantize,
        "quantize_output_tensor": not leave_output_tensor,
        "pure": pure,
        **_tensor_types(output_tensor_type=output_tensor_type, token_embedding_type=token_embedding_type),
        "nthread": n_threads or os.cpu_count() or 1,
    }
    with whole_file(dst, _inputs(src, imatrix)) as part:
        _run_child(src, part, params, None if imatrix is None else os.fspath(imatrix), progress)
        return ModelFile(dst, type, part.stat().st_size)


def _inputs(src: Path, imatrix: PathLike | None) -> list[Path]:
    """All files that are read. Raises where one can't be used."""
    check_header(src, also=("mmproj",))
    headers = read_headers(src)
    if imatrix is not None:
        check_imatrix(imatrix, headers)
    return [*(header.path for header in headers), *([] if imatrix is None else [Path(imatrix)])]


def _tensor_types(**names: str | None) -> dict[str, int]:
    """Of those that are given, by argument."""
    return {argument: _find_tensor_type(argument, name) for argument, name in names.items() if name is not None}


def _find_tensor_type(argument: str, name: str) -> int:
    floats = ("F32", "F16", "BF16")
    known = [kind.name for kind, (block, _) in GGML_QUANT_SIZES.items() if block > 1 or kind.name in floats]
    if name.upper() not in known:
        raise ValueError(f"{argument} is {name!r}; known: {', '.join(known).lower()}")
    return int(GGMLQuantizationType[name.upper()])


def _run_child(src: Path, part: Path, params: dict[str, Any], imatrix: str | None, progress: bool | None) -> None:
    arguments = {"src": str(src), "dst": str(part), "imatrix": imatrix, "params": params}
    request = {"sys_path": sys.path, "arguments": arguments}
    command = [sys.executable, "-I", "-c", _CHILD, json.dumps(request)]  # -I: nothing from the current directory
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        reason = _follow(child, progress)
        status = child.wait()
    finally:
        child.kill()  # does nothing to a child that has ended
        child.communicate()
    if status and "iostream error" in reason:
        raise OSError(f"{part}: can't be written")  # whole_file finds out why
    if status:
        raise ValueError(
            f"{src}: llama.cpp could not quantise it: {_explained(reason) or f'it ended with status {status}'}"
        )


def _explained(reason: str) -> str:
    if reason.startswith("requantizing from type"):
        return f"{reason}: it is quantised already; --allow-requantize (allow_requantize=True) does it at a loss"
    return reason


def _follow(child: subprocess.Popen[str], progress: bool | None) -> str:
    """Read the child's log to its end; the reason of a failure, or else its last line, if it wrote one."""
    assert child.stderr is not None
    reason = last = ""
    with progress_bar("quantising", unit="tensors", show=progress) as bar:
        for line in child.stderr:
            if match := _PROGRESS.match(line):
                bar.total = int(match.group(2))
                bar.update(int(match.group(1)) - bar.n)
            if _FAILURE in line:
                reason = line.split(_FAILURE, 1)[1].strip()
                if "failed to load model" in reason:  # what is wrong with the file stands in the line before
                    reason = f"damaged or truncated ({last})"
            last = line.strip() or last
    return reason or last


def _quantize_here(src: str, dst: str, imatrix: str | None, params: dict[str, Any]) -> int:
    """In the child: call llama.cpp with `params`, its log to stderr. Returns its status."""
    import ctypes

    import llama_cpp

    def log(_level: int, text: bytes, _data: Any) -> None:
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()

    callback = llama_cpp.llama_log_callback(log)  # must live as long as llama.cpp logs
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    c_params = llama_cpp.llama_model_quantize_default_params()
    for name, value in params.items():
        setattr(c_params, name, value)
    kept = None if imatrix is None else use_imatrix(c_params, imatrix)  # noqa: F841 - llama.cpp reads from it
    status: int = llama_cpp.llama_model_quantize(os.fsencode(src), os.fsencode(dst), ctypes.byref(c_params))
    return status
