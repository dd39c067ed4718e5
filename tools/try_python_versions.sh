#!/usr/bin/env bash
# tools/try_python_versions.sh VERSION...: builds ffnskip_cpp for other Pythons (3.9 3.13), runs the README's first command and the
# fast tests with each, and prints a table. Pythons are found as pythonVERSION, or among pyenv's. llama-cpp-python is built
# once for all of them, ten minutes where pip has no wheel of it; PIP_FIND_LINKS may name a folder with one.
# WORK names a folder to keep the environments in (default: a temporary one).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -eq 0 ]; then
    sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"
    exit 2
fi
work=${WORK:-$(mktemp -d)}
mkdir -p "$work/wheels"
source=$PWD
llama_cpp_python=$(sed -n 's/^requires = .*"\(llama-cpp-python==[0-9.]*\)".*/\1/p' pyproject.toml)

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
    local python venv=$work/$1
    python=$(find_python "$1") || { echo "there is no Python $1 here"; return 1; } >&3
    [ -d "$venv" ] || "$python" -m venv "$venv"
    "$venv/bin/pip" install --find-links "$work/wheels" "$llama_cpp_python" scikit-build-core pybind11 cmake ninja \
        gguf matplotlib numpy pytest sentencepiece tqdm || { echo "what it needs can't be installed"; return 1; } >&3
    local PATH=$venv/bin:$PATH
    "$venv/bin/pip" install --force-reinstall --no-build-isolation --no-deps "$source" ||
        { echo "does not compile"; return 1; } >&3
    sed -n "s/^python -c/&/p" README.md | head -n 1 | bash -e || { echo "the README's first command fails"; return 1; } >&3
    local failed=0
    "$venv/bin/python" -m pytest -q -m "not slow" -p no:cacheprovider || failed=1
    echo "$("$venv/bin/python" --version): $(grep -E "^[0-9]+ (passed|failed|skipped)" "$work/$1.log" | tail -n 1)" >&3
    return $failed
}

# One wheel does for every Python, but pip keeps what it builds for each by itself.
pip wheel -q --no-deps -w "$work/wheels" "$llama_cpp_python"
failed=0
for version in "$@"; do
    row=$(try "$version" 3>&1 > "$work/$version.log" 2>&1) || failed=1
    echo "$version | $row"
done
echo "logs: $work"
exit $failed
