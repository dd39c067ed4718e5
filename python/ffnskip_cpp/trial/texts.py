"""Text to measure on: the user's, or else what the dense model itself writes.

A model's own text asks of it nothing but what it says anyway: it is in the languages and of the kinds that the model
generates, whatever they are, and needs no file. Its perplexity is low, and says nothing about other models' texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import llama_cpp
import llama_cpp.llama_chat_format

from ..llama import Llama
from ..text import PathLike, chunks_of_tokens, read_texts

__all__ = ["Piece", "chat_prompt", "own_text", "users_text"]

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

OWN_LENGTH = 160  # tokens of an answer past its warm-up, at most
OWN_ROWS = 1200  # tokens past the warm-ups that are enough
SAMPLING = {"temp": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0}  # llama.cpp's defaults
SEED = 1
USERS_LENGTH = 130  # tokens of a chunk past its warm-up


@dataclass(frozen=True)
class Piece:
    """Tokens of one generation. The prompt and the warm-up run in full, all after them may skip."""

    tokens: Sequence[int]
    n_prompt: int

    def eligible(self, warm_up_index: int) -> list[bool]:
        """Of each token, whether it may skip."""
        first = self.n_prompt + warm_up_index
        return [i >= first for i in range(len(self.tokens))]

    def n_rows(self, warm_up_index: int) -> int:
        """Tokens that may skip and whose next one is known."""
        return max(len(self.tokens) - self.n_prompt - warm_up_index - 1, 0)


def users_text(llm: Llama, paths: Sequence[PathLike], warm_up_index: int, n_ctx: int, max_tokens: int) -> list[Piece]:
    """Chunks of the files, each taken for a generation from its first token on.

    Raises:
        ValueError: The text is binary, or too short for two chunks: one to search on and one to measure on.
        OSError: A file can't be read.
    """
    length = min(n_ctx, warm_up_index + USERS_LENGTH)
    chunks = chunks_of_tokens(
        llm, read_texts(paths), length, max_tokens=max_tokens, min_tokens=warm_up_index + USERS_LENGTH // 4
    )
    if len(chunks) < 2:
        raise ValueError(f"the text is too short: {len(chunks[0])} tokens; {2 * length} or more are needed")
    return [Piece(chunk, 0) for chunk in chunks]


def own_text(llm: Llama, warm_up_index: int, n_ctx: int, is_over: Callable[[], bool]) -> list[Piece]:
    """What the dense model answers, and how it continues beginnings of texts if it has no chat template or its answers
    are too short; sampled as llama.cpp does by default. Two pieces at least; one that ends within the warm-up is left
    out.

    Raises:
        ValueError: There are no two.
    """
    prompts = [llm.tokenize(beginning.encode("utf-8")) for beginning in BEGINNINGS]
    if llm.metadata.get("tokenizer.chat_template"):
        prompts = [*(chat_prompt(llm, question) for question in QUESTIONS), *prompts]
    pieces: list[Piece] = []
    llm.set_seed(SEED)
    with llm.dense():
        for prompt in prompts:
            n_rows = sum(piece.n_rows(warm_up_index) for piece in pieces)
            if len(pieces) >= 2 and (is_over() or n_rows >= OWN_ROWS):
                break
            n = min(warm_up_index + OWN_LENGTH, n_ctx - len(prompt))
            piece = Piece([*prompt, *_answer(llm, prompt, n)], len(prompt))
            if piece.n_rows(warm_up_index) > 0:
                pieces.append(piece)
    if len(pieces) < 2:
        raise ValueError("the model's own answers end too soon to be measured on; give a text (--text FILE)")
    return pieces


def _answer(llm: Llama, prompt: Sequence[int], n: int) -> list[int]:
    answer: list[int] = []
    for token in llm.generate(prompt, max_tokens=n, **SAMPLING):
        if llama_cpp.llama_vocab_is_eog(llm._model.vocab, token):
            break
        answer.append(token)
    return answer


def chat_prompt(llm: Llama, question: str) -> list[int]:
    """The question as the model's chat template has it; as it is where there is none."""
    template = llm.metadata.get("tokenizer.chat_template")
    if not template:
        return llm.tokenize(question.encode("utf-8"))
    formatter = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
        template=template,
        eos_token=_text_of(llm, llm.token_eos()),
        bos_token=_text_of(llm, llm.token_bos()),
    )
    rendered = formatter(messages=[{"role": "user", "content": question}])
    return llm.tokenize(rendered.prompt.encode("utf-8"), add_bos=not rendered.added_special, special=True)


def _text_of(llm: Llama, token: int) -> str:
    return llm.detokenize([token], special=True).decode("utf-8", "replace") if token >= 0 else ""
