"""Chats as text for calibration and analysis: rendered by the model's own template, and where an answer is missing,
answered by the model.

    chat = Chat(({"role": "user", "content": "Hello"},), "chats.jsonl:1")
    tokens, generated = tokens_of_chat(llm, answered(llm, chat))
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from llama_cpp.llama_chat_format import Jinja2ChatFormatter

if TYPE_CHECKING:
    import llama_cpp

__all__ = ["PROMPT", "Chat", "answered", "formatter_of", "tokens_of_chat"]

PROMPT = -1
"""In place of the index of a generated token: the token is part of a prompt."""

ANSWER_TOKENS = 256  # at most, of an answer that the model gives itself
SAMPLING = {"temperature": 0.7, "seed": 0}  # small models repeat themselves where the likeliest token is always taken


@dataclass(frozen=True)
class Chat:
    messages: tuple[dict[str, str], ...]
    """Each with "role" and "content", in their order."""
    where: str
    """File and line, for messages."""


def tokens_of_chat(llm: llama_cpp.Llama, chat: Chat) -> tuple[list[int], list[int]]:
    """A chat as the model sees it.

    Returns:
        Token ids, and of each token its index in an assistant's answer, or PROMPT: the user's and the system's
        messages and what the template puts around them.
    Raises:
        ValueError: The model has no chat template, or its template refuses the messages.
    """
    text = _rendered(llm, chat)
    tokens = llm.tokenize(text.encode("utf-8"), add_bos=False, special=True)
    sizes = [len(llm.detokenize([token], prev_tokens=tokens[:1], special=True)) for token in tokens]
    answers = _answers(text, chat)
    generated: list[int] = []
    for start in accumulate(sizes[:-1], initial=0):
        within = any(first <= start < last for first, last in answers)
        generated.append((generated[-1] + 1 if generated else 0) if within else PROMPT)
    return tokens, generated


def _answers(text: str, chat: Chat) -> list[tuple[int, int]]:
    """Where the assistant's answers are in the rendered text, in bytes. One that the template left out or changed is
    not among them."""
    found, position = [], 0
    for message in chat.messages:
        content = message["content"].strip()
        start = text.find(content, position)
        if start < 0:
            continue
        position = start + len(content)
        if message["role"] == "assistant":
            first = len(text[:start].encode("utf-8"))
            found.append((first, first + len(content.encode("utf-8"))))
    return found


def _rendered(llm: llama_cpp.Llama, chat: Chat) -> str:
    try:
        formatter = formatter_of(llm, add_generation_prompt=False)
        rendered = None if formatter is None else formatter(messages=list(chat.messages))  # type: ignore[arg-type]
    except Exception as error:  # whatever the template's author, or Jinja, thought fit
        raise ValueError(f"{chat.where}: the model's chat template can't render it: {error}") from error
    if rendered is None:
        raise ValueError(f"{chat.where}: a chat, and the model has no chat template; calibrate it on plain text")
    return rendered.prompt


def formatter_of(llm: llama_cpp.Llama, *, add_generation_prompt: bool) -> Jinja2ChatFormatter | None:
    """The model's own chat template; None if it has none. Raises what Jinja does where the template is no good."""
    template = llm.metadata.get("tokenizer.chat_template")
    if not template:
        return None
    bos, eos = (
        llm.detokenize([token], special=True).decode("utf-8", "replace") if token >= 0 else ""
        for token in (llm.token_bos(), llm.token_eos())
    )
    return Jinja2ChatFormatter(template, eos_token=eos, bos_token=bos, add_generation_prompt=add_generation_prompt)


def answered(llm: llama_cpp.Llama, chat: Chat) -> Chat:
    """The same chat with the model's own answer, sampled and of 256 tokens at most, after every message of the user
    that has none. The chat ends where the context is full."""
    messages: list[dict[str, str]] = []
    following = [message["role"] for message in chat.messages[1:]]
    for message, next_role in zip(chat.messages, [*following, None]):
        messages.append(message)
        if message["role"] == "user" and next_role != "assistant":
            answer = _answer(llm, Chat(tuple(messages), chat.where))
            if answer is None:
                break
            messages.append({"role": "assistant", "content": answer})
    return Chat(tuple(messages), chat.where)


def _answer(llm: llama_cpp.Llama, chat: Chat) -> str | None:
    used = len(tokens_of_chat(llm, chat)[0])
    if used + ANSWER_TOKENS > llm.n_ctx():
        return None
    completion: Any = llm.create_chat_completion(list(chat.messages), max_tokens=ANSWER_TOKENS, **SAMPLING)  # type: ignore[arg-type]
    return completion["choices"][0]["message"]["content"] or ""
