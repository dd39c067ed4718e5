"""What a judge may reply: the grades as a JSON object in the last line. All else is invalid, and never guessed at."""

from __future__ import annotations

import json
import reprlib
from typing import Any

from .templates import Prompt

__all__ = ["BEST", "WORST", "Grades", "InvalidReplyError", "grades_of"]

WORST, BEST = 1, 10

Grades = dict[str, tuple[int, ...]]
"""By criterion, a grade for each answer, in the order in which the judge saw them."""


class InvalidReplyError(ValueError):
    """The message ends the sentence "This reply can't be used: ..."."""


def grades_of(reply: str, prompt: Prompt) -> Grades:
    """
    Raises:
        InvalidReplyError: The last line is no JSON object, lacks a criterion or has one more, or has a grade that is no
            whole number from 1 to 10.
    """
    line = reply.strip().rpartition("\n")[2].strip()
    if not line:
        raise InvalidReplyError("it is empty")
    try:
        given = json.loads(line, object_pairs_hook=_object)
    except InvalidReplyError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is no JSONDecodeError
        raise InvalidReplyError(f"its last line, {_short(line)}, is no JSON object") from error
    if not isinstance(given, dict):
        raise InvalidReplyError(f"its last line, {_short(line)}, is no JSON object")
    for name in prompt.criteria:
        if name not in given:
            raise InvalidReplyError(f'"{name}" is missing in its last line')
    for name in given:
        if name not in prompt.criteria:
            raise InvalidReplyError(f"{_short(name)} is none of the names that were asked for")
    return {name: _grades(name, given[name], prompt.n_answers) for name in prompt.criteria}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(pairs)
    if len(given) < len(pairs):
        raise InvalidReplyError("a name is there twice in its last line")
    return given


def _grades(name: str, given: Any, n_answers: int) -> tuple[int, ...]:
    grades = [given] if n_answers == 1 else given
    if not isinstance(grades, list) or len(grades) != n_answers:
        raise InvalidReplyError(f'"{name}" is {_short(given)}; two grades in a list are right')
    for grade in grades:
        if type(grade) is not int or not WORST <= grade <= BEST:  # True is an int, too
            raise InvalidReplyError(f'"{name}" is {_short(grade)}; a whole number from {WORST} to {BEST} is right')
    return tuple(grades)


def _short(value: Any) -> str:
    return reprlib.repr(value)
