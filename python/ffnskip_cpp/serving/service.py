"""From what a body says to answers on their way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ..skip_config import SkipConfig
from .bodies import ANY_SEED, Body, ChatBody, ResponseFormat, TextBody
from .chat import chat_prompt, takes_tools
from .engine import Engine
from .failures import RETRY_AFTER, ApiError, refused
from .forms import ChatForm, Form, TextForm, Wanted
from .grammars import JSON_GBNF, grammar_of
from .metrics import Metrics
from .reply import Reply
from .requests import Closed, QueueFull, Request, Sampling
from .tools import tool_grammar

__all__ = ["Service"]

MAX_ANSWERS = 256  # to one request

Prompt = tuple[int, ...]
Asked = tuple[list[Request], Form]


class Service:
    """
    Args:
        seconds: That an answer may take; 0: as long as it does.
    """

    def __init__(self, engine: Engine, metrics: Metrics, *, seconds: float):
        self._engine = engine
        self._metrics = metrics
        self._seconds = seconds

    def reply(self, body: ChatBody | TextBody, client: str) -> Reply:
        """Begins the answers. Takes its time: not for the event loop's thread.

        Raises:
            ApiError: The request can't be answered, or not now.
        """
        try:
            requests, form = self._chat(body, client) if isinstance(body, ChatBody) else self._text(body, client)
            streams = self._engine.submit_all(requests)
        except QueueFull as error:
            raise ApiError(429, str(error), headers={"Retry-After": str(RETRY_AFTER)}) from error
        except Closed as error:
            raise ApiError(503, str(error)) from error
        except ValueError as error:
            raise refused(error) from error
        return Reply(streams, form, is_streamed=body.stream, seconds=self._seconds, ended=self._metrics.ended)

    def _chat(self, body: ChatBody, client: str) -> Asked:
        llm = self._engine.llm
        tools = [] if body.tool_choice == "none" else body.tools
        if tools and not takes_tools(llm):
            raise ValueError("tools: the model's chat template does not know any")
        if not tools and body.tool_choice not in ("none", "auto"):
            raise ValueError("tool_choice: there are no tools")
        grammar = tool_grammar(tools, body.tool_choice)
        if body.response_format is not None and body.response_format.type != "text":
            if grammar is not None:
                raise ValueError("response_format: not together with a tool that must be called")
            grammar = _format_grammar(body.response_format)
        prompt, stop = chat_prompt(llm, body.messages, tools)
        requests = self._requests(body, [prompt], client, body.most, (*body.stops, *stop), body.n_logprobs, grammar)
        wanted = self._wanted(
            body,
            logprobs=body.logprobs,
            tools=tuple(tool.function.name for tool in tools),
            several_calls=body.parallel_tool_calls,
        )
        return requests, ChatForm(wanted)

    def _text(self, body: TextBody, client: str) -> Asked:
        if body.echo and body.logprobs is not None:
            raise ValueError("logprobs: not with echo, as those of a prompt are not computed")
        prompts, echoes = self._prompts(body.prompt)
        requests = self._requests(body, prompts, client, body.most, tuple(body.stops), body.logprobs, None)
        wanted = self._wanted(body, logprobs=body.logprobs is not None, echoes=tuple(echoes) if body.echo else ())
        return requests, TextForm(wanted)

    def _prompts(self, given: str | list[str] | list[int] | list[list[int]]) -> tuple[list[Prompt], list[str]]:
        """Token ids and text of each."""
        llm = self._engine.llm
        several: list[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
        if not several:
            raise ValueError("prompt: there is none")
        prompts: list[Prompt] = []
        texts: list[str] = []
        for prompt in several:
            if isinstance(prompt, str):
                prompts.append(tuple(llm.tokenize(prompt.encode(), add_bos=True, special=True)))
                texts.append(prompt)
            else:
                if any(not 0 <= token < llm.n_vocab() for token in prompt):
                    raise ValueError(f"prompt: token ids must be in [0, {llm.n_vocab()})")
                prompts.append(tuple(prompt))
                texts.append(llm.detokenize(prompt).decode("utf-8", errors="replace"))
        return prompts, texts

    def _requests(
        self,
        body: Body,
        prompts: Sequence[Prompt],
        client: str,
        max_tokens: int | None,
        stop: tuple[str, ...],
        n_logprobs: int | None,
        grammar: str | None,
    ) -> list[Request]:
        if len(prompts) * body.n > MAX_ANSWERS:
            raise ValueError(f"prompt: {len(prompts) * body.n} answers in one request; {MAX_ANSWERS} are the most")
        skip = self._skip(body)
        requests = []
        for prompt in prompts:
            for i in range(body.n):
                seed = None if body.seed in (None, ANY_SEED) else (body.seed + i) % 2**32
                sampling = Sampling(**{**body.sampling, "seed": seed, "grammar": grammar})
                request = Request(
                    prompt, max_tokens, sampling, stop, n_logprobs, skip, reuses=body.cache_prompt, client=client
                )
                requests.append(request)
        return requests

    def _skip(self, body: Body) -> SkipConfig | Literal["default"] | None:
        trace = body.skip.get("trace", False)
        if not isinstance(trace, bool):
            raise ValueError(f"skip.trace: {str(trace)[:40]!r} is neither true nor false")
        settings = {name: value for name, value in body.skip.items() if name != "trace" and value is not None}
        return self._engine.skip_of(settings) if settings else "default"

    def _wanted(self, body: Body, **more: Any) -> Wanted:
        return Wanted(
            model=self._engine.model_id,
            n=body.n,
            bytes_of=lambda token: self._engine.llm.detokenize([token]),
            trace=body.skip.get("trace", False),
            usage=body.stream_options.include_usage,
            **more,
        )


def _format_grammar(wanted: ResponseFormat) -> str:
    if wanted.type == "json_object":
        return JSON_GBNF if wanted.of_object is None else grammar_of(wanted.of_object, "response_format.schema")
    if wanted.json_schema is None:
        raise ValueError("response_format.json_schema: is missing")
    return grammar_of(wanted.json_schema.wanted, "response_format.json_schema.schema")
