"""Generate text with what the model's skip profile leaves out, and say how much that was; nothing without a profile."""

import sys

from ffnskip_cpp import Llama, demo_model

model = sys.argv[1] if len(sys.argv) > 1 else demo_model()
prompt = sys.argv[2] if len(sys.argv) > 2 else "Herno Jotsen"

with Llama(model, n_ctx=512, verbose=False) as llm:
    for piece in llm.generate(prompt, max_tokens=120, temp=0.0):
        print(piece, end="", flush=True)
    print(f"\n\n{llm.stats.skip_ratio:.1%} of the FFN blocks of {llm.stats.tokens} tokens were skipped")
