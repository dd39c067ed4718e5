"""Quantise a GGUF file with llama.cpp's own llama_model_quantize.

    from ffnskip_cpp.gguf_file.quantization import quantize
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

from ..files import whole_file
from .header import read_headers
from .header_check import check_header
from .imatrix import check_imatrix, use_imatrix

__all__ = ["known_types", "quantize"]

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


def known_types() -> dict[str, int]:
    """Type names in lower case and their llama_ftype, as the installed llama.cpp knows them."""
    import llama_cpp

    names = re.compile(r"LLAMA_FTYPE_(?:ALL|MOSTLY)_(\w+)")
    found = ((names.fullmatch(name), value) for name, value in vars(llama_cpp).items())
    return {match.group(1).lower(): value for match, value in found if match}


def quantize(
    src: str | Path,
    dst: str | Path,
    type_name: str,
    *,
    allow_requantize: bool = False,
    imatrix: str | Path | None = None,
    leave_output_tensor: bool = False,
    pure: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> Path:
    """Write `src` with its matrices in another type.

    Args:
        src: A GGUF file (the first part, if it is split) with F32, F16 or BF16 matrices.
        dst: The file to write; an existing one is replaced, and survives a failure.
        type_name: One of `known_types()`, in any case; q3_k, q4_k and q5_k mean their _m variant.
        allow_requantize: Quantise matrices of `src` that are quantised already, too. Worse than from F16.
        imatrix: An importance matrix of the model, a GGUF file as llama-imatrix writes it: how much each input channel
            of each matrix counts. iq1_*, iq2_* and q2_k_s need one, and all but q8_0 are better with one.
        leave_output_tensor: Keep the output matrix in the type it has.
        pure: Every matrix in the type itself, none in a larger one (q4_k_m keeps some in q6_k).
        output_tensor_type, token_embedding_type: A tensor type of ggml, "q8_0" say, for the output matrix and for the
            token embeddings. Where these are one matrix, either is for it.
        threads: Worker threads, at least 1. None takes all processors.
        progress: Show a progress bar on stderr.
    Returns:
        The path of the file.
    Raises:
        FileNotFoundError: `src`, `imatrix` or the directory of `dst` does not exist.
        ValueError: A bad argument, a damaged file, or a conversion that llama.cpp refuses; the message says why.
    """
    src, dst = Path(src), Path(dst)
    arguments: dict[str, Any] = {
        "ftype": _find_type(type_name),
        "allow_requantize": allow_requantize,
        "quantize_output_tensor": not leave_output_tensor,
        "pure": pure,
    }
    if output_tensor_type is not None:
        arguments["output_tensor_type"] = _find_tensor_type("output_tensor_type", output_tensor_type)
    if token_embedding_type is not None:
        arguments["token_embedding_type"] = _find_tensor_type("token_embedding_type", token_embedding_type)
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; expected at least 1")
    arguments["nthread"] = threads or os.cpu_count() or 1
    check_header(src, also=("mmproj",))
    headers = read_headers(src)
    inputs = [header.path for header in headers]
    if imatrix is not None:
        check_imatrix(imatrix, headers)
        inputs.append(Path(imatrix))
    with whole_file(dst, inputs) as part:
        _run_child(src, part, arguments, None if imatrix is None else str(imatrix), progress)
    return dst


def _find_type(type_name: str) -> int:
    known = known_types()
    name = type_name.lower()
    name = name if name in known else f"{name}_m"
    if name not in known:
        raise ValueError(f"unknown type {type_name!r}; known: {', '.join(known)}")
    return known[name]


def _find_tensor_type(argument: str, name: str) -> int:
    floats = ("F32", "F16", "BF16")
    known = [kind.name for kind, (block, _) in GGML_QUANT_SIZES.items() if block > 1 or kind.name in floats]
    if name.upper() not in known:
        raise ValueError(f"{argument} is {name!r}; known: {', '.join(known).lower()}")
    return int(GGMLQuantizationType[name.upper()])


def _run_child(src: Path, part: Path, arguments: dict[str, Any], imatrix: str | None, progress: bool) -> None:
    arguments = {"src": str(src), "dst": str(part), "imatrix": imatrix, "params": arguments}
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


def _follow(child: subprocess.Popen[str], progress: bool) -> str:
    """Read the child's log to its end; the reason of a failure, or else its last line, if it wrote one."""
    from tqdm import tqdm

    assert child.stderr is not None
    reason = last = ""
    with tqdm(desc="tensors", disable=not progress) as bar:
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

    @llama_cpp.llama_log_callback
    def log(_level: int, text: bytes, _data: Any) -> None:
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    c_params = llama_cpp.llama_model_quantize_default_params()
    for name, value in params.items():
        setattr(c_params, name, value)
    kept = None if imatrix is None else use_imatrix(c_params, imatrix)  # noqa: F841 - llama.cpp reads from it
    return llama_cpp.llama_model_quantize(os.fsencode(src), os.fsencode(dst), ctypes.byref(c_params))
