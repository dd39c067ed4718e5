"""How far each policy moves the model from itself: KL divergence, at the same number of skipped blocks."""

import numpy as np

from ffnskip_cpp import Llama, SkipConfig, demo_model


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


with Llama(demo_model(), n_ctx=512, verbose=False) as llm:
    text = "".join(llm.generate("A register of people.", max_tokens=200, temp=0.0))
    tokens = llm.tokenize(text.encode("utf-8"))
    with llm.dense():
        dense = log_softmax(llm.forward(tokens))
    for policy in ("ffn_skip", "random_adaptive_region", "random"):
        llm.skip = SkipConfig(policy=policy, skip_ratio=0.25)
        skipping = log_softmax(llm.forward(tokens))
        kl = (np.exp(dense) * (dense - skipping)).sum(axis=-1)
        print(f"{policy:24} KL {kl.mean():.4f} nats a token")
