"""What is left out of the FFN matters more than how much: what a quarter of it costs, chosen in five ways.

    python examples/compare_policies.py [MODEL.gguf] [TEXT]

Without TEXT the dense model writes it. On most models one sees this: at the paper's threshold nearly every token trips
in the first layer that is checked, so that Algorithm 1 always leaves out the blocks right after it: early ones in a
row, on which all later layers build. Random blocks can cost less. A set grown by measuring costs far less than either.
Here it is measured on the very text it was grown on, which flatters it; `ffnskip calibrate` does that properly. What
costs least is to leave no block out, but of every layer the channels that reach least for the token at hand.
"""

import sys

import numpy as np

from ffnskip_cpp import Llama, SkipConfig, demo_model
from ffnskip_cpp.measure.quality import Quality, compare
from ffnskip_cpp.trial.search import grow

RATIO = 0.25
WARM_UP = 16  # tokens of the text that run in full; those in which channels find their thresholds

model = sys.argv[1] if len(sys.argv) > 1 else demo_model()

with Llama(model, skip=None, n_ctx=512, verbose=False) as llm:
    text = (
        sys.argv[2] if len(sys.argv) > 2 else "".join(llm.generate("A register of people.", max_tokens=150, temp=0.0))
    )
    tokens = llm.tokenize(text.encode("utf-8"))[:512]
    dense = llm.forward(tokens)

    def cost(config: SkipConfig) -> Quality:
        """Of the tokens that may skip, next to the dense model."""
        quality = Quality()
        with llm.skipping(config.replace(warm_up_index=WARM_UP)):
            quality.add(compare(dense, llm.forward(tokens), tokens[1:])[WARM_UP:])
        return quality

    ffns = [block for block in llm.blocks if block.kind == "ffn"]
    n_ffn = len(ffns)
    skippable = [block.layer for block in ffns if block.skippable and block.layer < n_ffn - 1]
    measured, _ = grow(
        skippable, lambda layers: cost(SkipConfig(layers=sorted(layers), max_skip=0)).kl, round(RATIO * n_ffn)
    )
    policies = {
        "channels": SkipConfig("channels", skip_ratio=RATIO),
        "measured, one after another": SkipConfig(layers=sorted(measured), max_skip=0),
        "Algorithm 1, paper's values": SkipConfig(skip_ratio=RATIO),
        "random, adaptive region": SkipConfig("random", region="adaptive", skip_ratio=RATIO),
        "random, anywhere": SkipConfig("random", skip_ratio=RATIO),
    }
    for name, config in policies.items():
        quality = cost(config)
        print(f"{name:28} KL {quality.kl:7.4f} nats a token, perplexity x{quality.perplexity_ratio:.2f}")

    algorithm_1 = policies["Algorithm 1, paper's values"].replace(warm_up_index=WARM_UP)
    with llm.skipping(algorithm_1), llm.trace() as trace:
        llm.forward(tokens)

print(f"\nmeasured: layers {', '.join(map(str, sorted(measured)))}")
checked = ~np.isnan(trace.similarity[WARM_UP:])
first = int(np.flatnonzero(checked.any(axis=0))[0])
tripped_at_once = (checked.sum(axis=1) == 1).mean()
usual = np.flatnonzero(trace.skipped[WARM_UP:].mean(axis=0) > 0.5).tolist()
print(f"Algorithm 1: {tripped_at_once:.0%} of the tokens trip in layer {first}, the first that is checked; left out by")
print(f"most of them: layers {', '.join(map(str, usual))}")
