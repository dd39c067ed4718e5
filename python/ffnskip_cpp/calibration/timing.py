"""Measures what blocks, channels and checks of a model cost on this machine.

Settings that leave out one kind of thing as far as they can take turns with plain llama.cpp, token by token, as in the
benchmark; what one of them saves is shared out among what it left out, in proportion to the bytes. Layers on the GPU
and layers on the CPU, if a model lies on both, are left out by settings of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from .costs import ATTENTION, FFN, KEYS_AND_VALUES, Costs, PerInput

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
    groups = _groups(llm, attention=bool(n_bytes.per_block[:, ATTENTION].any()))
    nothing, checks = SkipConfig("dense"), check_everything(llm.n_layer)
    settings = [Setting("dense", None), Setting("idle", nothing), Setting("checks", checks)]
    settings += [Setting("blocks", group.left_out()) for group in groups]
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


@dataclass(frozen=True)
class Group:
    """Blocks of one kind in layers on the same kind of device."""

    kind: int
    skipped: list[int]
    """Layers where they can be left out."""
    layers: list[int]
    """All layers there."""

    def left_out(self) -> SkipConfig:
        nothing = SkipConfig(max_skip=0, warm_up_index=0)
        ffn = self.kind == FFN
        return nothing.replace(layers=self.skipped) if ffn else nothing.replace(attention_layers=self.skipped)


def _groups(llm: Llama, attention: bool) -> list[Group]:
    """FFN blocks first."""
    n_offloaded = llm.model_params.n_gpu_layers
    offloads = n_offloaded >= 0 and llama_cpp.llama_supports_gpu_offload()
    first = max(llm.n_layer + 1 - n_offloaded, 0) if offloads else 0
    groups = []
    for name, kind in (("ffn", FFN), ("attention", ATTENTION))[: 1 + attention]:
        usable = {block.layer for block in llm.blocks if block.kind == name and block.skippable}
        for layers in (range(first), range(first, llm.n_layer)):
            if skipped := [il for il in layers if il in usable]:
                groups.append(Group(kind, skipped, list(layers)))
    return groups


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
    for group in groups:
        of_group, of_bytes = next(saved), n_bytes.per_block[:, group.kind]
        if of_group <= 0.0:
            name = "FFN" if group.kind == FFN else "attention"
            raise ValueError(
                f"costs: leaving out {len(group.skipped)} {name} blocks made a token {-of_group:.3g} ms slower; this "
                "machine is too busy to measure on: try again, or give a table of costs"
            )
        per_byte = of_group / of_bytes[group.skipped].sum()
        per_block[group.layers, group.kind] = of_bytes[group.layers] * per_byte
        if group.kind == FFN:  # what keys and values take no setting leaves out: matrices like those of an FFN
            of_bytes = n_bytes.per_block[:, KEYS_AND_VALUES]
            per_block[group.layers, KEYS_AND_VALUES] = of_bytes[group.layers] * per_byte
    of_inputs = np.zeros_like(n_bytes.per_byte)
    for of_channels in saved:
        of_inputs = _per_byte(max(of_channels, 0.0), runners[-1])
    per_check = max(idle - checking, 0.0) / max(_per_token(runners[2], "checks"), 1.0)
    return Costs(per_token, per_block, of_inputs, per_check)


def _per_byte(saved: float, runner: Runner) -> PerInput:
    """The same for all inputs: all that may be left out lie on one device."""
    assert isinstance(runner, SkippingRunner)
    per_byte = saved / max(_per_token(runner, "bytes_left_out"), 1.0)
    return np.where(runner.controller.input_bytes[..., 1] > 0, per_byte, 0.0)


def _per_token(runner: Runner, counted: str) -> float:
    assert isinstance(runner, SkippingRunner)
    stats = runner.controller.stats
    return float(getattr(stats, counted)) / max(stats.tokens, 1)
