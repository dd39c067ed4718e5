"""What requests may say, field by field; what is not here is refused by name. A field that is null is left out."""

# No `from __future__ import annotations`: pydantic reads the types, which Python 3.9 must be able to.

import contextlib
import json
from typing import Any, Literal, Optional, Union

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .requests import MAX_LOGPROBS, Sampling

__all__ = ["ANY_SEED", "ChatBody", "Message", "ResponseFormat", "TextBody", "Tool"]

MAX_CHOICES = 16
NO_LIMIT = ANY_SEED = -1  # as llama.cpp's clients say it
TOKENS = f"Tokens to generate; {NO_LIMIT}: as many as there is room for."
_DEFAULT = Sampling()


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_nulls_out(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body


class Lenient(Strict):
    """For what clients send back as they got it, whatever else is in it."""

    model_config = ConfigDict(extra="ignore")


class StreamOptions(Lenient):
    include_usage: bool = Field(False, description="A last chunk says how many tokens there were.")


class Body(Strict):
    model: str = Field("", description="Not looked at: there is one model, and answers name it.")
    max_tokens: Optional[int] = Field(None, ge=NO_LIMIT, description=TOKENS)
    n: int = Field(
        1, ge=1, le=MAX_CHOICES, description="Answers to each prompt; of a seed, with that and the next ones."
    )
    stop: Union[str, list[str]] = Field([], description="Texts that end the answer, and are no part of it.")
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=lambda: StreamOptions.model_validate({}))
    seed: Optional[int] = Field(None, ge=ANY_SEED, lt=2**32, description="-1: a random one.")
    temperature: float = Field(_DEFAULT.temperature, ge=0, allow_inf_nan=False)
    top_p: float = Field(_DEFAULT.top_p, ge=0, le=1)
    top_k: int = Field(_DEFAULT.top_k, ge=-(2**31), lt=2**31, description="0 or less: all.")
    min_p: float = Field(_DEFAULT.min_p, ge=0, le=1)
    typical_p: float = Field(_DEFAULT.typical_p, ge=0, le=1)
    repeat_penalty: float = Field(_DEFAULT.repeat_penalty, gt=0, allow_inf_nan=False)
    frequency_penalty: float = Field(_DEFAULT.frequency_penalty, ge=-2, le=2)
    presence_penalty: float = Field(_DEFAULT.presence_penalty, ge=-2, le=2)
    logit_bias: dict[str, float] = Field({}, description="Added to the logits of tokens, by token id.")
    skip: dict[str, Any] = Field(
        {},
        description="What this answer skips, by the fields of SkipConfig, in place of what the server does (GET "
        '/v1/skip); {"policy": "dense"}: nothing. `trace`: every token says what it skipped.',
    )
    cache_prompt: bool = Field(True, description="What is in memory of the prompt is not evaluated again.")
    # Known to OpenAI's clients, and without a meaning here.
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None

    @property
    def most(self) -> Optional[int]:
        """Tokens to generate; None: as many as there is room for. Raises ValueError where they are none."""
        return _limit("max_tokens", self.max_tokens)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def sampling(self) -> dict[str, Any]:
        """Of `Sampling`, what is said here. Raises ValueError where a bias is of no token id."""
        bias = {}
        for token, value in self.logit_bias.items():
            if not token.isascii() or not token.isdigit():
                raise ValueError(f"logit_bias: {token!r} is no token id")
            bias[int(token[:12])] = value
        names = set(Sampling.__dataclass_fields__) & set(type(self).model_fields)
        return {**{name: getattr(self, name) for name in names}, "logit_bias": bias}


def _limit(name: str, n_tokens: Optional[int]) -> Optional[int]:
    if n_tokens == 0:
        raise ValueError(f"{name}: 0 is no answer; 1 or more, or {NO_LIMIT} for as many as there is room for")
    return None if n_tokens == NO_LIMIT else n_tokens


class TextBody(Body):
    prompt: Union[str, list[str], list[int], list[list[int]]] = Field(description="Text or token ids, or several.")
    max_tokens: Optional[int] = Field(16, ge=NO_LIMIT, description=TOKENS)
    echo: bool = Field(False, description="The answer begins with the prompt.")
    logprobs: Optional[int] = Field(None, ge=0, le=MAX_LOGPROBS, description="The likeliest tokens told with each.")


class FunctionCall(Lenient):
    name: str
    arguments: str


class ToolCall(Lenient):
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class TextPart(Lenient):
    type: Literal["text"]
    text: str


class Message(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Union[str, list[TextPart]] = ""
    name: Optional[str] = None
    tool_calls: Optional[list[ToolCall]] = None
    tool_call_id: Optional[str] = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_alone(cls, content: Any) -> Any:
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type", "text") != "text":
                raise ValueError(f"a part of type {str(part['type'])[:40]!r}; the server reads text alone")
        return content

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: arguments of calls are objects there."""
        message = self.model_dump(exclude_none=True)
        for call in message.get("tool_calls", ()):
            with contextlib.suppress(ValueError, RecursionError):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        message["role"] = "system" if self.role == "developer" else self.role
        if not isinstance(self.content, str):
            message["content"] = "".join(part.text for part in self.content)
        return message


class JsonSchema(Lenient):
    model_config = ConfigDict(protected_namespaces=())

    name: str = ""
    wanted: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Optional[JsonSchema] = None
    of_object: Optional[dict[str, Any]] = Field(None, alias="schema", description="Of a json_object, if any.")


class Function(Lenient):
    name: str = Field(min_length=1, max_length=64)
    description: str = ""
    parameters: dict[str, Any] = {}


class Tool(Strict):
    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    name: str


class ToolChoice(Strict):
    type: Literal["function"]
    function: FunctionName


class ChatBody(Body):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Optional[int] = Field(None, ge=NO_LIMIT, description="The same as max_tokens.")
    modalities: list[Literal["text"]] = ["text"]
    logprobs: bool = False
    top_logprobs: Optional[int] = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: Optional[ResponseFormat] = None
    tools: list[Tool] = []
    tool_choice: Union[Literal["none", "auto", "required"], ToolChoice] = "auto"
    parallel_tool_calls: bool = True

    @property
    def n_logprobs(self) -> Optional[int]:
        """Raises ValueError where the two fields contradict each other."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs: true")
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most(self) -> Optional[int]:
        if self.max_completion_tokens is None:
            return super().most
        return _limit("max_completion_tokens", self.max_completion_tokens)
