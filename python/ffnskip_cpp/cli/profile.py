"""`ffnskip profile`: look at the skip profile of a model, change its settings, keep it in the model's own file.

docs/profiles.md says what a profile is, and where it is looked for.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import _core
from ..profile import (
    SETTINGS,
    change_settings,
    embed_profile,
    locate_profile,
    profile_keys,
    profile_path,
    read_profile,
    settings_of,
    strip_profile,
)
from ..ranges import ranges
from ..skip_config import SkipConfig
from ..table import aligned
from .arguments import add_model, explain

__all__ = ["add_arguments", "run"]

MEASURED = ("skip_ratio", "kl", "top1_agreement", "perplexity_ratio", "candidates")  # of the settings, not of the model

# The skip options that are not called as the setting is.
OPTION_OF = {"layers": "skip-layers", "warm_up_index": "warm-up"}

EXAMPLES = {
    "show": ("ffnskip profile show model.gguf", "ffnskip profile show model.ffnskip.gguf --json"),
    "set": (
        "ffnskip profile set model.gguf sim_threshold=0.95 max_skip=6",
        "ffnskip profile set model.ffnskip.gguf layers=8-12,14",
    ),
    "embed": ("ffnskip profile embed model.gguf", "ffnskip profile embed model.gguf --profile other.ffnskip.gguf"),
    "strip": ("ffnskip profile strip model.gguf",),
}


def _settings_help() -> str:
    """A line for each, in the words of the skip options."""
    texts = {name: text for name, _, text in _core.options()}
    rows = [(f"  {key}", texts[OPTION_OF.get(key, key.replace("_", "-"))]) for key in SETTINGS]
    return aligned(("settings", ""), rows, left=("settings", ""))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    holder = "profile, or a model with one beside it or inside"

    show = _add_action(actions, "show", _show, "print a profile: its settings, then what was learnt about the model")
    add_model(show, holder, metavar="FILE")
    show.add_argument("--json", action="store_true", help="as one JSON object; null where a number is not finite")

    change = _add_action(actions, "set", _set, "change settings in a profile", f"{_settings_help()}\n\n")
    change.add_argument("model", metavar="FILE", nargs="?", help=holder)
    change.add_argument("-m", "--model", dest="model_option", metavar="FILE", help="the same")
    change.set_defaults(model_metavar="FILE KEY=VALUE")
    change.add_argument("changes", metavar="KEY=VALUE", nargs="+", help="setting, and the value it gets")

    embed = _add_action(
        actions, "embed", _embed, "copy a profile into the model file; needs room for a second copy of that"
    )
    add_model(embed, "model file")
    embed.add_argument("--profile", metavar="FILE", help="profile to copy (default: the one beside the model)")

    strip = _add_action(actions, "strip", _strip, "take the profile out of a model file; needs room as embed does")
    add_model(strip, "model file")
    explain(parser, "examples:\n  " + "\n  ".join(examples[0] for examples in EXAMPLES.values()))


def _add_action(
    actions: Any, name: str, act: Callable[[argparse.Namespace], None], text: str, notes: str = ""
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(act=act)
    explain(parser, f"{notes}examples:\n  " + "\n  ".join(EXAMPLES[name]))
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the action; 0 unless it raises."""
    args.act(args)
    return 0


# ---- embed, strip ----


def _embed(args: argparse.Namespace) -> None:
    from ..llama import Llama

    model = Path(args.model)
    if not model.is_file():
        raise FileNotFoundError(f"{model}: no such file")
    profile = profile_path(model) if args.profile is None else Path(args.profile)
    if args.profile is None and not profile.is_file():
        raise FileNotFoundError(f"{model}: there is no profile beside it ({profile.name}); give one with --profile")
    read_profile(profile)
    with Llama(str(model), skip=profile, n_ctx=32, n_batch=32, verbose=False):
        pass  # another model's profile is refused here
    embed_profile(model, profile)
    print(f"{model}: holds the profile {profile} now")
    if args.profile is None:
        print(f"{profile} is used in place of it while it is there")


def _strip(args: argparse.Namespace) -> None:
    stripped = strip_profile(args.model)
    print(f"{args.model}: {'the profile was taken out' if stripped else 'there was no profile in it'}")


# ---- set ----


def _set(args: argparse.Namespace) -> None:
    changes = dict(map(_parse, args.changes))
    path = locate_profile(args.model)
    old = read_profile(path).config
    new = _changed(old, changes)
    if new == old:
        print(f"{path}: these are its settings already")
        return
    outdated = [key for key in profile_keys(path) if key in MEASURED]
    change_settings(path, new, outdated)
    print(f"{path}: set {', '.join(args.changes)}")
    if outdated:
        print(f"dropped {', '.join(outdated)}, measured with the settings before")


def _parse(change: str) -> tuple[str, Any]:
    """Key and value of KEY=VALUE; values are read as those of the skip options."""
    key, equals, text = change.partition("=")
    if not equals:
        raise ValueError(f"{change!r} is no KEY=VALUE")
    if key not in SETTINGS:
        raise ValueError(f"{key!r} is no setting; those that are: {', '.join(SETTINGS)}")
    if key == "policy":
        return key, text
    option = OPTION_OF.get(key, key.replace("_", "-"))
    try:
        return key, getattr(_core.config_from_options([(option, text)], SkipConfig()), key)
    except ValueError as error:
        raise ValueError(str(error).replace(f"{option}:", f"{key}:", 1)) from error


def _changed(old: SkipConfig, changes: Mapping[str, Any]) -> SkipConfig:
    """`old` with `changes`; a policy that is named leaves layers and thresholds of layers behind."""
    kept = {key: getattr(old, key) for key in settings_of(old)}
    if "policy" in changes:
        for key in ("layers", "layer_thresholds", *(("max_skip",) if old.max_skip == 0 else ())):
            kept.pop(key, None)
    given = {**kept, **changes}
    new = SkipConfig(**given)
    wanted = settings_of(new)
    for key, value in changes.items():
        if key not in wanted or (key != "policy" and getattr(new, key) != value):
            raise ValueError(f"{key}: these settings have no use for it; their own are {', '.join(wanted)}")
    # What has no default, or one that is not right for any model; an old name of a policy may imply it.
    missing = [key for key in wanted if key not in given and (key == "sim_threshold" or getattr(new, key) is None)]
    if missing:
        raise ValueError(f"policy: {given['policy']!r} needs {', '.join(missing)} as well")
    return SkipConfig(**{key: getattr(new, key) for key in wanted})


# ---- show ----


def _show(args: argparse.Namespace) -> None:
    path = locate_profile(args.model)
    config, kept = read_profile(path).config, profile_keys(path)
    settings = {key: getattr(config, key) for key in settings_of(config) if key in kept or key == "max_skip"}
    keys = {key: _readable(value) for key, value in {**kept, **settings}.items()}
    print(json.dumps(_finite(keys), allow_nan=False) if args.json else _text(path, keys))


def _readable(value: Any) -> Any:
    """What write_profile() was given."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _finite(value: Any) -> Any:
    """JSON has no infinity, and jq refuses one."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(path: Path, keys: Mapping[str, Any]) -> str:
    settings = {key: keys[key] for key in SETTINGS if key in keys}
    learnt = {key: value for key, value in keys.items() if key not in settings and key != "model"}
    columns = {key: value for key, value in keys.items() if key != "layers" and _is_per_layer(value)}
    tables = {key: value for key, value in learnt.items() if _is_table(value)}
    aside = {*columns, *tables}
    sections = [
        f"{path}\nfor the model {keys['model']}",
        _lines("settings", {key: value for key, value in settings.items() if key not in aside}),
        _lines("learnt", {key: value for key, value in learnt.items() if key not in aside}),
        _layer_table(columns),
        *(f"{key}\n{_dict_table(rows)}" for key, rows in tables.items()),
    ]
    return "\n\n".join(filter(None, sections))


def _is_per_layer(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, (int, float)) for item in value)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, dict) for item in value)


def _lines(title: str, values: Mapping[str, Any]) -> str:
    width = max(map(len, values), default=0)
    lines = [f"  {key:<{width}}  {_shown(value, key)}" for key, value in values.items()]
    return "\n".join([title, *lines]) if lines else ""


def _layer_table(columns: Mapping[str, Sequence[float]]) -> str:
    if not columns:
        return ""
    n_layer = max(map(len, columns.values()))
    rows = [
        [str(il), *(_shown(values[il]) if il < len(values) else "" for values in columns.values())]
        for il in range(n_layer)
    ]
    return aligned(["layer", *columns], rows)


def _dict_table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return aligned(names, [[_shown(row[name], name) if name in row else "" for name in names] for row in rows])


def _shown(value: Any, key: str = "") -> str:
    if key == "layers" and isinstance(value, list):
        return ranges(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
