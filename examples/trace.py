"""Show, token by token, the FFN blocks a generation skipped (#), those it computed (.) and where it tripped (T)."""

import numpy as np

from ffnskip_cpp import Llama, SkipConfig, demo_model

with Llama(demo_model(), skip=SkipConfig(skip_ratio=0.3, warm_up_index=4), n_ctx=512, verbose=False) as llm:
    prompt = llm.tokenize(b"A register of people.")
    with llm.trace() as trace:
        tokens = list(llm.generate(prompt, max_tokens=40, temp=0.0))
    pieces = [llm.detokenize([token]).decode("utf-8", "replace") for token in tokens]

for piece, similarity, skipped in zip(pieces, trace.similarity, trace.skipped):
    cells = np.where(skipped, "#", ".")
    if skipped.any():
        cells[np.flatnonzero(~np.isnan(similarity))[-1]] = "T"  # the last layer checked is the one that tripped
    print("".join(cells), repr(piece))
