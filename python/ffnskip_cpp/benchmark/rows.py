"""The result: one row per test and setting. `ffnskip bench --help` says what its keys mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..gguf_file.shapes import WeightBytes
from ..measure.flops import ffn_flops
from .options import Setting, Test
from .runners import Runner, SkippingRunner

__all__ = ["row_of"]


def row_of(
    test: Test,
    setting: Setting,
    runner: Runner,
    weights: WeightBytes,
    dense: npt.NDArray[np.float64],
    seconds: npt.NDArray[np.float64],
) -> dict[str, Any]:
    """What is reported of one setting in one test.

    Args:
        runner: The setting's; its statistics are those of the timed tokens.
        dense: Seconds of plain llama.cpp, [number of pieces of the test]; `seconds` are those of the setting.
    """
    skipping = _skipping(runner, weights)
    speeds = _speeds(test.n_prompt or 1, dense, seconds)
    return {
        "test": test.name,
        "policy": setting.name,
        "skip_ratio_target": setting.target,
        **skipping,
        **speeds,
        "share_of_ideal": speeds["speed_up"] / skipping["ideal_speed_up"],
    }


def _skipping(runner: Runner, weights: WeightBytes) -> dict[str, float]:
    """What was skipped, per token, and what that saves."""
    stats = runner.controller.stats if isinstance(runner, SkippingRunner) else None
    if stats is None or stats.tokens == 0:
        return {"skip_ratio": 0.0, "checks": 0.0, "flops_saved": 0.0, "ideal_speed_up": 1.0}
    skipped = (stats.skipped_per_layer / stats.tokens).tolist()
    return {
        "skip_ratio": stats.skip_ratio,
        "checks": stats.checks / stats.tokens,
        "flops_saved": sum(skipped[block.layer] * ffn_flops(block) for block in runner.controller.ffn_map),
        "ideal_speed_up": weights.ideal_speed_up(dict(enumerate(skipped))),
    }


def _speeds(n_tokens: int, dense: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64]) -> dict[str, float]:
    """`n_tokens` per piece."""
    lower, speed, upper = np.quantile(n_tokens / seconds, [0.25, 0.5, 0.75]).tolist()
    speed_up_q1, speed_up, speed_up_q3 = np.quantile(dense / seconds, [0.25, 0.5, 0.75]).tolist()
    return {
        "tokens_per_second": speed,
        "tokens_per_second_spread": upper - lower,
        "speed_up": speed_up,
        "speed_up_q1": speed_up_q1,
        "speed_up_q3": speed_up_q3,
    }
