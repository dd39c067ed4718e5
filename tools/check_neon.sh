#!/usr/bin/env bash
# tools/check_neon.sh LLAMA_CPP: tests the NEON kernels of cpp/src/channels on a machine without ARM, in an emulator: as a CPU
# with dot products and arithmetic in halves, and as one without, which must not take them. LLAMA_CPP is a folder with llama.cpp's
# sources (vendor/llama.cpp in the sdist of llama-cpp-python), of which ggml is built, in a few minutes; Debian's packages
# g++-aarch64-linux-gnu and qemu-user-static have the rest. WORK names a folder to keep what is built in (default: a temporary
# one).
set -euo pipefail
if [ $# != 1 ]; then
    sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}"
    exit 2
fi
llama=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
compiler=aarch64-linux-gnu-g++

compile() {  # compile FILE [OPTIONS]: with what CMakeLists.txt has for it
    "$compiler" -std=c++17 -O3 -Wall -Wextra -Werror -DFFNSKIP_NEON "${@:2}" -I cpp/src -I "$llama/ggml/include" \
        -c "$1" -o "$work/$(basename "$1" .cpp).o"
}

for part in kernels layout memory span weights; do
    compile "cpp/src/channels/channel_$part.cpp"
done
compile cpp/src/channels/kernels_plain.cpp -ffp-contract=off
compile cpp/src/channels/kernels_neon.cpp -ffp-contract=off -march=armv8.2-a+dotprod
compile tests/cpp/test_channels.cpp

check() {  # check CPU ARCHITECTURE KERNELS: as this CPU, with ggml built for the architecture; the kernels that it must take
    local ggml=$work/ggml-$1
    echo "$1: ggml is built"
    cmake -S "$llama" -B "$ggml" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER="$compiler" -DBUILD_SHARED_LIBS=OFF \
        -DGGML_CPU_ARM_ARCH="$2" -DGGML_{NATIVE,OPENMP,LLAMAFILE,CPU_REPACK}=OFF \
        -DLLAMA_BUILD_{COMMON,TESTS,TOOLS,EXAMPLES,SERVER}=OFF > "$ggml.log" 2>&1
    cmake --build "$ggml" --target ggml-cpu -j "$(nproc)" >> "$ggml.log" 2>&1
    "$compiler" -static "$work"/*.o "$ggml"/ggml/src/libggml-{cpu,base}.a -o "$work/test-$1"
    qemu-aarch64-static -cpu "$1" "$work/test-$1" | tee "$work/$1.txt"
    grep -qx "$3 " "$work/$1.txt" || { echo "$1: other kernels than $3"; exit 1; }
}

check max armv8.2-a+dotprod+fp16 "NEON plain"
check cortex-a72 armv8-a plain
