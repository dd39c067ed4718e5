"""The type most matrices of a model file are in, under the name users know it by."""

from __future__ import annotations

import llama_cpp

__all__ = ["file_type"]


def file_type(model: int) -> str:
    """
    Args:
        model: A `llama_model` pointer.
    Returns:
        "q4_k_m", say.
    """
    value = llama_cpp.llama_model_ftype(model) & ~llama_cpp.LLAMA_FTYPE_GUESSED
    names = {number: name for name, number in vars(llama_cpp).items() if name.startswith("LLAMA_FTYPE_")}
    return names.get(value, f"ftype {value}").replace("LLAMA_FTYPE_MOSTLY_", "").replace("LLAMA_FTYPE_ALL_", "").lower()
