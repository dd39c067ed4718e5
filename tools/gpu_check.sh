#!/usr/bin/env bash
# Measures and tests ffnskip on a machine with an NVIDIA GPU, and writes what came of it to one JSON file, step by step.
#
#   tools/gpu_check.sh OUT.json [LLAMA] [WHEELS]
#
# LLAMA   llama-cpp-python with CUDA: a wheel (.whl), a packed site-packages tree (.tar.xz), or the source (.tar.gz), which is
#         built with CUDA first and takes long. Default: what python3 finds installed.
# WHEELS  folder of wheels for what python3 lacks of: scikit-build-core pybind11 cmake ninja numpy gguf tqdm pytest, and
#         what llama_cpp imports.
#
# Downloads nothing. Exits 0 only if every step ran and passed; a step that can't run is a failure, and is named.
set -euo pipefail

fail() { echo "gpu_check: $1" >&2; exit 1; }

[[ $# -ge 1 && $# -le 3 && $1 == *.json ]] || fail "usage: tools/gpu_check.sh OUT.json [LLAMA] [WHEELS]"
out=$(realpath -m "$1")
llama=${2:+$(realpath -e "$2")}
wheels=${3:+$(realpath -e "$3")}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v nvidia-smi >/dev/null && nvidia-smi -L | grep -q '^GPU' || fail "no NVIDIA GPU here (nvidia-smi lists none)"
command -v nvcc >/dev/null || fail "no nvcc in PATH"
rm -f "$out"

work=$(mktemp -d)
trap 'rm -rf "$work" "$out.part"' EXIT
reporting=

# What the steps so far have found: whole at any time.
report() {
    "$python" tools/gpu_report.py "$work" >"$out.part" && mv "$out.part" "$out"
}

# step NAME SECONDS COMMAND...: runs it, notes how it ended, and goes on. Its output is in $work/NAME.log.
step() {
    local name=$1 limit=$2 status=0 start=$SECONDS
    shift 2
    timeout "$limit" "$@" >"$work/$name.log" 2>&1 || status=$?
    printf '{"step": "%s", "status": %d, "seconds": %d}\n' "$name" "$status" $((SECONDS - start)) >>"$work/steps.jsonl"
    printf '%-28s %s (%ds)\n' "$name" "$([[ $status == 0 ]] && echo passed || echo "FAILED, status $status")" $((SECONDS - start))
    [[ $status == 0 ]] || tail -n 15 "$work/$name.log" | sed 's/^/    /'
    [[ -z $reporting ]] || report
    return "$status"
}
# What everything after it needs.
must() { step "$@" || fail "step '$1' failed; nothing was measured"; }

# ---- build ----

# An environment on top of what python3 has, which may be one itself.
must environment 120 python3 -m venv "$work/venv"
python=$work/venv/bin/python
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["platlib"])')
python3 -c 'import site; print("\n".join(site.getsitepackages()))' >"$site/underneath.pth"
export PATH=$work/venv/bin:$PATH PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1
if [[ -n $wheels ]]; then
    must wheels 300 "$python" -m pip install --no-deps "$wheels"/*.whl
fi
case $llama in
    "") ;;
    *.whl) must llama 300 "$python" -m pip install --no-deps "$llama" ;;
    *.tar.xz) must llama 300 tar -C "$site" -xJf "$llama" ;;
    *.tar.gz)
        must llama 3600 env CMAKE_ARGS="-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=native" \
            "$python" -m pip install --no-deps --no-build-isolation "$llama"
        ;;
    *) fail "$llama: a .whl, .tar.xz or .tar.gz is wanted" ;;
esac
# libggml-cuda needs cuBLAS, which may come from a Python package instead of the system.
LD_LIBRARY_PATH=$("$python" -c '
import glob, os, sys
found = {os.path.dirname(f) for path in sys.path for f in glob.glob(path + "/nvidia/*/lib/libcublas.so*")}
print(":".join([*sorted(found), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]))')
export LD_LIBRARY_PATH
must llama_has_cuda 60 "$python" -c '
import llama_cpp, sys
sys.exit(None if llama_cpp.llama_supports_gpu_offload() else f"{llama_cpp.__file__}: built without a GPU backend")'

# Without this nothing tells a fallback from the kernels.
has_kernels() { readelf -SW "$site"/ffnskip_cpp/lib/libffnskip.so* | grep -q nv_fatbin; }
export -f has_kernels; export site work
cuda="-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=native"
must build_package 600 env CMAKE_ARGS="$cuda" "$python" -m pip install --no-deps --no-build-isolation .
must package_has_kernels 10 bash -c has_kernels
"$python" -c '
import pathlib, sys
sys.path.insert(0, "tests")
from support import tiny_models
tiny_models.write_llama(pathlib.Path(sys.argv[1]))' "$work/tiny.gguf"
llama_site=$("$python" -c 'import llama_cpp, pathlib; print(pathlib.Path(llama_cpp.__file__).parent.parent)')
# shellcheck disable=SC2086  # two options
must configure_native 120 cmake -S . -B "$work/build" -G Ninja $cuda -DFFNSKIP_TESTS=ON \
    -DCMAKE_PREFIX_PATH="$llama_site" -DFFNSKIP_TEST_MODEL="$work/tiny.gguf"
must build_native 600 cmake --build "$work/build"

# ---- measure ----

# Before the tests, which take longer. From here on every step adds to the report: a machine may be taken away at any time.
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >"$work/gpu.txt"
nvcc --version | tail -n 2 | head -n 1 >"$work/nvcc.txt"
git describe --always --dirty >"$work/commit.txt" 2>/dev/null || echo unknown >"$work/commit.txt"
reporting=1
export OMP_WAIT_POLICY=passive
failed=0
# Run by themselves: ctest takes a skipped test for a passed one.
step kernels_against_float64 120 "$work/build/tests/cuda/test_rows_cuda" || failed=1
step rows_on_ggml_devices 60 "$work/build/tests/cpp/test_devices" || failed=1

measure() {  # measure NAME SECONDS COMMAND...: standard output goes to $work/NAME.json
    step "$1" "$2" bash -c 'name=$1; shift; "$@" >"$work/$name.json"' - "$1" "${@:3}" || failed=1
}
measure kernel 60 "$work/build/tests/cuda/bench_rows_cuda"
for type in q4_0 f16; do
    bench=(ffnskip bench --shape llama2-7b --type "$type" -n 48 -r 2 --policy fixed,ffn_skip --skip-ratio 0.1,0.25,0.5 -o json)
    measure "bench_$type" 240 "${bench[@]}"
    measure "bench_${type}_no_graphs" 240 env GGML_CUDA_DISABLE_GRAPHS=1 "${bench[@]}"
done

# ---- test ----

step native_tests 120 ctest --test-dir "$work/build" --output-on-failure || failed=1
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck; do
        step "sanitizer_$tool" 180 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            "$work/build/tests/cuda/test_rows_cuda" few || failed=1
    done
fi
# Bit-identity to llama.cpp on the same GPU, zeroed weights, mixed rows, alternating decisions, float64 similarity; then the
# same oracles with some layers on the CPU.
pytest() {
    "$python" -m pytest -q -p no:cacheprovider --junitxml="$work/$1.xml" "${@:2}"
}
export -f pytest; export python
step pytest_all_layers 300 env FFNSKIP_TEST_NGL=99 bash -c 'pytest pytest_all_layers tests/core/test_{oracles,similarity,graph_traps,policies,algorithm1}.py' || failed=1
step pytest_some_layers 180 env FFNSKIP_TEST_NGL=4 bash -c 'pytest pytest_some_layers tests/core/test_oracles.py' || failed=1

touch "$work/finished"
report
echo "wrote $out"
exit "$failed"
