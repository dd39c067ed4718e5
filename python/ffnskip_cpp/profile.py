"""Skip profiles: settings found for one model, as GGUF metadata (cpp/include/ffnskip/profile.h has the keys)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import gguf

from ._core import SkipConfig

if TYPE_CHECKING:
    from ._core import ResolvedConfig

__all__ = ["write_profile"]


def write_profile(path: str | os.PathLike[str], fingerprint: str, config: SkipConfig, resolved: ResolvedConfig) -> None:
    """Write a profile; an existing file is replaced, and survives a failure.

    Args:
        path: The file, by convention model.ffnskip.gguf beside model.gguf.
        fingerprint: Of the model, from its controller.
        config: What to skip.
        resolved: The same as it applies to the model.
    Raises:
        ValueError: A policy that no profile holds.
    """
    if config.policy not in ("ffn_skip", "fixed"):
        raise ValueError(f"policy: {config.policy!r} is not kept in profiles; 'ffn_skip' and 'fixed' are")
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(part, "ffnskip")
    try:
        writer.add_string("ffnskip.model", fingerprint)
        writer.add_string("ffnskip.policy", config.policy)
        if config.policy == "fixed":
            writer.add_key_value("ffnskip.layers", config.layers, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
        else:
            writer.add_float32("ffnskip.sim_threshold", config.sim_threshold)
            for key in ("cold_s", "cold_e", "max_skip"):
                writer.add_uint32(f"ffnskip.{key}", resolved[key])
        writer.add_uint32("ffnskip.warm_up_index", config.warm_up_index)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
