"""What is known of a run before it begins: its name, and all that decides what it comes to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp

from .._core import __version__
from ..gguf_file.header import read_headers
from ..llama import Llama
from ..lora import Adapter
from ..plain import plain
from ..skip_config import SkipConfig
from .items import SPEED, DataSet, sha256_of
from .making import WARM_UP, finds_on_text
from .methods import Asked, Method
from .wanted import Wanted

__all__ = ["Facts", "FactsMaker"]

Facts = Mapping[str, Any]
"""Of a run, the fields of `Run` that are known before it begins; plain values."""

PERPLEXITY = "perplexity"


class FactsMaker:
    """
    Args:
        llm: The user's model.
    """

    def __init__(self, llm: Llama, wanted: Wanted, n_gpu_layers: int):
        self._llm, self._wanted, self._n_gpu_layers = llm, wanted, n_gpu_layers
        self._model = Path(llm.model_path)
        self._files: dict[Path, tuple[str, int]] = {}
        self._text_sha256 = sha256_of(*wanted.texts) if wanted.text else None
        self._lora = Adapter(llm.lora_path, llm.lora_scale).facts() if llm.lora_path else None

    def name(self, asked: Asked, data: DataSet) -> str:
        """What differs from a usual run is in it, so that such runs lie side by side."""
        wanted, of_method = self._wanted, asked.name.replace(":", "-")
        scoring = wanted.scoring if data.task == "mmlu" and wanted.scoring == "generate" else None
        parts = [data.task, scoring, data.name, of_method, None if asked.ratio is None else f"{asked.ratio:g}"]
        if wanted.warm_up_index is not None and (data.task == PERPLEXITY or self._warms_up(asked, data)):
            parts.append(f"warm_up-{wanted.warm_up_index}")
        if wanted.skip_prompts is not None and self._has_prompts(asked, data):
            parts.append(f"skip_prompts-{wanted.skip_prompts}")
        return "-".join(part for part in parts if part)

    def of(self, asked: Asked, method: Method, data: DataSet) -> Facts:
        facts: Facts = plain(
            {
                "name": self.name(asked, data),
                "task": data.task,
                "data": data.name,
                "data_hash": data.sha256,
                "model": self._model.stem,
                "fingerprint": self._llm.fingerprint,
                "method": method.name,
                "label": method.label,
                "skip_ratio_target": method.ratio,
                "config": None if method.skip is None else _changed(method.skip),
                "settings": self._settings(asked, method, data),
                "versions": {"ffnskip": __version__, "llama_cpp": llama_cpp.__version__},
            }
        )
        return facts

    def found_before(self, asked: Asked, there: Sequence[Facts]) -> SkipConfig | None:
        """The setting that a run found on the same text for the same model, as it takes a while to find."""
        own = {"text_sha256": self._text_sha256, "model_sha256": self._file(self._model)[0]}
        if not finds_on_text(asked, has_text=self._text_sha256 is not None):
            return None
        for facts in there:
            if facts["config"] and all(facts["settings"].get(name) == value for name, value in own.items()):
                return SkipConfig(**facts["config"])
        return None

    def size_ratio(self, path: Path | None) -> float:
        """Of another file over the user's."""
        return 1.0 if path is None else self._file(path)[1] / self._file(self._model)[1]

    def _settings(self, asked: Asked, method: Method, data: DataSet) -> dict[str, Any]:
        wanted, is_speed = self._wanted, data.task == SPEED
        needs_text = is_speed or finds_on_text(asked, has_text=self._text_sha256 is not None)
        return {
            "limit": None if is_speed else wanted.limit,
            "seed": wanted.seed,
            "scoring": wanted.scoring if data.task == "mmlu" else None,
            "skip_prompts": wanted.skip_prompts if self._has_prompts(asked, data) else None,
            "warm_up_index": self._warm_up_index(asked, method, data),
            "max_tokens": wanted.max_tokens,
            "n_ctx": None if is_speed else wanted.n_ctx,
            "parallel": None if is_speed else wanted.n_parallel,
            "threads": self._llm.n_threads,
            "n_gpu_layers": self._n_gpu_layers,
            "lora": self._lora,
            "model_sha256": self._file(self._model)[0],
            "file_sha256": None if method.model is None else self._file(method.model)[0],
            "text_sha256": self._text_sha256 if needs_text else None,
        }

    def _warm_up_index(self, asked: Asked, method: Method, data: DataSet) -> int | None:
        if data.task == PERPLEXITY:  # whose rows begin there, whatever the method
            return WARM_UP if self._wanted.warm_up_index is None else self._wanted.warm_up_index
        return method.skip.warm_up_index if method.skip is not None and self._warms_up(asked, data) else None

    def _warms_up(self, asked: Asked, data: DataSet) -> bool:
        return asked.has_warm_up and data.task != SPEED

    def _has_prompts(self, asked: Asked, data: DataSet) -> bool:
        """That may skip."""
        return asked.skips and data.task not in (PERPLEXITY, SPEED)

    def _file(self, path: Path) -> tuple[str, int]:
        """SHA-256 and bytes of a model file, of all its parts."""
        if path not in self._files:
            parts = [header.path for header in read_headers(path)]
            self._files[path] = sha256_of(*parts), sum(os.path.getsize(part) for part in parts)
        return self._files[path]


def _changed(config: SkipConfig) -> dict[str, Any]:
    """What differs from the defaults."""
    usual = SkipConfig().asdict()
    return {name: value for name, value in config.asdict().items() if value != usual[name]}
