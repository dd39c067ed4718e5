"""tools/gpu_check.sh never claims what was not done: without a GPU it fails, and a report of a failed step says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"

JUNIT = """<?xml version="1.0"?>
<testsuites><testsuite name="pytest" tests="3" failures="1" errors="0" skipped="1">
<testcase classname="tests.test_oracles" name="test_a"/>
<testcase classname="tests.test_oracles" name="test_b"><skipped/></testcase>
<testcase classname="tests.test_oracles" name="test_c"><failure message="no"/></testcase>
</testsuite></testsuites>"""


def run_check(arguments, path):
    command = ["bash", str(TOOLS / "gpu_check.sh"), *arguments]
    return subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)


@pytest.fixture
def fake_tools(tmp_path):
    """A PATH of the system's tools, in front of which programs can be put."""

    def put(name, script):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
        return f"{folder}:/usr/bin:/bin"

    return put


def test_without_a_gpu_it_fails_in_one_line(tmp_path, fake_tools):
    out = tmp_path / "out.json"
    result = run_check([str(out)], fake_tools("nvidia-smi", "echo no devices; exit 9"))
    assert (result.returncode, result.stdout) == (1, "") and not out.exists()
    assert result.stderr == "gpu_check: no NVIDIA GPU here (nvidia-smi lists none)\n"


def test_a_step_that_everything_needs_stops_it(tmp_path, fake_tools):
    """A GPU is claimed here, and llama_cpp's source is none."""
    fake_tools("nvidia-smi", "echo GPU 0: made up")
    path = fake_tools("nvcc", "exit 0")
    out, llama = tmp_path / "out.json", tmp_path / "llama.tar.xz"
    out.write_text("{}", encoding="utf-8")  # of a run before
    llama.write_text("not an archive", encoding="utf-8")
    result = run_check([str(out), str(llama)], f"{path}:{Path(sys.executable).parent}")
    assert result.returncode == 1 and not out.exists()
    assert result.stderr.splitlines()[-1] == "gpu_check: step 'llama' failed; nothing was measured"


PYTHON = f"""case "$*" in
    *venv*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit ;;
    *gpu_report.py*) exec {sys.executable} "$@" ;;
    *get_paths*) dirname "$0" ;;
    *llama_cpp.__file__*) echo . ;;
esac"""
CMAKE = """[ "$1" = --build ] || exit 0
for program in tests/cuda/test_rows_cuda tests/cuda/bench_rows_cuda tests/cpp/test_devices; do
    mkdir -p "$2/$(dirname $program)"
    printf '#!/bin/sh\necho 5.0\n' >"$2/$program"
    chmod +x "$2/$program"
done"""


def test_what_was_measured_is_there_when_the_machine_is_taken_away(tmp_path, fake_tools):
    """Everything is made up; the second benchmark never ends."""
    hanging = tmp_path / "hanging"
    for name, script in {
        "nvidia-smi": "echo GPU 0: made up",
        "nvcc": "echo release 1",
        "python3": PYTHON,
        "cmake": CMAKE,
        "readelf": "echo nv_fatbin",
        "ffnskip": f'[ -z "$GGML_CUDA_DISABLE_GRAPHS" ] || {{ echo $$ >{hanging}; exec sleep 600; }}; echo "[1.5]"',
    }.items():
        path = fake_tools(name, script)
    out = tmp_path / "out.json"
    command = ["bash", str(TOOLS / "gpu_check.sh"), str(out)]
    environment = {**os.environ, "PATH": path, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as check:
        try:
            while not (hanging.exists() and hanging.read_text(encoding="utf-8").endswith("\n")):
                assert check.poll() is None
                time.sleep(0.05)
        finally:
            check.kill()
    os.kill(int(hanging.read_text(encoding="utf-8")), signal.SIGKILL)
    got = json.loads(out.read_text(encoding="utf-8"))
    assert (got["finished"], got["passed"]) == (False, False)
    assert got["measurements"] == {"kernel": 5.0, "bench_q4_0": [1.5]}
    assert got["steps"][-1]["step"] == "bench_q4_0" and not got["tests"]


@pytest.mark.parametrize("arguments", [[], ["out.txt"], ["a.json", "b", "c", "d"]], ids=str)
def test_wrong_arguments_are_refused(arguments, fake_tools):
    result = run_check(arguments, fake_tools("nvidia-smi", "echo GPU 0: made up"))
    assert result.returncode == 1 and "usage" in result.stderr


def write_folder(folder, statuses):
    lines = [json.dumps({"step": step, "status": status, "seconds": 1}) for step, status in statuses.items()]
    (folder / "steps.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "gpu.txt").write_text("Some GPU, 1 MiB\n", encoding="utf-8")
    (folder / "pytest_all_layers.xml").write_text(JUNIT, encoding="utf-8")
    (folder / "kernel.json").write_text('{"one_row_us": 5.0}', encoding="utf-8")
    (folder / "bench_f16.json").write_text("[", encoding="utf-8")  # cut off


def report(folder):
    command = [sys.executable, str(TOOLS / "gpu_report.py"), str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_report_of_a_failed_step(tmp_path):
    write_folder(tmp_path, {"kernel": 0, "pytest_all_layers": 1, "bench_f16": 124})
    got = report(tmp_path)
    assert got["passed"] is False and [step["status"] for step in got["steps"]] == [0, 1, 124]
    assert got["measurements"] == {"kernel": {"one_row_us": 5.0}}
    assert got["tests"]["pytest_all_layers"] == {
        "tests": 3,
        "failures": 1,
        "errors": 0,
        "skipped": 1,
        "failed": ["tests.test_oracles::test_c"],
    }
    assert got["machine"] == {"gpu": "Some GPU, 1 MiB"}


def test_report_where_all_passed(tmp_path):
    write_folder(tmp_path, {"kernel": 0})
    assert report(tmp_path)["passed"] is False  # so far
    (tmp_path / "finished").touch()
    assert report(tmp_path)["passed"] is True
