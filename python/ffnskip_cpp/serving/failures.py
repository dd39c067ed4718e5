"""Errors, as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Optional

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from typing_extensions import TypedDict

from .requests import PromptTooLong

__all__ = ["ApiError", "ErrorBody", "error_of", "refused", "response_of", "validation_error"]

RETRY_AFTER = 2  # seconds


class ErrorFacts(TypedDict):
    message: str
    type: str
    param: Optional[str]  # noqa: UP045 - FastAPI reads it, with Python 3.9 too
    code: Optional[str]  # noqa: UP045


class ErrorBody(TypedDict):
    """Of an answer that is an error."""

    error: ErrorFacts


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    401: "invalid_api_key",
    403: "host_not_allowed",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "body_too_large",
    429: "queue_full",
    503: "unavailable",
    504: "timeout",
}
_FIELD = re.compile(r"[a-z_]+(\.[\w-]+)*(?=: )")
_OF_A_UNION = {"str", "int", "float", "bool", "none"}  # pydantic says which type of several a value is not


class ApiError(HTTPException):
    """Why a request is not answered.

    Args:
        param: Field of the body that is to blame, if one is.
        code: Another one than that of all errors of this status.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, dict(headers or {}))
        self.param = param
        self.code = code


def refused(error: ValueError) -> ApiError:
    """400; messages of this package begin with the field that they are about."""
    if isinstance(error, UnicodeEncodeError):
        return ApiError(400, "the body has half a surrogate pair in a text, which is no character")
    message = str(error)
    field = _FIELD.match(message)
    code = "context_length_exceeded" if isinstance(error, PromptTooLong) else None
    return ApiError(400, message, param=field[0] if field else None, code=code)


def validation_error(error: RequestValidationError) -> ApiError:
    """400; of all that is wrong, the first."""
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {problem['ctx']['error']}")
    where = [str(part) for part in problem["loc"][1:]]
    field = ".".join(part for part in where if part not in _OF_A_UNION and re.fullmatch(r"[\w-]+", part))
    what = "is not known" if problem["type"] == "extra_forbidden" else problem["msg"]
    if not field:
        return ApiError(400, f"the body: {what}; it must be a JSON object, and its Content-Type application/json")
    return ApiError(400, f"{field}: {what}", param=field)


def error_of(error: HTTPException) -> ErrorBody:
    """The body."""
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": error.detail,
            "type": _TYPES.get(error.status_code, kind),
            "param": getattr(error, "param", None),
            "code": getattr(error, "code", None) or _CODES.get(error.status_code),
        }
    }


def response_of(error: HTTPException) -> Response:
    body = json.dumps(error_of(error))  # in ASCII: a message may have what is no character
    return Response(body, error.status_code, error.headers, media_type="application/json")
