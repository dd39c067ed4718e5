"""What a report says of itself: on what and how it was measured."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
from pathlib import Path

import llama_cpp
import numpy as np

from .. import llama_cpp_internals as internals
from .._core import __version__
from ..gguf_file.file_type import file_type
from ..llama import Llama
from ..measure.text import as_paths
from ..profile import PathLike
from ..style import matplotlib_version
from .subject import Subject

__all__ = ["facts_of"]


def facts_of(subject: Subject) -> dict[str, str]:
    llm, wanted, config, (cold_s, cold_e) = subject.llm, subject.wanted, subject.config, subject.cold
    trained = llm.n_ctx_train
    beyond = f"; more than the {trained} the model was trained on" if subject.context > trained else ""
    texts = [f"{Path(path).name} (sha256 {_sha256(path)[:16]})" for path in as_paths(wanted.text)]
    facts = {
        "model": f"{Path(wanted.model_path).name}, {_description(llm)}, {subject.n_layer} layers",
        "fingerprint": llm.fingerprint,
        "text": ", ".join(texts),
        "tokens": f"{subject.n_tokens:,} in {len(subject.chunks)} chunks of at most {subject.n_ctx}",
        "context for generation": f"{subject.context}{beyond}",
        "Algorithm 1": f"sim_threshold {config.sim_threshold:g}, layers [{cold_s}, {cold_e}), warm_up_index "
        f"{config.warm_up_index}; skip ratio {config.ratio:g} where a picture shows a single one",
    }
    if subject.why_no_channels is not None:
        facts["channels"] = subject.why_no_channels
    elif wanted.shows_channels:
        facts["channels"] = f"tensors {wanted.tensors}; thresholds found in the first tokens of each text"
    if subject.profile is not None:
        facts["profile"] = f"{subject.profile.path}, {subject.profile.config.label}"
    if wanted.lora is not None:
        facts["LoRA adapter"] = os.fspath(wanted.lora)
    return {
        **facts,
        "seeds": f"random policies {config.seed}; tokens of the speed test 0; generation is greedy and has none",
        "threads": str(wanted.n_threads or os.cpu_count()),
        "machine": f"{_processor()}, {platform.system()} {platform.machine()}",
        "versions": _versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _versions() -> str:
    versions = {
        "ffnskip": __version__,
        "llama-cpp-python": llama_cpp.__version__,
        "numpy": np.__version__,
        "matplotlib": matplotlib_version(),
        "Python": platform.python_version(),
    }
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _description(llm: Llama) -> str:
    arch = llm.metadata.get("general.architecture", "unknown architecture")
    return f"{arch}, {internals.n_params(llm) / 1e6:,.1f}M parameters, {file_type(internals.model_address(llm))}"


def _sha256(path: PathLike) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _processor() -> str:
    """The processor's name, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "processor unknown"
