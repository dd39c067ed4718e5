"""The sampler chain of a request: llama_cpp's own."""

from __future__ import annotations

import random
import threading
from typing import Any

import llama_cpp
from llama_cpp.llama_grammar import LlamaGrammar

from .. import llama_cpp_internals as internals
from .requests import Sampling

__all__ = ["Chain"]

_lock = threading.Lock()  # llama_cpp takes the seed from the Llama


class Chain:
    """
    Raises:
        ValueError: A bias of what is no token, or a grammar that llama.cpp can't parse.
    """

    def __init__(self, llm: llama_cpp.Llama, sampling: Sampling):
        for token in sampling.logit_bias:
            if not 0 <= token < llm.n_vocab():
                raise ValueError(f"logit_bias: token {token} is outside [0, {llm.n_vocab()})")
        self._sampler = _of_llama_cpp(llm, sampling)
        if sampling.logit_bias:
            self._sampler = internals.biased_sampler(llm, self._sampler, dict(sampling.logit_bias))
        self.address = internals.sampler_address(self._sampler)


def _of_llama_cpp(llm: llama_cpp.Llama, sampling: Sampling) -> Any:
    options = {
        "temp": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": sampling.typical_p,
        "repeat_penalty": sampling.repeat_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "grammar": None if sampling.grammar is None else LlamaGrammar.from_string(sampling.grammar),
    }
    seed = random.getrandbits(32) if sampling.seed is None else sampling.seed
    with _lock:
        return internals.make_sampler(llm, options, seed)
