"""The options that say what to skip, as `ffnskip run` and `ffnskip serve` have them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from .. import _core
from ..errors import ArgumentError
from ..profile import read_profile
from ..skip_config import SkipConfig

__all__ = ["add_skip_options", "given_skip_options", "skip_config"]


def add_skip_options(parser: argparse._ActionsContainer) -> None:
    """An option for each setting, and --profile."""
    for name, metavar, text in _core.options():
        if metavar is None:
            parser.add_argument(f"--{name}", action="store_const", const="", help=text)
        else:
            parser.add_argument(f"--{name}", metavar=metavar, help=text.replace("%", "%%"))
    parser.add_argument(
        "--profile",
        metavar="FILE",
        help="skip profile; skip options change single values of it (default: the one beside or in the model, unless "
        "a skip option is given)",
    )


def given_skip_options(args: argparse.Namespace) -> dict[str, str]:
    """Values by name of those that were given; "" for a switch."""
    names = [name for name, _, _ in _core.options()]
    return {name: value for name in names if (value := getattr(args, name.replace("-", "_"))) is not None}


def skip_config(options: Mapping[str, str], profile: str | os.PathLike[str] | None) -> SkipConfig:
    """What they mean, in place of single values of the profile.

    Raises:
        FileNotFoundError: There is no such profile.
        ValueError: It is none.
        ArgumentError: An option is unknown, or its value is not right for it.
    """
    base = SkipConfig() if profile is None else read_profile(profile).config
    try:
        return _core.config_from_options(list(options.items()), base)
    except ValueError as error:
        raise ArgumentError(str(error)) from error
