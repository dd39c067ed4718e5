"""Checkpoints in PyTorch's own format (.bin, .pth), opened only where the user allows it.

Such a file is a pickle, a program that builds objects; `weights_only` lets PyTorch run none but those that build
tensors, and `mmap` leaves their data on the disk until it is converted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import Checkpoint, Stored, read_weight_map, refuse_absent


@dataclass(frozen=True)
class PickledTensor(Stored):
    """A tensor whose data PyTorch maps into memory."""

    tensor: Any = field(repr=False, default=None)

    def read_rows(self, first: int, last: int) -> np.ndarray:
        import torch

        rows: Any = self.tensor.reshape(self.n_rows, self.n_cols)[first:last].contiguous()
        found: np.ndarray = rows.view(torch.int16).numpy().view("<u2") if self.dtype == "BF16" else rows.numpy()
        return found


def read_pickled_checkpoint(model_dir: Path) -> Checkpoint:
    """Every tensor of pytorch_model.bin, or of the files its index names.

    Raises:
        FileNotFoundError: The index names a file that is absent.
        ValueError: PyTorch is not installed, or a file is no plain set of weights.
    """
    index_path = model_dir / "pytorch_model.bin.index.json"
    tensors: dict[str, Stored] = {}
    if index_path.is_file():
        weight_map = read_weight_map(model_dir, index_path.name)
        for shard in sorted(set(weight_map.values())):
            tensors.update(open_pickle(model_dir / shard))
        refuse_absent(weight_map, tensors)
        return Checkpoint(index_path.name, tensors)
    files = sorted(path for end in ("*.bin", "*.pth") for path in model_dir.glob(end) if path.stem != "training_args")
    if len(files) != 1:
        raise ValueError(f"{model_dir}: {len(files)} pickled files and no {index_path.name}; expected one of weights")
    return Checkpoint(files[0].name, open_pickle(files[0]))


def open_pickle(path: Path) -> dict[str, Stored]:
    try:
        import torch
    except ImportError:
        raise ValueError(f"{path}: reading pickled weights needs PyTorch; pip install torch") from None
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises its own, pickle's, zipfile's and RuntimeError
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(f"{path}: PyTorch does not open it as plain weights ({reason})") from None
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path}: not a mapping from names to tensors")
    dtypes = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return {
        name: PickledTensor(path, 0, dtypes.get(value.dtype, str(value.dtype)), tuple(value.shape), value)
        for name, value in content.items()
    }
