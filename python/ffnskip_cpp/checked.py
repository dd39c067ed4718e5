"""`llama_cpp.Llama` made safe: bad input, a closed model and a second thread get an exception, where llama.cpp would
end the process or read what is not there. Nothing here knows of skipping.
"""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
import operator
import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Callable, TypeVar, cast

import llama_cpp
import numpy as np
from llama_cpp.llama_tokenizer import LlamaTokenizer

from . import llama_cpp_internals as internals
from .gguf_file.header_check import check_header
from .load_error import explained

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CheckedLlama", "check_room", "like", "token_ids", "whole"]

Method = TypeVar("Method", bound=Callable[..., Any])


def like(method: Method) -> Callable[[Callable[..., Any]], Method]:
    """Decorates a method that takes what llama_cpp's `method` does, for editors and documentation."""

    def decorated(ours: Callable[..., Any]) -> Method:
        return cast(Method, functools.wraps(method)(ours))

    return decorated


class CheckedLlama(llama_cpp.Llama):
    """Raises ValueError where the model can't be loaded, with llama.cpp's reason."""

    _closed = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        internals.prepare(self)  # before anything can fail
        return self

    def __init__(self, model_path: str | os.PathLike[str], **kwargs: Any):
        self._lock = threading.RLock()
        if os.path.exists(model_path):  # or the base class says that it does not
            check_header(model_path)
        with explained(quiet=not kwargs.get("verbose", True)):
            super().__init__(os.fspath(model_path), **kwargs)
            if internals.lora_is_missing(self):
                self.close()
                raise RuntimeError(f"Failed to initialize LoRA adapter from lora path: {self.lora_path}")
        internals.exact_pieces(self)
        self._cover_context()

    def _cover_context(self) -> None:
        """llama.cpp rounds n_ctx up, and a draft model wants logits: the base class's arrays may be too short."""
        n_ctx = internals.n_context(self)
        self.input_ids = np.pad(self.input_ids, (0, max(0, n_ctx - len(self.input_ids))))
        if internals.wants_all_logits(self) and len(self.scores) < n_ctx:
            self.scores = np.zeros((n_ctx, self.n_vocab()), np.single)

    # ---- one user at a time ----

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this Llama is at work in another thread; one at a time may use it")
        try:
            yield
        finally:
            self._lock.release()

    @like(llama_cpp.Llama.create_completion)
    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        with self._at_work():
            return super().create_completion(*args, **kwargs)

    @like(llama_cpp.Llama.create_chat_completion)
    def create_chat_completion(self, *args: Any, **kwargs: Any) -> Any:
        with self._at_work():
            return super().create_chat_completion(*args, **kwargs)

    @like(llama_cpp.Llama.embed)
    def embed(self, *args: Any, **kwargs: Any) -> Any:
        with self._at_work():
            return super().embed(*args, **kwargs)

    # ---- the model ----

    @property
    def n_layer(self) -> int:
        """Layers of the model."""
        return int(llama_cpp.llama_model_n_layer(self.model))

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that the model was trained on."""
        return internals.n_ctx_train(self)

    # ---- text ----

    @like(llama_cpp.Llama.tokenize)
    def tokenize(self, *args: Any, **kwargs: Any) -> Any:
        self._require_vocabulary()
        return super().tokenize(*args, **kwargs)

    @like(llama_cpp.Llama.detokenize)
    def detokenize(self, *args: Any, **kwargs: Any) -> Any:
        self._require_vocabulary()
        return super().detokenize(*args, **kwargs)

    def _require_vocabulary(self) -> None:
        """llama.cpp aborts the process otherwise."""
        own = isinstance(self.tokenizer_, LlamaTokenizer)  # or else one of the caller's
        if own and llama_cpp.llama_vocab_type(internals.vocab(self)) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            raise ValueError("the model has no vocabulary, so text means nothing to it; give token ids")

    def _init_sampler(self, *args: Any, **kwargs: Any) -> Any:
        for name, value in kwargs.items():
            if isinstance(value, numbers.Real) and math.isnan(value):
                raise ValueError(f"{name}: nan is no number to sample with")
        sampler = super()._init_sampler(*args, **kwargs)
        n = llama_cpp.llama_sampler_chain_n(sampler.sampler)
        if not all(llama_cpp.llama_sampler_chain_get(sampler.sampler, i) for i in range(n)):
            raise ValueError("grammar: llama.cpp can't parse it")  # and left a null pointer in the chain
        return sampler

    # ---- lifetime ----

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the model is closed")

    def close(self) -> None:
        """Frees the model. Using it afterwards raises RuntimeError."""
        super().close()
        self._closed = True
        internals.mark_closed(self, _Closed())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Closed:
    """Stands in for what `Llama.close()` freed."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("the model is closed")


def check_room(llm: llama_cpp.Llama, n_tokens: int) -> None:
    """Raises RuntimeError where the context has no room for so many more tokens."""
    n_ctx = internals.n_context(llm)
    room = n_ctx - llm.n_tokens
    if n_tokens > room:
        raise RuntimeError(f"the context is full: {n_tokens} more tokens do not fit, {room} of n_ctx={n_ctx} are free")


def token_ids(tokens: Sequence[int]) -> list[int]:
    """Raises TypeError where they are text, or something else than whole numbers."""
    if isinstance(tokens, (str, bytes, bytearray)):
        raise TypeError(f"tokens: {tokens[:20]!r} is text; llm.tokenize(text) gives its token ids")
    return [whole("tokens", token) for token in tokens]


def whole(name: str, value: Any) -> int:
    """Raises TypeError where it is no whole number."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name}: {value!r} is no whole number") from error
