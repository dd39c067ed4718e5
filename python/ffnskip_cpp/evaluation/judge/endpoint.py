"""The judge: a model behind an endpoint that speaks OpenAI's protocol, asked by the `openai` package.

endpoint = Endpoint("http://127.0.0.1:8000/v1", "judge", api_key=None, max_retries=3, timeout=120)
print(endpoint.reply([{"role": "user", "content": "..."}]).text)
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from ...errors import ArgumentError
from .replies import Message, Reply

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

__all__ = ["MAX_TOKENS", "PARAMETERS", "Endpoint", "FailedRequestError", "openai_version", "shown_url"]

MAX_TOKENS = 2048
"""Of a reply. Grades with their reasons take a tenth of it; the rest is for models that think first."""

PARAMETERS = {"temperature": 0, "max_tokens": MAX_TOKENS}

NO_KEY = "none"  # servers of one's own need none, and the package wants one
LONGEST = 300  # characters of an error
REFUSED = (413, 422)  # beside 400, statuses of one request that a server does not take, such as for its length
SECRET = 8  # characters at least; "x" or "none", given to a server that needs no key, would be all over its replies


class FailedRequestError(RuntimeError):
    """No reply. `final`: nor would any other request get one. `is_refusal`: of this request alone, by a server that
    works."""

    def __init__(self, message: str, *, final: bool = False, is_refusal: bool = False):
        super().__init__(message)
        self.final = final
        self.is_refusal = is_refusal


class Endpoint:
    """For several threads at once.

    Args:
        url: As the `openai` package takes it, with "/v1" for most servers.
        model: Name of the judge there.
        api_key: None: the server needs none.
        max_retries: Of a request that fails by no fault of its own (429, 5xx, no connection, no answer in time); the
            package waits in between, longer each time, or as long as the server says.
        timeout: Seconds that the server may be silent.
    Raises:
        ImportError: The `openai` package is missing.
        ArgumentError: `url` is none of http or https.
    """

    def __init__(self, url: str, model: str, api_key: str | None, *, max_retries: int, timeout: float):
        openai = _openai()
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ArgumentError(f"url: {shown_url(url)!r} is no address; one like http://127.0.0.1:8000/v1 is right")
        self.model = model
        self._url = shown_url(url)
        self._secrets = [secret for secret in (api_key, urlsplit(url).password) if secret and len(secret) >= SECRET]
        self._openai = openai
        self._client = openai.OpenAI(base_url=url, api_key=api_key or NO_KEY, max_retries=max_retries, timeout=timeout)
        self._parameters: dict[str, Any] = dict(PARAMETERS)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._client.close()

    def reply(self, messages: Sequence[Message]) -> Reply:
        """What the judge says.

        Raises:
            FailedRequestError: The request failed, and so did its retries; or it was refused.
        """
        while True:
            with self._lock:
                parameters = dict(self._parameters)
            try:
                return self._reply_of(self._ask(messages, parameters))
            except self._openai.BadRequestError as error:
                if not self._does_without(error, parameters):
                    raise FailedRequestError(self._worded(error), is_refusal=True) from error
            except (
                self._openai.AuthenticationError,
                self._openai.PermissionDeniedError,
                self._openai.NotFoundError,
            ) as error:
                hint = "; the address of most servers ends in /v1" if error.status_code == 404 else ""
                message = f"{self._url} refuses to judge: {self._worded(error)}{hint}"
                raise FailedRequestError(message, final=True) from error
            except (self._openai.OpenAIError, json.JSONDecodeError) as error:
                is_refusal = getattr(error, "status_code", None) in REFUSED
                raise FailedRequestError(self._worded(error), is_refusal=is_refusal) from error

    def _ask(self, messages: Sequence[Message], parameters: dict[str, Any]) -> ChatCompletion:
        asked = [dict(message) for message in messages]
        return self._client.chat.completions.create(  # type: ignore[no-any-return]
            model=self.model, messages=asked, **parameters
        )

    def _does_without(self, error: Any, parameters: dict[str, Any]) -> bool:
        """Some models of OpenAI's refuse a temperature, and call the limit on a reply otherwise; they say which."""
        with self._lock:
            if parameters != self._parameters:  # another thread was told before
                return True
            if error.param == "max_tokens" and "max_tokens" in parameters:
                self._parameters["max_completion_tokens"] = self._parameters.pop("max_tokens")
                return True
            return error.param == "temperature" and self._parameters.pop("temperature", None) is not None

    def _reply_of(self, completion: Any) -> Reply:
        """What has no text is no reply, whatever the server's status says; all else may be missing, or nonsense."""
        try:
            choice = completion.choices[0]
            text = choice.message.content or ""
            if not isinstance(text, str):
                raise TypeError(f"a text that is {type(text).__name__}")
        except (AttributeError, LookupError, TypeError) as error:
            raise FailedRequestError("what the server sends is no chat completion") from error
        usage = getattr(completion, "usage", None)
        reply = Reply.of(
            text,
            finish_reason=getattr(choice, "finish_reason", None),
            model=getattr(completion, "model", None),
            tokens_in=getattr(usage, "prompt_tokens", None),
            tokens_out=getattr(usage, "completion_tokens", None),
        )
        return replace(
            reply,
            text=self._cleaned(reply.text),
            finish_reason=self._cleaned(reply.finish_reason),
            model=self._cleaned(reply.model),
        )

    def _worded(self, error: Exception) -> str:
        """In one line, with what lies behind the package's "Connection error."."""
        text = f"{error} {error.__cause__ or ''}" if isinstance(error, self._openai.APIConnectionError) else str(error)
        text = " ".join(self._without_secrets(text).split())
        return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."

    def _cleaned(self, text: str) -> str:
        """Without half surrogate pairs too, which are no UTF-8."""
        return self._without_secrets(text).encode("utf-8", "replace").decode("utf-8")

    def _without_secrets(self, text: str) -> str:
        """Servers may quote what they were sent."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def shown_url(url: str) -> str:
    """Without user, password and query, which may be secret."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def openai_version() -> str:
    return str(_openai().__version__)


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ImportError("judging needs the openai package: pip install 'ffnskip_cpp[judge]'") from error
    return openai
