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
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import gguf

from . import _core
from ._core import Profile, SkipConfig
from .files import whole_file

if TYPE_CHECKING:
    from ._core import ResolvedConfig

__all__ = [
    "change_settings",
    "embed_profile",
    "locate_profile",
    "profile_keys",
    "profile_path",
    "read_profile",
    "strip_profile",
    "write_profile",
]

PathLike = Union[str, "os.PathLike[str]"]

PREFIX = "ffnskip."

# The settings that each policy kept in profiles has, by the names of SkipConfig.
ALGORITHM_1 = ("cold_s", "cold_e", "max_skip", "check_stride", "warm_up_index")
SETTINGS_OF = {
    "ffn_skip": ("policy", "sim_threshold", *ALGORITHM_1),
    "ffn_skip_per_layer": ("policy", "layer_thresholds", *ALGORITHM_1),
    "fixed": ("policy", "layers", "warm_up_index"),
    "fixed_plus_ffn_skip": ("policy", "sim_threshold", "layers", *ALGORITHM_1),
}
RESOLVED = ("cold_s", "cold_e", "max_skip")  # those that depend on the model where they are not given
SETTINGS = tuple(dict.fromkeys(key for keys in SETTINGS_OF.values() for key in keys))

COPIED_AT_ONCE = 2**24  # bytes

U32, I64, F32, STRING, ARRAY = (
    gguf.GGUFValueType.UINT32,
    gguf.GGUFValueType.INT64,
    gguf.GGUFValueType.FLOAT32,
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
    if not os.path.isfile(path):
        raise FileNotFoundError(f"profile {os.fspath(path)}: no such file")
    return _core.read_profile(os.fspath(path))


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
    reader = _open(path)
    if not reader.tensors:
        return path
    beside = profile_path(path)
    if beside.exists():
        return beside
    if not _own_fields(reader):
        raise ValueError(f"{path}: there is no profile in this model, nor beside it ({beside.name})")
    return path


def profile_keys(path: PathLike) -> dict[str, Any]:
    """Every key of a profile, without "ffnskip.", in the order of the file. Raises as `read_profile`."""
    read_profile(path)
    fields = _own_fields(_open(Path(path)))
    return {field.name[len(PREFIX) :]: field.contents() for field in fields}


# ---- writing ----


def write_profile(
    path: PathLike,
    fingerprint: str,
    config: SkipConfig,
    resolved: ResolvedConfig | Mapping[str, Any],
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
        ValueError: A policy that no profile holds.
        OSError: The file can't be written.
    """
    keys = {**_settings(fingerprint, config, resolved), **(learnt or {})}
    with whole_file(Path(path)) as part, contextlib.closing(gguf.GGUFWriter(part, "ffnskip")) as writer:
        for key, value in keys.items():
            _add(writer, PREFIX + key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _settings(fingerprint: str, config: SkipConfig, resolved: ResolvedConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The keys that are read back: what the policy needs, and no more."""
    if config.policy not in SETTINGS_OF:
        raise ValueError(f"policy: {config.policy!r} is not kept in profiles; those that are: {', '.join(SETTINGS_OF)}")
    keys = {key: getattr(config, key) for key in SETTINGS_OF[config.policy]}
    keys.update((key, resolved[key]) for key in RESOLVED if key in keys)
    if keys.get("check_stride") == 1:
        del keys["check_stride"]
    return {"model": fingerprint, **keys}


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
    if types == {int}:
        return U32 if all(0 <= value < 2**32 for value in values) else I64
    return F32 if types and types <= {int, float} else None


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
        settings = [_bytes_of(field) for field in _own_fields(_open(written))]
    gone = {PREFIX + key for key in ("model", *SETTINGS, *outdated)}
    reader = _open(Path(path))
    learnt = [_bytes_of(field) for field in _own_fields(reader) if field.name not in gone]
    _rewrite(Path(path), [*settings, *learnt])


# ---- in the model's own file ----


def embed_profile(model_path: PathLike, profile: PathLike) -> None:
    """Copy a profile into a model file, in place of the one it may have. Needs room for a second copy of the model,
    which then takes the place of the first.

    Raises:
        ValueError: One of the files is damaged, or no model or profile.
        OSError: No such file, or it can't be written.
    """
    read_profile(profile)
    _require_model(Path(model_path))
    _rewrite(Path(model_path), [_bytes_of(field) for field in _own_fields(_open(Path(profile)))])


def strip_profile(model_path: PathLike) -> bool:
    """Take the profile out of a model file. False if there is none. Raises as `embed_profile`."""
    if not _own_fields(_require_model(Path(model_path))):
        return False
    _rewrite(Path(model_path), [])
    return True


def _require_model(path: Path) -> gguf.GGUFReader:
    reader = _open(path)
    if "general.architecture" not in reader.fields or not reader.tensors or reader.byte_order == "S":
        raise ValueError(f"{path}: it is no model for this machine")
    return reader


def _open(path: Path) -> gguf.GGUFReader:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, LookupError, OverflowError) as error:
        raise ValueError(f"{path}: it is no GGUF file, or a truncated or damaged one") from error


def _own_fields(reader: gguf.GGUFReader) -> list[gguf.ReaderField]:
    return [field for key, field in reader.fields.items() if key.startswith(PREFIX)]


def _bytes_of(field: gguf.ReaderField) -> bytes:
    return b"".join(part.tobytes() for part in field.parts)


def _rewrite(path: Path, added: list[bytes]) -> None:
    """The file with the metadata `added` in place of what it has under "ffnskip."; all else is copied byte by byte."""
    path = path.resolve()  # a link stays one
    reader = _open(path)
    kept = [_bytes_of(field) for key, field in reader.fields.items() if not key.startswith(("GGUF.", PREFIX))]
    version, n_tensors = (int(reader.fields[f"GGUF.{name}"].parts[0][0]) for name in ("version", "tensor_count"))
    with whole_file(path) as part, open(path, "rb") as old, open(part, "wb") as new:
        new.write(struct.pack("=4sIQQ", b"GGUF", version, n_tensors, len(kept) + len(added)))
        for metadata in (*kept, *added, *(_bytes_of(tensor.field) for tensor in reader.tensors)):
            new.write(metadata)
        new.write(bytes(-new.tell() % reader.alignment))
        old.seek(reader.data_offset)
        shutil.copyfileobj(old, new, COPIED_AT_ONCE)
        os.fchmod(new.fileno(), path.stat().st_mode)
        new.flush()
        os.fsync(new.fileno())  # before the old file is gone, which may be the only copy of the model
