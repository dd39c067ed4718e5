"""Property: the demo model loses what it lost, at the same share of skipped blocks, under each kind of setting.

A change of the method or of the kernels shows here; tests/expected/demo_model.json has the figures (support.expected).
"""

from __future__ import annotations

import numpy as np
import pytest

import ffnskip_cpp
from ffnskip_cpp import SkipConfig
from support import expected
from support.running import ours

TEXT = """Herno Jotsen's birthday is 5 December 1994. He works for Jusano Motors. He was born in Falholm. He became an
expert in mineralogy. He completed his education at Vungate Academy. His job is based in Purholm. Who is Herno Jotsen?
He likes to walk along the river with his friends, and in the evening he reads about stones, rivers and old machines."""

SETTINGS = {
    "profile": lambda: ffnskip_cpp.read_profile(ffnskip_cpp.demo_model()).config,
    "Algorithm 1, 25 %": lambda: SkipConfig(skip_ratio=0.25),
    "random, adaptive region, 25 %": lambda: SkipConfig(policy="random", region="adaptive", skip_ratio=0.25),
    "layers 3, 7, 11": lambda: SkipConfig(layers=[3, 7, 11], max_skip=0),
}


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.filterwarnings("ignore:skip. ffn_skip")  # the values are not calibrated
def test_demo_model(request):
    found = {}
    with ours(ffnskip_cpp.demo_model(), None) as llm:
        tokens = llm.tokenize(TEXT.encode())
        dense = log_softmax(llm.forward(tokens))
    with ours(ffnskip_cpp.demo_model(), "auto") as llm:
        for name, config in SETTINGS.items():
            llm.skip = config()
            llm.reset_stats()
            skipping = log_softmax(llm.forward(tokens, [True] * len(tokens)))
            kl = (np.exp(dense) * (dense - skipping)).sum(axis=-1).mean()
            found[name] = {"kl": float(f"{kl:.4g}"), "skip_ratio": round(llm.stats.skip_ratio, 4)}
    expected.compare("demo_model", found, request.config.getoption("--update-expected"))
