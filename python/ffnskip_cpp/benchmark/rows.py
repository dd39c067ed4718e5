"""The result: one row per test and setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core import Controller
from ..blocks import ffn_blocks
from ..gguf_file.weights import WeightBytes
from ..measure.flops import ffn_flops
from ..stats import INPUT_KINDS
from .options import Setting, Test
from .runners import Runner, SkippingRunner

__all__ = ["Benchmark", "BenchmarkRow", "row_of"]


@dataclass(frozen=True)
class BenchmarkRow:
    """One setting in one test. What is per token is a mean over the timed tokens."""

    test: str
    """tg64: 64 generated tokens; pp512: a prompt of 512; @ d128: after 128 others."""
    policy: str
    """What is skipped; or dense (llama.cpp alone), idle (nothing skipped or checked), checks (nothing skipped), or the
    name of a profile."""
    skip_ratio_target: float | None
    """The share asked for."""
    skip_ratio: float
    """The share that was skipped; of policy channels, of the weight bytes of `tensors`."""
    checks: float
    """Similarities computed per token."""
    flops_saved: float
    """Floating-point operations per token: 2 for each element of the matrices, or of their columns, left out."""
    ideal_speed_up: float
    """What it were if time were in proportion to the bytes of weights that are read."""
    tokens_per_second: float
    """The median of single tokens; of a prompt, of whole prompts."""
    tokens_per_second_spread: float
    """The interquartile range."""
    speed_up: float
    """The median over tokens of dense's time over this setting's, in the same round."""
    speed_up_q1: float
    speed_up_q3: float
    share_of_ideal: float
    """speed_up / ideal_speed_up."""
    weights_bytes: int
    """Memory that the weights by channel take, which all contexts share."""
    model: str
    type: str
    """Of the weights: "q4_k_m"."""
    threads: int
    n_prompt: int
    n_gen: int
    n_depth: int
    repetitions: int
    cold_s: int | None
    """None: the default, an eighth of the layers; as cold_e."""
    cold_e: int | None
    tensors: str
    """Whose input channels policy channels leaves out."""
    versions: Mapping[str, str]
    """Of ffnskip and llama_cpp."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Benchmark:
    """What `bench` measured; its repr is the table."""

    rows: tuple[BenchmarkRow, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __repr__(self) -> str:
        from .report import as_markdown

        return as_markdown(self.rows)


def row_of(
    test: Test,
    setting: Setting,
    runner: Runner,
    weights: WeightBytes,
    dense: npt.NDArray[np.float64],
    seconds: npt.NDArray[np.float64],
    common: Mapping[str, Any],
) -> BenchmarkRow:
    """What is reported of one setting in one test.

    Args:
        runner: The setting's; its statistics are those of the timed tokens.
        dense: Seconds of plain llama.cpp, [number of pieces of the test]; `seconds` are those of the setting.
        common: What all rows of the test have in common.
    """
    skipping = _skipping(runner, weights)
    speeds = _speeds(test.n_prompt or 1, dense, seconds)
    return BenchmarkRow(
        test=test.name,
        policy=setting.name,
        skip_ratio_target=setting.target,
        share_of_ideal=speeds["speed_up"] / skipping["ideal_speed_up"],
        n_prompt=test.n_prompt,
        n_gen=test.n_gen,
        n_depth=test.n_depth,
        **skipping,
        **speeds,
        **common,
    )


def _skipping(runner: Runner, weights: WeightBytes) -> dict[str, Any]:
    """What was skipped, per token, and what that saves."""
    nothing = {"skip_ratio": 0.0, "checks": 0.0, "flops_saved": 0.0, "ideal_speed_up": 1.0, "weights_bytes": 0}
    if not isinstance(runner, SkippingRunner) or runner.controller.stats.tokens == 0:
        return nothing
    stats = runner.controller.stats
    if stats.bytes_total > 0:
        return {**nothing, **_left_out(runner.controller, weights)}
    skipped = (stats.skipped_per_layer / stats.tokens).tolist()
    return {
        **nothing,
        "skip_ratio": stats.skip_ratio,
        "checks": stats.checks / stats.tokens,
        "flops_saved": sum(skipped[block.layer] * ffn_flops(block) for block in ffn_blocks(runner.controller.blocks)),
        "ideal_speed_up": weights.ideal_speed_up(dict(enumerate(skipped))),
    }


def _left_out(controller: Controller, weights: WeightBytes) -> dict[str, Any]:
    """The same where channels or attention may be left out. With channels, what is read has another size than in the
    file: groups of outputs are filled up."""
    stats = controller.stats
    flops, stored = 0.0, 0.0
    for found in controller.channel_inputs:
        of_input = found.layer, INPUT_KINDS.index(found.kind)
        total, kept = int(stats.channels_total[of_input]), int(stats.channels_kept[of_input])
        if total > 0:
            of_a_token = found.bytes_per_token / sum(weight.bytes for weight in found.weights)
            stored += found.bytes_per_token
            flops += 2 * (1 - kept / total) * of_a_token * sum(weight.n_elements for weight in found.weights)
    if not stats.channels_total.any():
        stored, flops = stats.bytes_total / stats.tokens, _flops_of_blocks(controller)
    read = (stats.bytes_total - stats.bytes_left_out) / stats.tokens
    return {
        "skip_ratio": stats.skip_ratio,
        "flops_saved": flops,
        "ideal_speed_up": weights.ideal_speed_up_by(read, stored),
        "weights_bytes": controller.weights_bytes,
    }


def _flops_of_blocks(controller: Controller) -> float:
    """Of the blocks that a token skipped, attention by its weights alone, without those of keys and values where these
    are written."""
    stats, flops = controller.stats, 0.0
    for block in controller.blocks:
        of_attention = block.kind == "attention"
        skipped = stats.attention_skipped_per_layer if of_attention else stats.skipped_per_layer
        read = 0.0 if controller.config.every_row else block.bytes_of_cache / block.bytes_per_token
        flops += skipped[block.layer] / stats.tokens * ffn_flops(block) * (1 - read)
    return flops


def _speeds(n_tokens: int, dense: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64]) -> dict[str, Any]:
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
