#!/usr/bin/env bash
# tools/try_llama_versions.sh VERSION...: builds ffnskip_cpp on releases of llama-cpp-python, runs the fast tests on each and
# prints a table. Building a release of llama-cpp-python takes ten minutes where pip has no wheel of it; PIP_FIND_LINKS may
# name a folder with wheels. WORK names a folder to keep the environments in (default: a temporary one).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -eq 0 ]; then
    sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"
    exit 2
fi
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
source=$PWD

try() {  # try VERSION: the rest of its row of the table; what was printed goes to $work/VERSION.log
    local venv=$work/$1
    [ -d "$venv" ] || python3 -m venv "$venv"
    "$venv/bin/pip" install "llama-cpp-python==$1" scikit-build-core pybind11 cmake ninja gguf matplotlib numpy pytest \
        sentencepiece tqdm || { echo "llama-cpp-python is not built"; return 1; } >&3
    PATH=$venv/bin:$PATH "$venv/bin/pip" install --force-reinstall --no-build-isolation --no-deps "$source" ||
        { echo "does not compile"; return 1; } >&3
    "$venv/bin/python" -m pytest -q -m "not slow" -p no:cacheprovider || true
    local versions
    versions=$("$venv/bin/ffnskip-main" --version)
    echo "$versions: $(tail -n 1 "$work/$1.log")" >&3
}

failed=0
for version in "$@"; do
    row=$(try "$version" 3>&1 > "$work/$version.log" 2>&1) || failed=1
    echo "$version | $row"
done
echo "logs: $work"
exit $failed
