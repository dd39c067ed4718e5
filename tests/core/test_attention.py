"""Attention left out: of every row it is that of a file without it, bit for bit; else keys and values are there."""

from __future__ import annotations

import numpy as np
import pytest

from ffnskip_cpp import SkipConfig
from support.running import (
    PROMPT_ROW,
    SETTINGS,
    SKIPPABLE_ROW,
    bits_equal,
    feed,
    feed_one_by_one,
    generate_step_by_step,
    ours,
    plain,
    typical_difference,
    without_attention,
    without_ffn,
)

TOKENS = np.random.default_rng(7).integers(0, 256, 40).tolist()
PROMPT = TOKENS[:8]
N_GENERATED = 16
LEFT_OUT = (1, 2, 5)

KINDS = ["llama", "moe", "exp_probs", "phi3", "post_norm", "biased", "gptneox_sequential", "demo"]


def attention(layers=LEFT_OUT, **options):
    """Of every row, unless `options` say otherwise."""
    return SkipConfig(**{"max_skip": 0, "attention_layers": layers, "every_row": True, "warm_up_index": 0, **options})


@pytest.fixture
def without(model_file, tmp_path):
    """A copy of a model's file without attention in some layers."""

    def make(kind, layers=LEFT_OUT, **options):
        return without_attention(model_file(kind, **options), layers, tmp_path / f"{kind}-{len(layers)}.gguf")

    return make


# --- of every row ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, SETTINGS["flash_attention_two_threads"]], ids=["one_thread", "flash_two"])
def test_attention_left_out_of_every_row_equals_a_file_without_it_bit_for_bit(model_file, without, kind, options):
    path, zeroed = model_file(kind), without(kind)
    with plain(zeroed, **options) as expected, ours(path, attention(), **options) as llm:
        whole = feed(expected, TOKENS, 0)
        assert bits_equal(llm.forward(TOKENS), whole)
        assert bits_equal(feed(llm, TOKENS, 0), whole)  # prompt rows
        for row in (PROMPT_ROW, SKIPPABLE_ROW):
            assert bits_equal(feed_one_by_one(llm, TOKENS, row), feed_one_by_one(expected, TOKENS))
        got, want = (
            generate_step_by_step(llm, PROMPT, N_GENERATED),
            generate_step_by_step(expected, PROMPT, N_GENERATED),
        )
        assert got[0] == want[0] and bits_equal(got[1], want[1])
        with llm.dense():
            assert not np.array_equal(llm.forward(TOKENS), whole)  # or else the test could not tell
