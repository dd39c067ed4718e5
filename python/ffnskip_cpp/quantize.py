"""Quantise a GGUF file with llama.cpp's own llama_model_quantize.

    from ffnskip_cpp.quantize import quantize
    quantize("model-f16.gguf", "model-q4_k_m.gguf", "q4_k_m")

llama.cpp runs in a child process: an assertion in it, or Ctrl-C, ends the child and not the caller. The result is
written to a temporary file and renamed when complete.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["add_arguments", "known_types", "quantize", "run"]

# What the child executes. It takes over this process's sys.path, so that both load the same llama_cpp.
_CHILD = """
import json, runpy, sys
request = json.loads(sys.argv[1])
sys.path[:] = request["sys_path"]
sys.exit(runpy.run_path(request["file"])["_quantize_here"](**request["arguments"]))
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
    src: str | Path, dst: str | Path, type_name: str, *, threads: int | None = None, progress: bool = False
) -> Path:
    """Write `src` with its matrices in another type.

    Args:
        src: A GGUF file with F32, F16 or BF16 matrices (the first part, if it is split).
        dst: The file to write; an existing one is replaced, and survives a failure.
        type_name: One of `known_types()`, in any case; q3_k, q4_k and q5_k mean their _m variant.
        threads: Worker threads, at least 1. None takes all processors.
        progress: Show a progress bar on stderr.
    Returns:
        The path of the file.
    Raises:
        FileNotFoundError: `src` or the directory of `dst` does not exist.
        ValueError: A bad argument, a damaged file, or a conversion that llama.cpp refuses; the message says why.
    """
    src, dst = Path(src), Path(dst)
    ftype = _find_type(type_name)
    _check_paths(src, dst)
    _check_gguf(src)
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; expected at least 1")
    part = dst.with_name(f".{dst.name}.{os.getpid()}.part")
    try:
        _run_child(src, part, ftype, threads or os.cpu_count() or 1, progress)
        os.replace(part, dst)
    finally:
        part.unlink(missing_ok=True)
    return dst


def _find_type(type_name: str) -> int:
    known = known_types()
    name = type_name.lower()
    name = name if name in known else f"{name}_m"
    if name not in known:
        raise ValueError(f"unknown type {type_name!r}; known: {', '.join(known)}")
    return known[name]


def _check_paths(src: Path, dst: Path) -> None:
    if not src.is_file():
        raise FileNotFoundError(f"{src}: no such file")
    if dst.is_dir():
        raise ValueError(f"{dst}: is a directory; give the name of the .gguf file")
    if not dst.parent.is_dir():
        raise FileNotFoundError(f"{dst.parent}: no such directory for the output")
    if dst.exists() and src.samefile(dst):
        raise ValueError(f"{dst}: is the input itself; give another name")


def _check_gguf(path: Path) -> None:
    """The fixed header; llama.cpp checks the rest, that every tensor lies within the file included."""
    with path.open("rb") as file:
        header = file.read(24)  # magic, version, number of tensors, number of metadata entries
    if header[:4] != b"GGUF":
        raise ValueError(f"{path}: not a GGUF file (it starts with {header[:4]!r})")
    if len(header) < 24:
        raise ValueError(f"{path}: truncated: {len(header)} bytes")
    version = struct.unpack_from("<I", header, 4)[0]
    if version not in (2, 3):
        raise ValueError(f"{path}: GGUF version {version}; expected 2 or 3, little-endian")


def _run_child(src: Path, part: Path, ftype: int, threads: int, progress: bool) -> None:
    arguments = {"src": str(src), "dst": str(part), "ftype": ftype, "threads": threads}
    request = {"sys_path": sys.path, "file": __file__, "arguments": arguments}
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
    if status:
        raise ValueError(f"{src}: llama.cpp could not quantise it: {reason or f'it ended with status {status}'}")


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


def _quantize_here(src: str, dst: str, ftype: int, threads: int) -> int:
    """In the child: call llama.cpp, its log to stderr. Returns its status."""
    import ctypes

    import llama_cpp

    @llama_cpp.llama_log_callback
    def log(_level: int, text: bytes, _data: Any) -> None:
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.nthread = threads
    return llama_cpp.llama_model_quantize(os.fsencode(src), os.fsencode(dst), ctypes.byref(params))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Mount the options on `parser`, which may be a subcommand's."""
    parser.add_argument("src", metavar="IN.gguf", help="file with F32, F16 or BF16 matrices")
    parser.add_argument("dst", metavar="OUT.gguf", help="file to write")
    parser.add_argument("type", metavar="TYPE", help="q4_0, q4_k_m, q5_k_m, q6_k, q8_0, ...; a wrong name lists all")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: all processors)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "example:\n  ffnskip quantize model-f16.gguf model-q4_k_m.gguf q4_k_m"


def run(args: argparse.Namespace) -> int:
    """Do what parsed `args` ask; 0 on success, 2 with one line on stderr otherwise, 130 when interrupted."""
    try:
        out = quantize(args.src, args.dst, args.type, threads=args.threads, progress=not args.no_progress)
    except (ValueError, OSError) as error:
        print(f"ffnskip quantize: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ffnskip quantize: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0
