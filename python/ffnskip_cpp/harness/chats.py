"""Chats as prompts, by the model's own template; with an answer's beginning left open for the model to go on with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import llama_cpp
from jinja2 import TemplateError
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from lm_eval import utils

from ..errors import FfnSkipError
from ..measure.chat import formatter_of

__all__ = ["Chats", "Messages"]

OPEN_END = "\ue000"  # stands where a message ends that is gone on with; a character of no alphabet

Messages = Sequence[dict[str, str]]


class Chats:
    def __init__(self, llm: llama_cpp.Llama, logger: logging.Logger):
        self._llm = llm
        self._logger = logger
        self._formatters: dict[bool, Jinja2ChatFormatter] = {}

    @property
    def template(self) -> str:
        """Raises FfnSkipError where the model has none."""
        return self._formatter(True).template

    def rendered(self, messages: Messages, add_generation_prompt: bool) -> str:
        """
        Args:
            add_generation_prompt: False: the last message is the beginning of the answer.
        Raises:
            FfnSkipError: The model has no chat template, or it can't render these messages, without a system message
                even.
        """
        formatter = self._formatter(add_generation_prompt)
        try:
            return _prompt(formatter, messages) if add_generation_prompt else _open_prompt(formatter, messages)
        except (TemplateError, ValueError) as error:  # ValueError: the template's own raise_exception()
            others = [message for message in messages if message["role"] != "system"]
            if len(others) == len(messages):
                raise FfnSkipError(f"{self._llm.model_path}: its chat template can't render this: {error}") from error
            utils.warning_once(self._logger, f"the chat template takes no system message, which is left out: {error}")
            return self.rendered(others, add_generation_prompt)

    def _formatter(self, add_generation_prompt: bool) -> Jinja2ChatFormatter:
        if add_generation_prompt not in self._formatters:
            formatter = formatter_of(self._llm, add_generation_prompt=add_generation_prompt)
            if formatter is None:
                raise FfnSkipError(f"{self._llm.model_path}: the model has no chat template")
            self._formatters[add_generation_prompt] = formatter
        return self._formatters[add_generation_prompt]


def _prompt(formatter: Jinja2ChatFormatter, messages: Messages) -> str:
    return formatter(messages=list(messages)).prompt  # type: ignore[arg-type]


def _open_prompt(formatter: Jinja2ChatFormatter, messages: Messages) -> str:
    *before, last = messages
    marked = {**last, "content": f"{last['content']}{OPEN_END} "}
    text, mark, behind = _prompt(formatter, [*before, marked]).rpartition(OPEN_END)
    if not mark:
        raise ValueError(f"the last message is not in what it renders: {last['content'][:40]!r}")
    return text if behind.startswith(" ") else text.rstrip()  # some templates strip what is said
