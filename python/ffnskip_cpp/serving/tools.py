"""Calls of tools: the grammar that a wanted one is held to, and finding them in what a model writes by itself."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from .bodies import Tool, ToolChoice
from .grammars import grammar_of

__all__ = ["ToolReader", "tool_grammar"]

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"  # Hermes, Qwen and many others; else the whole answer is JSON


def tool_grammar(tools: Sequence[Tool], choice: str | ToolChoice) -> str | None:
    """What the answer must be; None: what the model likes.

    Raises:
        ValueError: There is no such tool, or its parameters can't be turned into a grammar.
    """
    if choice in ("auto", "none"):
        return None
    wanted = (
        tools if isinstance(choice, str) else [tool for tool in tools if tool.function.name == choice.function.name]
    )
    if not wanted:
        name = "" if isinstance(choice, str) else f" {choice.function.name!r}"
        raise ValueError(f"tool_choice: there is no tool{name} in tools")
    parameters = {str(i): _moved(tool.function.parameters, f"#/of/{i}/") for i, tool in enumerate(wanted)}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, "arguments": parameters[str(i)]},
            "required": ["name", "arguments"],
        }
        for i, tool in enumerate(wanted)
    ]
    return grammar_of({"anyOf": calls, "of": parameters}, "tools")


def _moved(schema: Any, root: str) -> Any:
    """A schema that stands within another one, at `root`: what it refers to has moved."""
    if isinstance(schema, list):
        return [_moved(part, root) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {name: _moved(part, root) for name, part in schema.items()}
    if isinstance(ref := moved.get("$ref"), str) and ref.startswith("#/"):
        moved["$ref"] = root + ref[2:]
    return moved


class ToolReader:
    """What of an answer's text is meant for the reader, and which calls are in it.

    Text that may be a call is held back until that is clear.
    """

    def __init__(self, names: Sequence[str], *, several: bool):
        self._names = names
        self._several = several
        self._text = ""
        self._n_said = 0

    def add(self, text: str) -> str:
        """What of it can be said already."""
        self._text += text
        begin = self._text.lstrip()
        if not begin or begin[0] in "{[":
            return ""
        end = self._text.find(_OPEN)
        if end < 0:
            end = len(self._text) - _n_begun(self._text)
        said, self._n_said = self._text[self._n_said : end], max(end, self._n_said)
        return said

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """What is left to say, and the calls, in OpenAI's form."""
        found = self._calls()
        if not found:
            return self._text[self._n_said :], []
        calls = found if self._several else found[:1]
        return "", [
            {
                "id": f"call_{uuid.uuid4().hex}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
            for name, arguments in calls
        ]

    def _calls(self) -> list[tuple[str, Any]]:
        if _OPEN in self._text:
            parts = [part.split(_CLOSE)[0] for part in self._text.split(_OPEN)[1:]]
        else:
            parts = [self._text]
        calls = [_read(part) for part in parts]
        return [call for several in calls for call in several if call[0] in self._names]


def _n_begun(text: str) -> int:
    """Characters at the text's end that a call's mark may begin with."""
    return next((n for n in range(min(len(_OPEN) - 1, len(text)), 0, -1) if _OPEN.startswith(text[-n:])), 0)


def _read(text: str) -> list[tuple[str, Any]]:
    """The calls that a JSON text is, an object or a list of them; none where it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    found = []
    for call in value if isinstance(value, list) else [value]:
        if isinstance(call, Mapping) and isinstance(call.get("name"), str):
            arguments = call.get("arguments", call.get("parameters"))
            if isinstance(arguments, Mapping):
                found.append((call["name"], arguments))
    return found
