"""Text to measure on: the user's, or else what the dense model itself writes.

A model's own text asks of it nothing but what it says anyway: it is in the languages and of the kinds that the model
generates, whatever they are, and needs no file. Its perplexity is low, and says nothing about other models' texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import llama_cpp

from ..llama import Llama
from ..llama_cpp_internals import model_address
from ..measure.chat import PROMPT, Chat, answered, formatter_of
from ..measure.text import Chunk, Text, chunks_of_text, read_texts
from ..profile import PathLike

__all__ = ["chat_prompt", "is_end", "own_text", "users_text"]

# Of kinds that are asked for often; base models get beginnings of texts in their place.
QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Explain to a child why the sky is blue.",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "How do I make a simple vegetable soup?",
    "Write a Python function that returns the most frequent word of a text.",
    "What should I look at before I buy a used bicycle?",
    "Write a polite letter that asks a landlord to repair the heating.",
    "What were the main causes of the First World War?",
)
BEGINNINGS = (
    "The capital of France is",
    "The sky is blue because",
    "Late that night the lighthouse keeper found a letter. It",
    "Vegetable soup\n\nIngredients:\n",
    "def most_frequent_word(text: str) -> str:\n",
    "Before you buy a used bicycle, look at",
    "Dear Sir or Madam,\n\nI am writing to ask you",
    "The main causes of the First World War were",
)

OWN_LENGTH = 160  # tokens past the warm-up of an answer, at most
OWN_ROWS = 1200  # tokens past the warm-ups that are enough
SAMPLING: dict[str, Any] = {
    "temp": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "repeat_penalty": 1.0,
}  # llama.cpp's defaults
USERS_LENGTH = 130  # tokens past the warm-up of a chunk of plain text


def users_text(
    llm: Llama,
    paths: PathLike | Sequence[PathLike],
    warm_up_index: int,
    n_ctx: int,
    max_tokens: int,
    is_over: Callable[[], bool] = lambda: False,
) -> list[Chunk]:
    """The files in chunks. What the user says in a chat without an answer, the model answers first.

    Raises:
        ValueError: The text is binary, or too short for two chunks: one to search on and one to measure on.
        OSError: A file can't be read.
    """
    texts = read_texts(paths)
    if any(isinstance(text, Chat) for text in texts):
        texts, length = list(_answered(llm, texts, is_over)), n_ctx
    else:
        length = min(n_ctx, warm_up_index + USERS_LENGTH)
    least = min(warm_up_index + USERS_LENGTH // 4, length)
    cut = chunks_of_text(llm, texts, length, max_tokens=max_tokens, min_tokens=least)
    found = [chunk for chunk in cut if chunk.rows(warm_up_index)]
    if len(found) < 2:
        raise ValueError(
            f"the text is too short: two generations of more than {warm_up_index} tokens, or {2 * length} tokens of "
            "plain text, are needed"
        )
    return found


def _answered(llm: Llama, texts: Sequence[Text], is_over: Callable[[], bool]) -> Iterator[Text]:
    """As many as there is time for; two at least."""
    with llm.dense():
        for n, text in enumerate(texts):
            if n >= 2 and is_over():
                return
            yield answered(llm, text) if isinstance(text, Chat) else text


def own_text(llm: Llama, warm_up_index: int, n_ctx: int, seed: int, is_over: Callable[[], bool]) -> list[Chunk]:
    """What the dense model answers, and how it continues beginnings of texts if it has no chat template or its answers
    are too short; sampled as llama.cpp does by default. Two chunks at least; one that ends within the warm-up is left
    out.

    Raises:
        ValueError: There are no two.
    """
    prompts = [llm.tokenize(beginning.encode("utf-8")) for beginning in BEGINNINGS]
    if llm.metadata.get("tokenizer.chat_template"):
        prompts = [*(chat_prompt(llm, question) for question in QUESTIONS), *prompts]
    found: list[Chunk] = []
    n_rows = 0
    llm.set_seed(seed)
    with llm.dense():
        for prompt in prompts:
            if len(found) >= 2 and (is_over() or n_rows >= OWN_ROWS):
                break
            answer = _answer(llm, prompt, min(warm_up_index + OWN_LENGTH, n_ctx - len(prompt)))
            chunk = Chunk([*prompt, *answer], [PROMPT] * len(prompt) + list(range(len(answer))))
            if rows := chunk.rows(warm_up_index):
                found.append(chunk)
                n_rows += len(rows)
    if len(found) < 2:
        raise ValueError("the model's own answers end too soon to be measured on; give a text (--text FILE)")
    return found


def _answer(llm: Llama, prompt: Sequence[int], n: int) -> list[int]:
    answer: list[int] = []
    for token in llm.generate(prompt, max_tokens=n, **SAMPLING):
        if is_end(llm, token):
            break
        answer.append(token)
    return answer


def is_end(llm: Llama, token: int) -> bool:
    """Whether the model ends its text with this token."""
    vocab = llama_cpp.llama_model_get_vocab(model_address(llm))
    return bool(llama_cpp.llama_vocab_is_eog(vocab, token))


def chat_prompt(llm: Llama, question: str) -> list[int]:
    """The question as the model's chat template has it; as it is where there is none, or one that fails."""
    try:
        formatter = formatter_of(llm, add_generation_prompt=True)
        rendered = None if formatter is None else formatter(messages=[{"role": "user", "content": question}])
    except Exception:  # whatever the template's author, or Jinja, thought fit
        rendered = None
    if rendered is None:
        return llm.tokenize(question.encode("utf-8"))
    return llm.tokenize(rendered.prompt.encode("utf-8"), add_bos=not rendered.added_special, special=True)
