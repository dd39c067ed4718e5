"""Each build is for one llama.cpp. On another one nothing runs: both versions are named, and the command that mends it.

The other llama.cpp is a stub that has little more than a version; a program that went on would lack functions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import llama_cpp
import pytest

MAIN = shutil.which("ffnskip-main") or str(Path(sysconfig.get_path("scripts")) / "ffnskip-main")
BUILT_FOR = llama_cpp.llama_version().decode() if hasattr(llama_cpp, "llama_version") else "unknown"
FOUND = "unknown" if BUILT_FOR == "unknown" else "0.4.0"  # a build for one that can't tell does not ask another


@pytest.fixture(scope="module")
def other_llama_cpp(tmp_path_factory):
    """A folder with the shared libraries of a llama.cpp 0.4.0, ggml 0.20.0."""
    folder = tmp_path_factory.mktemp("llama")
    sources = {
        "llama": 'extern "C" const char * llama_version() { return "0.4.0"; } extern "C" void llama_decode() {}',
        "ggml-base": 'extern "C" const char * ggml_version() { return "0.20.0"; }',
        "ggml": "",
    }
    for name, source in sources.items():
        (folder / f"{name}.cpp").write_text(source)
        library = folder / f"lib{name}.so.0"
        soname = f"-Wl,-soname,{library.name}"
        subprocess.run(["c++", "-shared", "-fPIC", folder / f"{name}.cpp", "-o", library, soname], check=True)
    return folder


def test_the_package_is_not_imported(other_llama_cpp, tmp_path):
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import ctypes\n__version__ = '0.3.20'\n"
        f"load = lambda name: ctypes.CDLL('{other_llama_cpp}/lib' + name + '.so.0')\n"
        "libraries = [load(name) for name in ('ggml-base', 'ggml', 'llama')]\n"
    )
    program = (
        f"import sys; sys.path.insert(0, '{tmp_path}')\ntry: import ffnskip_cpp\nexcept ImportError as e: print(e)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"ffnskip_cpp was built for llama.cpp {BUILT_FOR} (ggml ")
    assert (
        f"but llama.cpp {FOUND} (ggml 0.20.0) is loaded, from {other_llama_cpp}/libllama.so.0 (llama-cpp-python 0.3.20)"
        in said
    )
    assert (
        f"pip install llama-cpp-python=={llama_cpp.__version__}\n" in said
        and "--no-build-isolation --no-deps ." in said
    )


@pytest.mark.parametrize("skip", [[], ["--no-skip"]])
def test_ffnskip_main_does_not_start(other_llama_cpp, model_file, skip):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(other_llama_cpp)}
    command = [MAIN, "-m", model_file("llama"), "-p", "abc", "-n", "3", *skip]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert f"ffnskip was built for llama.cpp {BUILT_FOR} (ggml " in result.stderr
    assert f"but llama.cpp {FOUND} (ggml 0.20.0) is loaded, from " in result.stderr and "pip install" in result.stderr
