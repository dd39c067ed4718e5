"""Figures that are kept in tests/expected/*.json: a change of them is reviewed like one of the code.

`pytest --update-expected` writes what was found in place of comparing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "expected"

# A KL divergence differs a little with the processor's kernels; shares of whole blocks hardly.
TOLERANCE = {"kl": {"rel": 0.05}, "skip_ratio": {"abs": 0.002}}


def compare(name: str, found: Any, update: bool) -> None:
    path = FOLDER / f"{name}.json"
    if update:
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    expected = json.loads(path.read_text(encoding="utf-8"))
    assert set(found) == set(expected)
    for key in expected:
        assert found[key] == _approximately(expected[key]), key


def _approximately(expected: Any) -> Any:
    if not isinstance(expected, dict):
        return expected
    return {
        key: pytest.approx(value, **TOLERANCE[key]) if key in TOLERANCE else value for key, value in expected.items()
    }
