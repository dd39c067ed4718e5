"""Messages to the model's prompt, by llama_cpp's chat formats and the template in the model's file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import llama_cpp

from .. import llama_cpp_internals as internals
from .bodies import Message, Tool

__all__ = ["chat_prompt", "has_template", "takes_tools"]

_TEMPLATE = "tokenizer.chat_template"


class _Prompt(Exception):
    """What a chat handler asks its `Llama` for: these tokens, completed, up to one of these texts."""

    def __init__(self, tokens: list[int], stop: Sequence[str]):
        self.tokens = tokens
        self.stop = stop


class _Asked:
    """The `Llama` of a chat handler, which wants to know the prompt alone."""

    verbose = False

    def __init__(self, llm: llama_cpp.Llama):
        self.tokenize = llm.tokenize

    def create_completion(self, *, prompt: list[int], stop: Sequence[str], **_: Any) -> NoReturn:
        raise _Prompt(prompt, stop)


def has_template(llm: llama_cpp.Llama) -> bool:
    """Whether the model says how chats are written; llama_cpp writes them as Llama 2's otherwise."""
    return _TEMPLATE in llm.metadata


def takes_tools(llm: llama_cpp.Llama) -> bool:
    """Whether the model's template says what tools there are."""
    return "tools" in llm.metadata.get(_TEMPLATE, "")


def chat_prompt(
    llm: llama_cpp.Llama, messages: Sequence[Message], tools: Sequence[Tool]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Token ids, and the texts at which the model's answer ends.

    Raises:
        ValueError: The template refuses these messages.
    """
    handler = internals.chat_handler(llm)
    wanted = [tool.model_dump() for tool in tools] or None
    try:
        handler(llama=_Asked(llm), messages=[message.for_template() for message in messages], tools=wanted)
    except _Prompt as prompt:
        return tuple(prompt.tokens), tuple(text for text in prompt.stop if text)
    except Exception as error:  # a template is a program, which may fail anyhow for messages it does not expect
        raise ValueError(f"messages: the model's chat template does not take them: {str(error)[:200]}") from error
    raise AssertionError("a chat handler completes its prompt")
