"""How many of the tokens that a model drafts for itself, with skipping, it accepts: SkippingDraft, never stopped.

    python tools/draft_acceptance.py MODEL --text c4.txt --prompts mt_bench.jsonl

Texts go on from windows of --text, from character 400,000 on, and answer the first questions of --prompts, greedily.
Counts alone, so that a busy machine does not matter; nothing here is a speed.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from ffnskip_cpp import Llama, SkipConfig, SkippingDraft, drafts


def setting(words: str) -> object:
    """ "channels", a ratio for them as "channels:0.5", or layers as "13,14,17"."""
    name, _, ratio = words.partition(":")
    if name == "channels":
        return SkipConfig(policy="channels", skip_ratio=float(ratio or 1 / 3))
    return SkipConfig(layers=[int(layer) for layer in words.split(",")], max_skip=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=["13,14,17", "3,5,11,13,14,17,18,27", "channels"])
    parser.add_argument("--num-pred-tokens", type=int, default=4)
    parser.add_argument("-n", type=int, default=8, help="texts of each kind")
    parser.add_argument("--max-tokens", type=int, default=96)
    args = parser.parse_args()

    drafts.perf_counter = itertools.count().__next__  # a clock by which no draft is slower than none
    text = args.text.read_text(encoding="utf-8")[400_000:]
    windows = [text[i * 10_000 :][:300] for i in range(args.n)]
    questions = [
        json.loads(line)["turns"][0] for line in args.prompts.read_text(encoding="utf-8").splitlines()[: args.n]
    ]
    for words in args.settings:
        draft = SkippingDraft(setting(words), args.num_pred_tokens)
        with Llama(args.model, draft_model=draft, n_ctx=1024, n_threads=1, verbose=False) as llm:
            before = draft.stats
            for kind, texts in (("web text", windows), ("questions", questions)):
                for one in texts:
                    if kind == "questions":
                        messages = [{"role": "user", "content": one}]
                        llm.create_chat_completion(messages, max_tokens=args.max_tokens, temperature=0.0)
                    else:
                        llm.create_completion(one, max_tokens=args.max_tokens, temperature=0.0)
                stats = draft.stats
                rounds, drafted, accepted = (
                    getattr(stats, name) - getattr(before, name) for name in ("rounds", "drafted", "accepted")
                )
                before = stats
                print(
                    f"{words}, {kind}: {accepted} of {drafted} accepted, {accepted / drafted:.1%}; "
                    f"{1 + accepted / rounds:.2f} tokens a round; {draft.skip_stats.skip_ratio:.1%} skipped",
                    flush=True,
                )


if __name__ == "__main__":
    main()
