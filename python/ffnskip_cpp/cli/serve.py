"""`ffnskip serve`: a model for OpenAI's clients, and a page that shows what each token skipped."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing

from ..errors import ArgumentError
from ..lora import LORA_HELP, as_adapter
from ..measure.model import check_model
from ..skip_argument import Skip
from .arguments import UsageError, add_flash_attention, add_model, add_threads, explain
from .skip_options import add_skip_options, given_skip_options, skip_config

__all__ = ["INTERRUPTED", "add_arguments", "run"]

INTERRUPTED = "all answers have ended"

HELP = """\
Needs pip install 'ffnskip_cpp[server]'. Without a profile or a skip option nothing is skipped, but by requests that say
so. Ctrl-C ends it: answers that are under way have --grace seconds; pressed twice, none.

examples:
  ffnskip serve model.gguf                               # as the model's profile says, at http://127.0.0.1:8080
  ffnskip serve model.gguf --skip-ratio 0.25 --parallel 8 --ctx 8192
  FFNSKIP_API_KEY=... ffnskip serve model.gguf --host 0.0.0.0

  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"messages": [{"role": "user", "content": "Hello!"}]}'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "model, a GGUF file")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen at (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=8080, metavar="N", help="port; 0: any free one (default: 8080)")
    parser.add_argument("-np", "--parallel", type=int, default=4, metavar="N", help="answers at once (default: 4)")
    parser.add_argument(
        "-c",
        "--ctx",
        "--ctx-size",
        dest="ctx",
        type=int,
        metavar="N",
        help="tokens of a prompt and its answer, for each of --parallel (default: the model's, 4096 at most)",
    )
    add_threads(parser)
    add_flash_attention(parser)
    parser.add_argument("--lora", metavar="FILE", help=LORA_HELP)
    _add_limits(parser.add_argument_group("limits and security"))
    add_skip_options(parser.add_argument_group("what is skipped, where a request does not say"))
    explain(parser, HELP)


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--api-key", metavar="KEY", help="key that requests must have (default: FFNSKIP_API_KEY, if set)"
    )
    group.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin of a site whose scripts may use the server from a browser, such as https://example.org; *: any; "
        "may be repeated (default: none)",
    )
    for name, kind, default, what in (
        ("--max-queue", int, 64, "answers that may wait; more requests are refused with 429"),
        ("--max-body", int, 1 << 20, "bytes of a request"),
        ("--timeout", float, 600, "seconds that a request may take, waiting included; 0: no limit"),
        ("--grace", float, 10, "seconds that answers have to end when the server is told to"),
    ):
        metavar = "N" if kind is int else "S"
        group.add_argument(name, type=kind, default=default, metavar=metavar, help=f"{what} (default: {default})")


def run(args: argparse.Namespace) -> int:
    try:
        from ..serving.app import create_app
        from ..serving.guard import Limits
        from ..serving.server import Server, bind, url_of
    except ImportError as error:
        raise ImportError(f"serve needs {error.name}: pip install 'ffnskip_cpp[server]'") from error
    from ..serving.chat import has_template
    from ..serving.engine import Engine

    key = args.api_key if args.api_key is not None else os.environ.get("FFNSKIP_API_KEY")
    if key is not None and not key.strip():
        raise UsageError("the API key is empty; leave --api-key and FFNSKIP_API_KEY away for none")
    limits = Limits(max_body=args.max_body, seconds=args.timeout)
    _check(args)
    skip = _skip(args)
    adapter = {} if args.lora is None else as_adapter(args.lora).options()
    threads = args.threads or os.cpu_count()
    with closing(bind(args.host, args.port)) as bound:
        check_model(args.model, args.threads, args.lora)
        with _warnings_in_a_line():
            engine = Engine(
                args.model,
                n_parallel=args.parallel,
                n_ctx=args.ctx or None,
                skip=skip,
                max_queue=args.max_queue,
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=args.n_gpu_layers,
                flash_attn=args.flash_attn,
                **adapter,
            )
        with closing(engine):
            app = create_app(engine, limits=limits, api_key=key, origins=args.cors)

            def ready() -> None:
                _say_where(url_of(bound), engine.model_id, "dense" if engine.skip is None else engine.skip.label)

            def waits() -> None:
                _note(f"no more requests are taken; answers have {args.grace:g} s to end, and none after Ctrl-C again")

            if engine.llm.why_dense is not None:
                _note(f"nothing can be skipped: {engine.llm.why_dense}")
            elif engine.skip is None and skip == "auto":
                _note(
                    "no profile is beside or in the model, so nothing is skipped but by requests that say so; "
                    f"ffnskip calibrate {args.model} --text FILE makes one"
                )
            if engine.n_ctx_slot > engine.llm.n_ctx_train:
                _note(f"--ctx {engine.n_ctx_slot}: the model was trained on {engine.llm.n_ctx_train} tokens")
            if not has_template(engine.llm):
                _note("the model has no chat template; chats are written as Llama 2's")
            if key is None and not _is_loopback(args.host):
                _note("anybody who reaches this machine can use it: no API key is set")
            Server(app, engine, grace=args.grace, ready=ready, waits=waits).run(sockets=[bound])
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.parallel < 1:
        raise ArgumentError(f"--parallel {args.parallel}: 1 or more")
    if args.ctx is not None and args.ctx < 0:
        raise ArgumentError(f"--ctx {args.ctx}: 1 or more, or 0 for the default")
    if not 0 <= args.port < 2**16:
        raise ArgumentError(f"--port {args.port}: 0 to {2**16 - 1}")
    if args.max_queue < 0:
        raise ArgumentError(f"--max-queue {args.max_queue}: 0 or more")
    if not 0 <= args.grace < math.inf:
        raise ArgumentError(f"--grace {args.grace}: a number of seconds, 0 or more")


def _skip(args: argparse.Namespace) -> Skip:
    options = given_skip_options(args)
    if not options:
        return "auto" if args.profile is None else args.profile
    return skip_config(options, args.profile)


def _note(text: object) -> None:
    print(f"ffnskip serve: {text}", file=sys.stderr)


@contextlib.contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield
    for warning in caught:
        _note(warning.message)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _say_where(url: str, model: str, skips: str) -> None:
    print(f"{model} ({skips}) is served at {url}; OpenAI's clients take {url}/v1", flush=True)
