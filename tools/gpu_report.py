"""Puts together what the steps of tools/gpu_check.sh left in a folder: one JSON object on standard output.

    python3 tools/gpu_report.py FOLDER > report.json

steps.jsonl (required) names every step and how it ended, and a file `finished` says that there are no more; *.txt
describe the machine; *.xml are pytest's results; *.json the measurements of the step of that name. A measurement whose
step failed is left out: what is there was measured.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any


def report(folder: Path) -> dict[str, Any]:
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    passed = {step["step"] for step in steps if step["status"] == 0}
    measured = {path.stem: path for path in sorted(folder.glob("*.json"))}
    finished = (folder / "finished").exists()
    return {
        "finished": finished,
        "passed": finished and len(passed) == len(steps) > 0,
        "machine": {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.txt"))},
        "steps": steps,
        "tests": {path.stem: count(path) for path in sorted(folder.glob("*.xml"))},
        "measurements": {
            name: json.loads(path.read_text(encoding="utf-8")) for name, path in measured.items() if name in passed
        },
    }


def count(junit: Path) -> dict[str, Any]:
    suite = ET.parse(junit).getroot().find("testsuite")
    assert suite is not None, f"{junit}: no test suite"
    failed = [
        case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]
    return {
        **{name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")},
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: gpu_report.py FOLDER")
    json.dump(report(Path(sys.argv[1])), sys.stdout, indent=2)
    print()
