"""Copies of a model's weights by input channel, in a file that processes map in place of making copies of their own.

    from ffnskip_cpp import write_channels
    write_channels("model.gguf")  # model.channels.gguf, which policy "channels" finds

It holds what policy "channels" would otherwise make whenever a model is loaded: about as many bytes as the matrices
have in the model's file. Mapped, they take no memory but the system's cache of files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnsupportedModelError
from ..files import PathLike, check_output, whole_file
from ..gguf_file.header import read_header, read_headers
from ..gguf_file.header_check import check_header
from ..gguf_file.model_file import WrittenFile
from ..probing import probed
from ..progress import progress_bar
from ..threads import check_threads

__all__ = ["ChannelsFile", "write_channels"]

ARCHITECTURE = "ffnskip-channels"


@dataclass(frozen=True, repr=False)
class ChannelsFile(WrittenFile):
    """What `write_channels` returns. It stands for its path wherever one is taken."""

    path: Path
    tensors: str
    """Whose channels may be left out: "ffn" or "all"."""
    n_matrices: int
    n_bytes: int

    def __repr__(self) -> str:
        return f"{self.path}: {self.n_matrices} matrices by channel, {self.n_bytes / 1e6:.1f} MB"


def write_channels(
    model_path: PathLike,
    path: PathLike | None = None,
    *,
    tensors: str = "ffn",
    n_threads: int | None = None,
    progress: bool | None = None,
) -> ChannelsFile:
    """Write the weights that policy "channels" reads, by channel.

    Args:
        model_path: A GGUF file; the first part, if it is split.
        path: The file to write; an older one of its kind is replaced, and survives a failure. None: MODEL.channels.gguf
            beside the model, where it is looked for.
        tensors: As of SkipConfig: "ffn" or "all".
        n_threads: None: all processors.
        progress: Show a progress bar on stderr; None: where that is a terminal.
    Raises:
        FileNotFoundError: The model, or the directory of `path`, does not exist.
        ValueError: The model can't be loaded or has no such weights (`UnsupportedModelError`), there is no such
            `tensors`, or `path` is a GGUF file of another kind.
        OSError: The file could not be written, such as on a full disk.
    """
    from .._core import channel_file_path

    check_threads(n_threads)
    source = Path(model_path)
    check_header(source)
    target = Path(channel_file_path(os.fspath(source)) if path is None else path)
    inputs = [header.path for header in read_headers(source)]
    _check_target(target, inputs)
    with whole_file(target, inputs) as part, probed(source) as (controller, refused):
        if refused is not None:
            raise UnsupportedModelError(refused)
        with progress_bar(target.name, 100, unit="%", show=progress) as bar:
            controller.write_channels(str(part), tensors, n_threads or 0, lambda done: bar.update(100 * done - bar.n))
        return ChannelsFile(target, tensors, len(read_header(part).tensors), part.stat().st_size)


def _check_target(path: Path, inputs: list[Path]) -> None:
    """A model may have taken days to make: it is not what such a file replaces."""
    check_output(path, inputs)
    if not path.is_file():
        return
    with open(path, "rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    if is_gguf and read_header(path).architecture != ARCHITECTURE:
        raise ValueError(f"{path}: is a GGUF file of another kind, which is not overwritten; give another name")
