"""JSON Schema to grammars: llama_cpp's own conversion, kept from what would take memory or time without end."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from llama_cpp.llama_grammar import JSON_GBNF, json_schema_to_gbnf

__all__ = ["JSON_GBNF", "grammar_of"]

MAX_NODES = 2000  # of a schema
MAX_TIMES = 200  # a grammar writes a repetition out
MAX_GRAMMAR = 200_000  # characters

# llama_cpp lets strings have line breaks as they are, which JSON does not.
_ANY_CHAR = r'char ::= [^"\\] |'
_JSON_CHAR = r'char ::= [^"\\\x7F\x00-\x1F] |'

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")


def grammar_of(schema: Mapping[str, Any], field: str) -> str:
    """The grammar of all texts that are JSON by that schema.

    Raises:
        ValueError: It can't be turned into one; the message begins with `field`.
    """
    try:
        _check(schema)
        grammar: str = json_schema_to_gbnf(json.dumps(schema))
    except RecursionError:
        raise ValueError(f"{field}: too deep to be turned into a grammar") from None
    except Exception as error:  # the converter expects a right schema, and fails anyhow otherwise
        why = str(error) if str(error) else type(error).__name__
        raise ValueError(f"{field}: can't be turned into a grammar: {why[:200]}") from error
    if len(grammar) > MAX_GRAMMAR:
        raise ValueError(f"{field}: its grammar has {len(grammar)} characters, more than {MAX_GRAMMAR}")
    return grammar.replace(_ANY_CHAR, _JSON_CHAR)


def _check(schema: Any) -> None:
    todo, n_nodes = [schema], 0
    while todo:
        node = todo.pop()
        n_nodes += 1
        if n_nodes > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} parts")
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            todo += node.values()
            _check_repetitions(node)


def _check_repetitions(node: Mapping[str, Any]) -> None:
    times = [node[name] for name in _COUNTS if isinstance(node.get(name), (int, float))]
    if isinstance(node.get("pattern"), str):
        times += [
            int(number[:9])
            for part in re.findall(r"\{([\d,]+)\}", node["pattern"])
            for number in part.split(",")
            if number
        ]
    if any(number > MAX_TIMES for number in times):
        raise ValueError(f"something is repeated {max(times)} times; {MAX_TIMES} are the most")
