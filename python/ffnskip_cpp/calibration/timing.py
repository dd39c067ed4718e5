"""Measures what blocks, channels and checks of a model cost on this machine.

Settings that leave out one kind of thing as far as they can take turns with plain llama.cpp, token by token, as in the
benchmark; what one of them saves is shared out among what it left out, in proportion to the bytes. Layers on the GPU
and layers on the CPU, if a model lies on both, are left out by settings of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import llama_cpp
import numpy as np
import numpy.typing as npt

from .. import llama_cpp_internals as internals
from ..benchmark.options import Options, Setting, Test, lead_of
from ..benchmark.runners import Runner, SkippingRunner, open_runners, quiet
from ..benchmark.timing import time_test
from ..llama import Llama
from ..measure.similarity import check_everything
from ..skip_config import SkipConfig, TensorsName
from .costs import FFN, Costs, PerInput

__all__ = ["measure_costs"]

N_GEN = 16  # tokens of a repetition
REPETITIONS = 3
LEFT_OUT = 1 / 3  # of the channels: about what is going to be


def measure_costs(llm: Llama, n_bytes: Costs, *, channels: TensorsName | None = None, n_depth: int = 0) -> Costs:
    """
    Args:
        n_bytes: What everything reads.
        channels: Whose input channels may be left out; None: none.
        n_depth: Tokens in the context: attention takes longer the more there are.
    Raises:
        ValueError: Leaving out blocks saved no time, as on a machine that is busy; or there is no memory for the
            contexts.
    """
    groups = _groups(llm)
    nothing, checks = SkipConfig("dense"), check_everything(llm.n_layer)
    settings = [Setting("dense", None), Setting("idle", nothing), Setting("checks", checks)]
    settings += [Setting("FFN blocks", SkipConfig(layers=layers, max_skip=0, warm_up_index=0)) for layers, _ in groups]
    if channels is not None:
        leaving_out = SkipConfig("channels", skip_ratio=LEFT_OUT, tensors=channels, warm_up_index=0)
        settings.append(Setting("channels", leaving_out))
    test = Test(n_gen=N_GEN, n_depth=n_depth)
    options = Options(
        model_path=llm.model_path,
        n_threads=llm.n_threads,
        n_gen=N_GEN,
        n_depth=n_depth,
        repetitions=REPETITIONS,
        lora=f"{llm.lora_path}:{llm.lora_scale}" if llm.lora_path else None,
        progress=False,
    )
    n_vocab = llm.n_vocab()
    with quiet(False), open_runners(internals.model_address(llm), settings, test, llm.n_threads, options) as runners:
        seconds = time_test(runners, test, n_vocab, options, lead_of(settings))
        return _shared_out(n_bytes, groups, seconds, runners)


Group = tuple[list[int], list[int]]
"""Layers on the same kind of device: those whose FFN block can be skipped, and all of them."""


def _groups(llm: Llama) -> list[Group]:
    n_offloaded = llm.model_params.n_gpu_layers
    first = llm.n_layer + 1 - n_offloaded if n_offloaded >= 0 and llama_cpp.llama_supports_gpu_offload() else 0
    parts = [list(range(llm.n_layer))[part] for part in (slice(0, max(first, 0)), slice(max(first, 0), None))]
    groups = [([il for il in part if llm.skippable[il]], part) for part in parts]
    return [group for group in groups if group[0]]


def _shared_out(
    n_bytes: Costs, groups: Sequence[Group], seconds: npt.NDArray[np.float64], runners: Sequence[Runner]
) -> Costs:
    """
    Args:
        seconds: [n_runners, n_tokens]
    """
    per_token = 1e3 * float(np.median(seconds[0]))
    speed_ups = np.median(seconds[0] / seconds, axis=1)
    saved = iter((per_token * (1 - 1 / speed_ups)).tolist())
    next(saved)
    idle, checking = next(saved), next(saved)
    per_block = np.zeros_like(n_bytes.per_block)
    for skipped, layers in groups:
        of_group = next(saved)
        if of_group <= 0.0:
            raise ValueError(
                f"costs: leaving out {len(skipped)} FFN blocks made a token {-of_group:.3g} ms slower; this machine is "
                "too busy to measure on: try again, or give a table of costs"
            )
        of_bytes = n_bytes.per_block[:, FFN]
        per_block[layers, FFN] = of_bytes[layers] * of_group / of_bytes[skipped].sum()
    per_byte = np.zeros_like(n_bytes.per_byte)
    for of_channels in saved:
        per_byte = _per_byte(max(of_channels, 0.0), runners[-1])
    per_check = max(idle - checking, 0.0) / max(_per_token(runners[2], "checks"), 1.0)
    return Costs(per_token, per_block, per_byte, per_check)


def _per_byte(saved: float, runner: Runner) -> PerInput:
    """The same for all inputs: all that may be left out lie on one device."""
    assert isinstance(runner, SkippingRunner)
    per_byte = saved / max(_per_token(runner, "bytes_left_out"), 1.0)
    return np.where(runner.controller.input_bytes[..., 1] > 0, per_byte, 0.0)


def _per_token(runner: Runner, counted: str) -> float:
    assert isinstance(runner, SkippingRunner)
    stats = runner.controller.stats
    return float(getattr(stats, counted)) / max(stats.tokens, 1)
