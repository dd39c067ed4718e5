"""The model that comes with the package."""

from __future__ import annotations

from pathlib import Path


def demo_model() -> str:
    """Path of the demo model: a Llama of 16 layers in Q8_0 that knows an invented world (tools/train_demo_model.py).

    Raises:
        FileNotFoundError: The package was installed without it.
    """
    path = Path(__file__).parent / "models" / "demo-q8_0.gguf"
    if not path.exists():
        raise FileNotFoundError(f"the demo model is not installed: {path} does not exist")
    return str(path)
