"""The server's paths, as an ASGI application: OpenAI's for chats and texts, and those of this package beside them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from llama_cpp.llama_types import CreateChatCompletionResponse, CreateCompletionResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ..errors import ArgumentError
from .bodies import ChatBody, TextBody
from .engine import Engine
from .failures import ApiError, ErrorBody, response_of, validation_error
from .guard import Guard, Limits
from .metrics import Counted, Metrics
from .offers import offers
from .page import HEADERS, PageFile, page_files
from .service import Service

__all__ = ["create_app"]

NOWHERE = {404: "there is no such path", 405: "the path is for another method"}
_LIMITS = Limits()


def create_app(
    engine: Engine, *, limits: Limits = _LIMITS, api_key: str | None = None, origins: Sequence[str] = ()
) -> FastAPI:
    """
    Args:
        api_key: That requests must have, but for the page itself and /health; None: none is asked for.
        origins: Of other sites whose scripts may use the server from a browser; "*": all.
    Raises:
        ArgumentError: An origin that is none.
    """
    from .. import __version__

    app = FastAPI(
        title="ffnskip",
        version=__version__,
        description="OpenAI's API for a llama.cpp model that leaves parts of itself out.",
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
    )
    metrics = Metrics(engine)
    _add_errors(app)
    _add_answers(app, Service(engine, metrics, seconds=limits.seconds))
    _add_facts(app, engine, metrics)
    page = page_files()
    for path, file in page.items():
        _add_page_file(app, path, file)
    paths = {getattr(route, "path", "") for route in app.routes}
    app.add_middleware(Guard, limits=limits, api_key=api_key, open_paths={"/health", *page})
    app.add_middleware(Counted, metrics=metrics, paths=paths)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[_origin(given) for given in origins],
            allow_methods=["*"],
            allow_headers=["*"],
        )
    return app


def _origin(given: str) -> str:
    """As browsers write it."""
    parts = urlsplit(given)
    if given != "*" and (not parts.scheme or not parts.netloc or parts.path not in ("", "/") or parts.query):
        raise ArgumentError(f"cors: {given!r} is no origin, such as https://example.org, or * for all")
    return given.rstrip("/").lower()


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        if error.status_code in NOWHERE and not isinstance(error, ApiError):
            error.detail = f"{request.method} {request.url.path[:200]}: {NOWHERE[error.status_code]}"
        return response_of(error)

    @app.exception_handler(RequestValidationError)
    async def of_body(_: Request, error: RequestValidationError) -> Response:
        return response_of(validation_error(error))

    @app.exception_handler(Exception)
    async def of_bug(_: Request, error: Exception) -> Response:
        return response_of(ApiError(500, f"the server failed: {type(error).__name__}"))


def _add_answers(app: FastAPI, service: Service) -> None:
    async def reply(body: ChatBody | TextBody, request: Request) -> Response:
        client = request.client.host if request.client else ""
        return await run_in_threadpool(service.reply, body, client)

    @app.post("/v1/chat/completions", responses=_answers(CreateChatCompletionResponse))
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """An answer to a conversation."""
        return await reply(body, request)

    @app.post("/v1/completions", responses=_answers(CreateCompletionResponse))
    async def completions(body: TextBody, request: Request) -> Response:
        """How a text goes on."""
        return await reply(body, request)


def _answers(model: Any) -> dict[int | str, dict[str, Any]]:
    """Of the OpenAPI document. What is wrong with a body has status 400, and not FastAPI's 422."""
    whole = "Whole, or events where `stream` is true."
    return {
        200: {"model": model, "description": whole, "content": {"text/event-stream": {}}},
        "default": {"model": ErrorBody, "description": "Why there is no answer."},
    }


def _add_facts(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    model = {"id": engine.model_id, "object": "model", "created": int(time.time()), "owned_by": "ffnskip"}
    skips = offers(engine)
    errors: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorBody, "description": "Why not."}}

    @app.get("/v1/models", responses=errors)
    async def models() -> Response:
        """The one model there is."""
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/v1/models/{name}", responses=errors)
    async def one_model(name: str) -> Response:
        """The model, by its name."""
        if name != engine.model_id:
            raise ApiError(404, f"there is no model {name[:100]!r}; there is {engine.model_id}")
        return JSONResponse(model)

    @app.get("/v1/skip", responses=errors)
    async def skip() -> Response:
        """What the server skips, and what a request may ask for instead."""
        return JSONResponse(skips)

    @app.get("/health", responses=errors)
    async def health() -> Response:
        """Whether requests are taken."""
        if not engine.is_open:
            raise ApiError(503, "the server takes no more requests")
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def numbers() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_page_file(app: FastAPI, path: str, file: PageFile) -> None:
    async def send(_: Request) -> Response:
        return Response(file.body, media_type=file.media_type, headers=HEADERS)

    app.add_route(path, send, include_in_schema=False)
