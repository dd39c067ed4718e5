#!/usr/bin/env bash
# tools/try_versions.sh llama VERSION... | python VERSION...: builds ffnskip_cpp on releases of llama-cpp-python (0.3.35 0.3.36) or for
# Pythons (3.9 3.13, found as pythonVERSION or among pyenv's), runs the README's first command and the fast tests with each, and
# prints a table. Building a release of llama-cpp-python takes ten minutes where pip has no wheel of it; PIP_FIND_LINKS may
# name a folder with wheels. WORK names a folder to keep the environments in (default: a temporary one).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kind=${1:-}
if [ $# -lt 2 ] || [[ $kind != llama && $kind != python ]]; then
    sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"
    exit 2
fi
shift
work=${WORK:-$(mktemp -d)}
mkdir -p "$work/wheels"
source=$PWD
usual=$(sed -n 's/^requires = .*"llama-cpp-python==\([0-9.]*\)".*/\1/p' pyproject.toml)

find_python() {  # find_python VERSION: a Python of this version that runs
    local candidate
    for candidate in "python$1" "$(ls -d "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python 2> /dev/null | sort -V | tail -n 1)"; do
        if "$candidate" -c 'import sys, venv' 2> /dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

try() {  # try VERSION: the rest of its row of the table; what was printed goes to $work/VERSION.log
    local python=python3 llama=$usual venv=$work/$1
    if [ "$kind" = llama ]; then
        llama=$1
    else
        python=$(find_python "$1") || { echo "there is no Python $1 here"; return 1; } >&3
    fi
    [ -d "$venv" ] || "$python" -m venv "$venv"
    # One wheel does for every Python, but pip keeps what it builds for each by itself.
    local wheel=$work/wheels
    compgen -G "$wheel/llama_cpp_python-$llama-*" || "$venv/bin/pip" wheel --no-deps -w "$wheel" "llama-cpp-python==$llama" ||
        { echo "llama-cpp-python is not built"; return 1; } >&3
    "$venv/bin/pip" install --find-links "$wheel" "llama-cpp-python==$llama" scikit-build-core pybind11 cmake ninja gguf \
        matplotlib numpy pytest sentencepiece tqdm || { echo "what it needs can't be installed"; return 1; } >&3
    local PATH=$venv/bin:$PATH
    pip install --force-reinstall --no-build-isolation --no-deps "$source" || { echo "does not compile"; return 1; } >&3
    sed -n "s/^python -c/&/p" README.md | head -n 1 | bash -e || { echo "the README's first command fails"; return 1; } >&3
    local failed=0
    python -m pytest -q -m "not slow" -p no:cacheprovider || failed=1
    echo "$(python --version), $(ffnskip-main --version):" \
        "$(grep -E "^[0-9]+ (passed|failed|skipped)" "$work/$1.log" | tail -n 1)" >&3
    return $failed
}

failed=0
for version in "$@"; do
    row=$(try "$version" 3>&1 > "$work/$version.log" 2>&1) || failed=1
    echo "$version | $row"
done
echo "logs: $work"
exit $failed
