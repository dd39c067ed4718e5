"""The type that most matrices of a model file are in, under the name that users know it by: "q4_k_m"."""

from __future__ import annotations

import re

import llama_cpp

__all__ = ["file_type", "find_type", "known_types"]


def known_types() -> dict[str, int]:
    """Type names in lower case and their llama_ftype, as the installed llama.cpp knows them."""
    names = re.compile(r"LLAMA_FTYPE_(?:ALL|MOSTLY)_(\w+)")
    found = ((names.fullmatch(name), value) for name, value in vars(llama_cpp).items())
    return {match.group(1).lower(): value for match, value in found if match}


def find_type(name: str) -> str:
    """The name of the type: in any case, and q3_k, q4_k and q5_k mean their _m variant. ValueError for another one."""
    known = known_types()
    for found in (name.lower(), f"{name.lower()}_m"):
        if found in known:
            return found
    raise ValueError(f"unknown type {name!r}; known: {', '.join(known)}")


def file_type(model: int) -> str:
    """Of a model that is loaded, a `llama_model` pointer."""
    number = llama_cpp.llama_model_ftype(model) & ~llama_cpp.LLAMA_FTYPE_GUESSED
    names = {value: name for name, value in known_types().items()}
    return names.get(number, f"ftype {number}")
