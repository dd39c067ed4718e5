"""What the commands' options have in common: names, spellings, and how values are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..devices import add_rpc_servers

__all__ = [
    "UsageError",
    "add_devices",
    "add_flash_attention",
    "add_model",
    "add_progress",
    "add_seed",
    "add_text",
    "add_threads",
    "explain",
    "list_of",
    "take_devices",
    "take_model",
]


FLASH_ATTENTION = {"on": True, "off": False, "auto": None, "1": True, "0": False}


class UsageError(Exception):
    """The options make no sense together; exit status 2, as argparse's own."""


def explain(parser: argparse.ArgumentParser, text: str) -> None:
    """`text` stands below the options, as it is; it ends with worked examples."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = text


def add_model(
    parser: argparse.ArgumentParser, what: str, *, metavar: str = "MODEL.gguf", required: bool = True
) -> None:
    """The model by its place, as in `ffnskip COMMAND model.gguf`, or by -m as in llama.cpp's programs."""
    what = f"{what}; the first part, if it is split" if metavar.endswith(".gguf") else what
    # Not nargs="?", which argparse takes for empty where an option comes before it.
    parser.add_argument("model", metavar=metavar, help=what).required = False
    parser.add_argument("-m", "--model", dest="model_option", metavar=metavar, help="the same")
    parser.set_defaults(model_metavar=metavar if required else None)


def take_model(args: argparse.Namespace) -> None:
    """Raises UsageError where the model of add_model() is missing, or there are two."""
    if not hasattr(args, "model_option"):
        return
    if args.model is not None and args.model_option is not None:
        raise UsageError(f"two models: {args.model} and {args.model_option}")
    args.model = args.model_option if args.model is None else args.model
    if args.model is None and args.model_metavar is not None:
        raise UsageError(f"the following arguments are required: {args.model_metavar}")


def add_text(parser: argparse.ArgumentParser, what: str, *, required: bool = False) -> None:
    """--text FILE, once for each file."""
    parser.add_argument("--text", action="append", required=required, metavar="FILE", help=f"{what}; may be repeated")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """The processors, and the GPU's layers, as llama.cpp's programs name them."""
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads (default: all processors)")
    add_devices(parser)


def add_devices(parser: argparse.ArgumentParser) -> None:
    """What layers may lie on, as llama.cpp's programs name it."""
    parser.add_argument(
        "-ngl",
        "--n-gpu-layers",
        type=int,
        default=-1,
        metavar="N",
        help="layers on the GPU; -1: all (default)",
    )
    parser.add_argument(
        "--rpc", metavar="SERVERS", help="RPC servers whose devices take layers as GPUs do: HOST:PORT,HOST:PORT"
    )


def add_flash_attention(parser: argparse.ArgumentParser) -> None:
    """As llama.cpp's programs name it; `args.flash_attn` is None where llama.cpp decides."""
    parser.add_argument(
        "-fa",
        "--flash-attn",
        type=_flash_attention,
        metavar="{on,off,auto}",
        help="flash attention (default: auto, llama.cpp decides)",
    )


def _flash_attention(text: str) -> bool | None:
    try:
        return FLASH_ATTENTION[text]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(FLASH_ATTENTION)}") from None


def take_devices(args: argparse.Namespace) -> None:
    """Those of add_devices() are there for all models that are loaded. Raises as `add_rpc_servers`."""
    if getattr(args, "rpc", None) is not None:
        add_rpc_servers(args.rpc)


def add_progress(parser: argparse.ArgumentParser) -> None:
    """--no-progress: `args.progress` is False then, else None, a bar where stderr is a terminal."""
    parser.add_argument(
        "--no-progress",
        dest="progress",
        action="store_const",
        const=False,
        help="no progress bar (default: one where stderr is a terminal)",
    )


def add_seed(parser: argparse.ArgumentParser, what: str, *, default: int = 0, old: str | None = None) -> None:
    """
    Args:
        old: A name that it had, which goes on working.
    """
    parser.add_argument("-s", "--seed", type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    if old is not None:
        parser.add_argument(old, dest="seed", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def list_of(convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A `type=` for values with commas between them: "1,2" is (1, 2) for `list_of(int)`."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(convert(part) for part in text.split(","))

    parse.__name__ = f"list of {convert.__name__}"  # argparse puts it into its message
    return parse
