"""`ffnskip profile`: look at the skip profile of a model, change its settings, keep it in the model's own file.

docs/profiles.md says what a profile is, and where it is looked for.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import _core
from ..errors import ArgumentError
from ..profile import (
    SETTINGS,
    change_settings,
    embed_profile,
    layers_of_model,
    locate_profile,
    profile_keys,
    profile_path,
    read_profile,
    settings_of,
    strip_profile,
)
from ..ranges import ranges
from ..skip_config import SkipConfig
from ..stats import INPUT_KINDS
from ..table import aligned
from .arguments import add_model, explain

__all__ = ["add_arguments", "run"]

# Of the settings, not of the model.
MEASURED = ("skip_ratio", "kl", "kl_error", "top1_agreement", "perplexity_ratio", "channels_kept", "candidates")

# Keys with a value for each input of each layer, and what one is called.
PER_INPUT = {"channel_thresholds": "threshold", "channels_kept": "kept"}

# The skip options that are not called as the setting is.
OPTION_OF = {"layers": "skip-layers", "warm_up_index": "warm-up"}

EXAMPLES = {
    "show": ("ffnskip profile show model.gguf", "ffnskip profile show model.ffnskip.gguf --json"),
    "set": (
        "ffnskip profile set model.gguf warm_up_index=50",
        "ffnskip profile set model.ffnskip.gguf layers=8-12,14",
    ),
    "embed": ("ffnskip profile embed model.gguf", "ffnskip profile embed model.gguf --profile other.ffnskip.gguf"),
    "strip": ("ffnskip profile strip model.gguf",),
}


def _option(key: str) -> str:
    """The skip option of a setting."""
    return OPTION_OF.get(key, key.replace("_", "-"))


def _settings_help() -> str:
    """A line for each, in the words of the skip options."""
    texts = {name: text for name, _, text in _core.options()}
    rows = [(f"  {key}", texts[_option(key)]) for key in SETTINGS]
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
    changes = dict(map(_split, args.changes))
    path = locate_profile(args.model)
    old = read_profile(path).config
    n_layer = layers_of_model(args.model)
    try:
        new = _changed(old, changes, n_layer)
        if n_layer is not None:
            _check_fits(new, n_layer)
    except ValueError as error:
        raise ArgumentError(str(error)) from error
    if new == old:
        print(f"{path}: these are its settings already")
        return
    outdated = [key for key in profile_keys(path) if key in MEASURED and key not in settings_of(old)]
    change_settings(path, new, outdated)
    print(f"{path}: set {', '.join(args.changes)}")
    if outdated:
        print(f"dropped {', '.join(outdated)}, measured with the settings before")


def _split(change: str) -> tuple[str, str]:
    """Key and value of KEY=VALUE."""
    key, equals, text = change.partition("=")
    if not equals:
        raise ArgumentError(f"{change!r} is no KEY=VALUE")
    if key not in SETTINGS:
        raise ArgumentError(f"{key!r} is no setting; those that are: {', '.join(SETTINGS)}")
    return key, text


def _changed(old: SkipConfig, changes: Mapping[str, str], n_layer: int | None) -> SkipConfig:
    """`old` with `changes`, as the skip options make them, in the order of the options: a policy comes first.

    Args:
        n_layer: Of the model, if it is at hand: cold regions that nobody gave are an eighth of it at either end then.
    """
    changes = dict(changes)
    every_row = changes.pop("every_row", None)
    keys = {_option(key): key for key in changes}
    options = [name for name, _, _ in _core.options() if name in keys]
    try:
        new = _core.config_from_options([(name, changes[keys[name]]) for name in options], old)
    except ValueError as error:
        option, colon, why = str(error).partition(":")
        raise ValueError(keys.get(option, option) + colon + why) from error
    if every_row is not None:
        if every_row not in ("true", "false"):
            raise ValueError(f"every_row: {every_row!r} is neither true nor false")
        new = new.replace(every_row=every_row == "true")
    wanted = settings_of(new)
    if n_layer is not None and new.policy in ("ffn_skip", "skip_decode") and "cold_s" in wanted:
        cold_s, cold_e = _default_cold_regions(n_layer)
        new = new.replace(
            cold_s=cold_s if new.cold_s is None else new.cold_s, cold_e=cold_e if new.cold_e is None else new.cold_e
        )
    for key in changes:
        if key not in wanted:
            raise ValueError(f"{key}: these settings have no use for it; their own are {', '.join(wanted)}")
    # What has no default, or one that is not right for any model.
    given = {*settings_of(old), *changes}
    missing = [
        key
        for key in wanted
        if (getattr(new, key) is None and key != "skip_ratio") or (key == "sim_threshold" and key not in given)
    ]
    if missing:
        raise ValueError(f"policy: {changes.get('policy', new.policy)!r} needs {', '.join(missing)} as well")
    return SkipConfig(**{key: getattr(new, key) for key in wanted})


def _default_cold_regions(n_layer: int) -> tuple[int, int]:
    """As the core has them."""
    n_cold = max(1, (n_layer + 4) // 8)
    return n_cold, n_layer - n_cold


def _check_fits(config: SkipConfig, n_layer: int) -> None:
    """Raises ValueError for what no model of so many layers takes."""
    for name in ("layers", "attention_layers"):
        for il in getattr(config, name) or ():
            if il >= n_layer - 1:
                raise ValueError(
                    f"{name}: {il} is out of range; a model of {n_layer} layers can skip [0, {n_layer - 2}] (the last "
                    "layer always runs)"
                )
    if config.layer_thresholds is not None and len(config.layer_thresholds) != n_layer:
        raise ValueError(
            f"layer_thresholds: {len(config.layer_thresholds)} for a model of {n_layer} layers; one for each is needed"
        )
    if config.policy == "channels":
        _check_channels_fit(config, n_layer)
        return
    if config.cold_s is None or config.cold_e is None:  # nothing is checked
        return
    if config.cold_e > n_layer - 1:
        raise ValueError(f"cold_e: {config.cold_e} is past {n_layer - 1}; the last of the {n_layer} layers always runs")
    if config.min_layers is not None:
        least = n_layer - (config.cold_e - config.cold_s)
        if not least <= config.min_layers <= n_layer:
            raise ValueError(
                f"min_layers: {config.min_layers} is outside [{least}, {n_layer}]; of {n_layer} layers at most those "
                f"of [{config.cold_s}, {config.cold_e}) can be left out"
            )
        return
    # Algorithm 1 computes the FFN of the layer that trips.
    most = len(set(range(config.cold_s, config.cold_e)) - set(config.layers or ())) - 1
    if config.max_skip is not None and config.max_skip > max(0, most):
        raise ValueError(
            f"max_skip: {config.max_skip} is too many; over layers [{config.cold_s}, {config.cold_e}) at most "
            f"{max(0, most)} can be skipped" + ("" if config.layers is None else " beside those of layers")
        )


def _check_channels_fit(config: SkipConfig, n_layer: int) -> None:
    n_thresholds = n_layer * len(INPUT_KINDS)
    if config.channel_thresholds is not None and len(config.channel_thresholds) != n_thresholds:
        raise ValueError(
            f"channel_thresholds: {len(config.channel_thresholds)} for a model of {n_layer} layers; {n_thresholds}, "
            f"{len(INPUT_KINDS)} for each ({', '.join(INPUT_KINDS)}), are needed"
        )
    cold_s, cold_e = config.cold_s or 0, n_layer if config.cold_e is None else config.cold_e
    if not cold_s < cold_e <= n_layer:
        raise ValueError(f"cold_s, cold_e: [{cold_s}, {cold_e}) are no layers of a model of {n_layer}")


# ---- show ----


def _show(args: argparse.Namespace) -> None:
    path = locate_profile(args.model)
    config, kept = read_profile(path).config, profile_keys(path)
    settings = {key: getattr(config, key) for key in settings_of(config) if key in kept or key == "max_skip"}
    keys = {key: _readable(value) for key, value in {**kept, **settings}.items()}
    print(json.dumps(_finite(keys), allow_nan=False) if args.json else _text(path, keys, settings))


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


def _text(path: Path, keys: Mapping[str, Any], own: Collection[str]) -> str:
    """`own`: the keys that are settings."""
    settings = {key: keys[key] for key in SETTINGS if key in own}
    learnt = {key: value for key, value in keys.items() if key not in settings and key != "model"}
    columns = {key: value for key, value in keys.items() if key != "layers" and _is_per_layer(value)}
    tables = {key: value for key, value in learnt.items() if _is_table(value)}
    aside = {*columns, *tables}
    sections = [
        f"{path}\nfor the model {keys['model']}",
        _lines("settings", {key: value for key, value in settings.items() if key not in aside}),
        _lines("learnt", {key: value for key, value in learnt.items() if key not in aside}),
        _layer_table(_divided(columns)),
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


def _divided(columns: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """A column for each of the inputs that a layer has values for."""
    divided = dict(columns)
    for key, name in PER_INPUT.items():
        every = divided.pop(key, ())
        divided.update({f"{kind} {name}": every[i :: len(INPUT_KINDS)] for i, kind in enumerate(INPUT_KINDS) if every})
    return divided


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
