"""Stop strings as the class `hf` has them: it looks for them in the text with special tokens, which no answer has."""

from __future__ import annotations

from collections.abc import Sequence

import llama_cpp

from ..batches import Completion

__all__ = ["stopped"]


def stopped(llm: llama_cpp.Llama, completion: Completion, stop: Sequence[str], before: list[int]) -> str:
    """The completion's text, up to where a stop string is part of special tokens too.

    Args:
        before: The last token of the prompt.
    """
    ends = [text.encode("utf-8") for text in stop]
    seen = b""
    for n, token in enumerate(completion.tokens, start=1):
        seen += llm.detokenize([token], special=True)
        if any(end in seen for end in ends):
            text = llm.detokenize(list(completion.tokens[:n]), prev_tokens=before).decode("utf-8", "ignore")
            return min((text.partition(end)[0] for end in stop), key=len)
    return completion.text
