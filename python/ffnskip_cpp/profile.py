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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import gguf

from . import _core
from ._core import Profile, SkipConfig
from .files import whole_file

if TYPE_CHECKING:
    from ._core import ResolvedConfig

__all__ = ["embed_profile", "profile_keys", "profile_path", "read_profile", "strip_profile", "write_profile"]

PathLike = Union[str, "os.PathLike[str]"]

PREFIX = "ffnskip."
KEPT_POLICIES = ("ffn_skip", "ffn_skip_per_layer", "fixed", "fixed_plus_ffn_skip")

COPIED_AT_ONCE = 2**24  # bytes

U32, F32, STRING, ARRAY = (
    gguf.GGUFValueType.UINT32,
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


def profile_keys(path: PathLike) -> dict[str, Any]:
    """Every key of a profile, without "ffnskip.", in the order of the file. Raises as `read_profile`."""
    read_profile(path)
    fields = _own_fields(gguf.GGUFReader(os.fspath(path)))
    return {field.name[len(PREFIX) :]: field.contents() for field in fields}


# ---- writing ----


def write_profile(
    path: PathLike,
    fingerprint: str,
    config: SkipConfig,
    resolved: ResolvedConfig,
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


def _settings(fingerprint: str, config: SkipConfig, resolved: ResolvedConfig) -> dict[str, Any]:
    """The keys that are read back: what the policy needs, and no more."""
    if config.policy not in KEPT_POLICIES:
        raise ValueError(
            f"policy: {config.policy!r} is not kept in profiles; those that are: {', '.join(KEPT_POLICIES)}"
        )
    keys: dict[str, Any] = {"model": fingerprint, "policy": config.policy}
    if config.layers is not None:
        keys["layers"] = config.layers
    if config.layer_thresholds is not None:
        keys["layer_thresholds"] = config.layer_thresholds
    elif config.policy != "fixed":
        keys["sim_threshold"] = config.sim_threshold
    if config.policy != "fixed":
        keys.update({key: resolved[key] for key in ("cold_s", "cold_e", "max_skip")})
        if config.check_stride != 1:
            keys["check_stride"] = config.check_stride
    return {**keys, "warm_up_index": config.warm_up_index}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, (list, tuple)) and value:
        writer.add_key_value(key, list(value), ARRAY, _value_type(value[0]) or STRING)
    elif (kind := _value_type(value)) is not None:
        writer.add_key_value(key, value, kind)
    else:
        writer.add_string(key, json.dumps(value))


def _value_type(value: Any) -> gguf.GGUFValueType | None:
    return next((kind for python, kind in ((int, U32), (float, F32), (str, STRING)) if isinstance(value, python)), None)


# ---- in the model's own file ----


def embed_profile(model_path: PathLike, profile: PathLike) -> None:
    """Copy a profile into a model file, in place of the one it may have. Needs room for a second copy of the model,
    which then takes the place of the first.

    Raises:
        ValueError: One of the files is damaged, or no model or profile.
        OSError: No such file, or it can't be written.
    """
    read_profile(profile)
    _rewrite(Path(model_path), [_bytes_of(field) for field in _own_fields(gguf.GGUFReader(os.fspath(profile)))])


def strip_profile(model_path: PathLike) -> bool:
    """Take the profile out of a model file. False if there is none. Raises as `embed_profile`."""
    if not _own_fields(_open_model(Path(model_path))):
        return False
    _rewrite(Path(model_path), [])
    return True


def _open_model(path: Path) -> gguf.GGUFReader:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: no GGUF file, or a damaged one: {error}") from error
    if "general.architecture" not in reader.fields or not reader.tensors or reader.byte_order == "S":
        raise ValueError(f"{path}: it is no model for this machine")
    return reader


def _own_fields(reader: gguf.GGUFReader) -> list[gguf.ReaderField]:
    return [field for key, field in reader.fields.items() if key.startswith(PREFIX)]


def _bytes_of(field: gguf.ReaderField) -> bytes:
    return b"".join(part.tobytes() for part in field.parts)


def _rewrite(path: Path, added: list[bytes]) -> None:
    """The model with the metadata `added` in place of what it has under "ffnskip."; all else is copied byte by byte."""
    path = path.resolve()  # a link stays one
    reader = _open_model(path)
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
