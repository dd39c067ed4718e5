"""Skip profiles: settings found for one model, as GGUF metadata (cpp/include/ffnskip/profile.h has the keys).

    profile = read_profile("model.ffnskip.gguf")
    llm = Llama("model.gguf", skip=profile.config)

`skip="auto"`, `ffnskip-main` and `ffnskip run` find the profile beside or in a model by themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import gguf

from . import _core
from ._core import Profile
from .files import check_output, whole_file
from .gguf_file.header import Entry, Header, read_header
from .skip_config import SkipConfig

__all__ = [
    "change_settings",
    "check_profile_output",
    "embed_profile",
    "has_profile",
    "layers_of_model",
    "locate_profile",
    "profile_keys",
    "profile_path",
    "read_profile",
    "settings_of",
    "strip_profile",
    "write_profile",
]

PathLike = Union[str, "os.PathLike[str]"]

PREFIX = "ffnskip."

ALGORITHM_1 = ("cold_s", "cold_e", "max_skip", "check_stride", "check_interval", "warm_up_index")
RESOLVED = ("cold_s", "cold_e", "max_skip", "min_layers")  # those that depend on the model where they are not given
SETTINGS = (
    *("policy", "sim_threshold", *ALGORITHM_1, "layer_thresholds", "layers", "attention_layers", "every_row"),
    *("channel_thresholds", "tensors", "skip_ratio", "min_layers", "budget_decay"),
)
KEPT_POLICIES = ("ffn_skip", "channels", "skip_decode")

COPIED_AT_ONCE = 2**24  # bytes

BOOL, U32, I64, F64, STRING, ARRAY = (
    gguf.GGUFValueType.BOOL,
    gguf.GGUFValueType.UINT32,
    gguf.GGUFValueType.INT64,
    gguf.GGUFValueType.FLOAT64,
    gguf.GGUFValueType.STRING,
    gguf.GGUFValueType.ARRAY,
)


# ---- reading ----


def read_profile(path: PathLike) -> Profile:
    """The settings in a profile, or in a model with one inside.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no profile: not GGUF, truncated, a key missing or wrong.
    """
    try:
        header = read_header(path)  # the core's reader would log what is wrong with a damaged file besides
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"profile {error}") from error
    for entry in _own(header):
        if not _is_text(entry):
            raise ValueError(f"profile {header.path}: {entry.key!r} has bytes in it that are no text; it is damaged")
    return _core.read_profile(os.fspath(path))


def _is_text(entry: Entry) -> bool:
    try:
        f"{entry.key}{json.dumps(entry.value(), ensure_ascii=False)}".encode()
    except UnicodeEncodeError:
        return False
    return True


def profile_path(model_path: PathLike) -> Path:
    """Where the profile of a model lies: model.ffnskip.gguf beside model.gguf."""
    return Path(_core.profile_path(os.fspath(model_path)))


def locate_profile(path: PathLike) -> Path:
    """The file that holds the profile: `path` if it is one; of a model, the file beside it, else the model itself.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no GGUF file, or there is no profile beside or in the model.
    """
    path = Path(path)
    header = read_header(path)
    if not header.tensors:
        return path
    beside = profile_path(path)
    if beside.exists():
        return beside
    if not _own(header):
        raise ValueError(f"{path}: there is no profile in this model, nor beside it ({beside.name})")
    return path


def layers_of_model(path: PathLike) -> int | None:
    """How many layers the model has that holds a profile, or that a profile lies beside; None where there is none.

    Args:
        path: The model, or the profile.
    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no GGUF file, or a damaged one.
    """
    path = Path(path)
    header = read_header(path)
    if not header.tensors:
        for model in sorted(path.parent.glob("*.gguf")):
            if profile_path(model) == path:
                with contextlib.suppress(ValueError):  # a model that is damaged says nothing
                    header = read_header(model)
                    break
    n_layer = header.of_architecture("block_count")
    return n_layer if isinstance(n_layer, int) and n_layer > 0 else None


def has_profile(model_path: PathLike) -> bool:
    """Whether a profile lies beside the model or in it, as skip="auto" looks for one. Reads the file's header alone.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no GGUF file, or a damaged one.
    """
    return profile_path(model_path).exists() or PREFIX + "model" in read_header(model_path).metadata


def profile_keys(path: PathLike) -> dict[str, Any]:
    """Every key of a profile, without "ffnskip.", in the order of the file. Raises as `read_profile`."""
    read_profile(path)
    return {entry.key[len(PREFIX) :]: entry.value() for entry in _own(read_header(Path(path)))}


# ---- writing ----


def write_profile(
    path: PathLike,
    fingerprint: str,
    config: SkipConfig,
    resolved: Mapping[str, object],
    learnt: Mapping[str, Any] | None = None,
) -> None:
    """Write a profile; an existing file is replaced, and survives a failure.

    Args:
        path: The file, by convention model.ffnskip.gguf beside model.gguf.
        fingerprint: Of the model, from its controller.
        config: What to skip.
        resolved: The same as it applies to the model.
        learnt: What else to keep under "ffnskip.": strings, ints, floats, lists of them; anything else as JSON.
    Raises:
        ValueError: A policy that no profile holds, or `path` is a file of another kind.
        OSError: The file can't be written.
    """
    check_profile_output(path)
    keys = {**_settings(fingerprint, config, resolved), **(learnt or {})}
    with whole_file(Path(path)) as part, contextlib.closing(gguf.GGUFWriter(part, "ffnskip")) as writer:
        for key, value in keys.items():
            _add(writer, PREFIX + key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _settings(fingerprint: str, config: SkipConfig, resolved: Mapping[str, object]) -> dict[str, Any]:
    """The keys that are read back: what the settings need, and no more."""
    keys = {key: getattr(config, key) for key in settings_of(config)}
    keys.update((key, resolved[key]) for key in RESOLVED if key in keys and keys[key] is None)
    for name in ("check_stride", "check_interval"):
        if keys.get(name) == 1:
            del keys[name]
    if "skip_ratio" in keys:
        keys["skip_ratio"] = config.ratio
    return {"model": fingerprint, **keys}


def settings_of(config: SkipConfig) -> tuple[str, ...]:
    """The fields that a profile keeps of it. Raises ValueError for a policy that no profile holds."""
    if config.policy not in KEPT_POLICIES:
        kept = ", ".join(KEPT_POLICIES)
        raise ValueError(f"policy: {config.policy!r} is not kept in profiles; those that are: {kept}")
    layers = tuple(name for name in ("layers", "attention_layers", "every_row") if getattr(config, name))
    if config.policy == "channels":
        which = ("tensors", "skip_ratio") if config.channel_thresholds is None else ("channel_thresholds",)
        cold = (name for name in ("cold_s", "cold_e") if getattr(config, name) is not None)
        return ("policy", *which, *layers, *cold, "warm_up_index")
    if config.policy == "skip_decode":
        return ("policy", "cold_s", "cold_e", "min_layers", "budget_decay", "warm_up_index")
    if layers and config.max_skip == 0:  # nothing is checked
        return ("policy", *layers, "max_skip", "warm_up_index")
    threshold = "sim_threshold" if config.layer_thresholds is None else "layer_thresholds"
    return ("policy", threshold, *layers, *ALGORITHM_1)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    is_list = isinstance(value, (list, tuple))
    kind = _common_type(value if is_list else [value])
    if kind is None:
        writer.add_string(key, json.dumps(value))
    elif is_list:
        writer.add_key_value(key, list(value), ARRAY, kind)
    else:
        writer.add_key_value(key, value, kind)


def _common_type(values: Sequence[Any]) -> gguf.GGUFValueType | None:
    """Of all the values; None where no one type holds them, or there are none."""
    types = {type(value) for value in values}
    if types == {str}:
        return STRING
    if types == {bool}:
        return BOOL
    if types == {int}:
        return U32 if all(0 <= value < 2**32 for value in values) else I64
    return F64 if types and types <= {int, float} else None


def check_profile_output(path: PathLike) -> None:
    """A profile takes the place of a profile only. What `write_profile` would refuse, for who works long before it.

    Raises:
        ValueError: `path` is a directory, or a file of another kind.
        FileNotFoundError, PermissionError: It can't be written.
    """
    check_output(path)
    path = Path(path)
    if path.is_file() and path.stat().st_size and not _is_profile(path):
        raise ValueError(f"{path}: is no skip profile, and is left as it is; give another name for the profile")


def _is_profile(path: Path) -> bool:
    try:
        header = read_header(path)
    except ValueError:
        return False
    return not header.tensors and header.architecture == "ffnskip"


# ---- in place ----


def change_settings(path: PathLike, config: SkipConfig, outdated: Collection[str] = ()) -> None:
    """Put `config` in place of the settings in a profile, or in a model with one inside; all else stays as it is, but
    for the keys `outdated`.

    Args:
        path: The profile or model.
        config: The settings, with the values of cold_s, cold_e and max_skip if the policy has them.
        outdated: Keys to leave out, without "ffnskip.".
    Raises:
        ValueError, OSError: As `read_profile` and `write_profile`.
    """
    fingerprint = read_profile(path).model
    given = {key: getattr(config, key) for key in RESOLVED}
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "settings.gguf")
        write_profile(written, fingerprint, config, given)
        settings = _own(read_header(written))
    gone = {PREFIX + key for key in ("model", *SETTINGS, *outdated)}
    header = read_header(Path(path))
    _rewrite(Path(path), header, [*settings, *(entry for entry in _own(header) if entry.key not in gone)])


def embed_profile(model_path: PathLike, profile: PathLike) -> None:
    """Copy a profile into a model file, in place of the one it may have. Needs room for a second copy of the model,
    which then takes the place of the first.

    Raises:
        ValueError: One of the files is damaged, or no model or profile.
        OSError: No such file, or it can't be written.
    """
    read_profile(profile)
    header = _require_model(Path(model_path))
    _rewrite(Path(model_path), header, _own(read_header(Path(profile))))


def strip_profile(model_path: PathLike) -> bool:
    """Take the profile out of a model file. False if there is none. Raises as `embed_profile`."""
    header = _require_model(Path(model_path))
    if not _own(header):
        return False
    _rewrite(Path(model_path), header, [])
    return True


def _require_model(path: Path) -> Header:
    header = read_header(path)
    if not header.tensors:
        raise ValueError(f"{path}: it is no model, there are no weights in it")
    return header


def _own(header: Header) -> list[Entry]:
    return [entry for entry in header.entries if entry.key.startswith(PREFIX)]


def _rewrite(path: Path, header: Header, own: Iterable[Entry]) -> None:
    """The file with `own` in place of what it has under "ffnskip."; all else is copied byte by byte."""
    entries = [*(entry for entry in header.entries if not entry.key.startswith(PREFIX)), *own]
    with whole_file(path, size=path.stat().st_size) as part, open(path, "rb") as old, open(part, "wb") as new:
        new.write(struct.pack("=4sIQQ", b"GGUF", header.version, len(header.tensors), len(entries)))
        new.write(b"".join(entry.raw for entry in entries) + header.raw_tensors)
        new.write(bytes(-new.tell() % header.alignment))
        old.seek(header.data_offset)
        shutil.copyfileobj(old, new, COPIED_AT_ONCE)
