"""Every name of llama_cpp that is not public and that this package relies on: used here only, and checked on import.

A release of llama_cpp that has changed one of them is refused when this package is imported, and not in the middle of a
generation.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
from collections.abc import Callable
from typing import Any

import llama_cpp
from llama_cpp import _internals
from llama_cpp._ggml import libggml
from llama_cpp.llama_chat_format import get_chat_completion_handler

__all__ = [
    "BASE_ATTRIBUTES",
    "adds_bos",
    "adopt_context",
    "batch_address",
    "biased_sampler",
    "can_go_back",
    "chat_handler",
    "context_address",
    "exact_pieces",
    "ggml_type",
    "go_back",
    "keep_context",
    "libggml",
    "lora_is_missing",
    "make_context",
    "make_sampler",
    "makes_context",
    "mark_closed",
    "model_address",
    "n_context",
    "n_ctx_train",
    "n_params",
    "n_rows",
    "needs_eval",
    "on_look",
    "prepare",
    "redirect_decode",
    "require_eval",
    "sampler",
    "sampler_address",
    "set_sampler",
    "vocab",
    "wants_all_logits",
]

BASE_ATTRIBUTES = (
    "_batch",
    "_chat_handlers",
    "_ctx",
    "_logits_all",
    "_lora_adapter",
    "_model",
    "_n_ctx",
    "_n_vocab",
    "_requires_eval",
    "_seed",
)
"""Attributes that `llama_cpp.Llama.__init__` makes, besides its public ones."""

_METHODS = {
    llama_cpp.Llama: ("_init_sampler",),
    _internals.LlamaContext: ("close", "decode", "get_logits", "get_logits_ith", "kv_cache_seq_rm"),
    _internals.LlamaSampler: ("add_logit_bias",),
    _internals.LlamaModel: (
        "add_bos_token",
        "close",
        "detokenize",
        "n_ctx_train",
        "n_params",
        "token_bos",
        "token_to_piece",
    ),
}


def _missing() -> list[str]:
    known = llama_cpp.Llama.__init__.__code__.co_names
    names = [f"Llama.{name}" for name in BASE_ATTRIBUTES if name not in known]
    for kind, methods in _METHODS.items():
        names += [f"{kind.__name__}.{name}" for name in methods if not hasattr(kind, name)]
    if "_sampler" not in llama_cpp.Llama.generate.__code__.co_names:
        names.append("Llama._sampler")
    if not {"model", "params", "verbose"} <= set(inspect.signature(_internals.LlamaContext).parameters):
        names.append("LlamaContext(model, params, verbose)")
    return names


if _names := _missing():
    raise ImportError(
        f"ffnskip_cpp does not know llama-cpp-python {llama_cpp.__version__}, which has no {', '.join(_names)}; "
        "install a release that it was tested with"
    )


def chat_handler(llm: llama_cpp.Llama) -> Any:
    """What `Llama.create_chat_completion` calls, where it was given none."""
    name = str(llm.chat_format)
    return llm._chat_handlers.get(name) or get_chat_completion_handler(name)


# ---- the context ----


def context_address(llm: llama_cpp.Llama) -> int:
    """Of the llama_context. Raises RuntimeError where the model is closed."""
    return int(llm._ctx.ctx)


def model_address(llm: llama_cpp.Llama) -> int:
    """Of the llama_model."""
    return ctypes.cast(llm._model.model, ctypes.c_void_p).value or 0


def batch_address(batch: Any) -> int:
    """Of the llama_batch of a LlamaBatch."""
    return ctypes.addressof(batch.batch)


def n_rows(batch: Any) -> int:
    """Of a LlamaBatch."""
    return int(batch.batch.n_tokens)


def redirect_decode(llm: llama_cpp.Llama, decode: Callable[[Any], None]) -> None:
    """`decode`, called with a LlamaBatch, stands in for the context's own."""
    llm._ctx.decode = decode  # type: ignore[assignment,method-assign]


def make_context(llm: llama_cpp.Llama, params: Any) -> Any:
    """Another LlamaContext of the model. Raises ValueError where llama.cpp can't make it."""
    return _internals.LlamaContext(model=llm._model, params=params, verbose=llm.verbose)


def adopt_context(llm: llama_cpp.Llama, context: Any) -> None:
    """`context` takes the place of the one that `llm` has, which is freed; LoRA adapters stay."""
    _set_lora(llm, context)
    llm._ctx.close()
    llm._ctx = llm._stack.enter_context(contextlib.closing(context))


def keep_context(llm: llama_cpp.Llama, context: Any) -> None:
    """`context`, another one of the model, is freed with it, and has its LoRA adapters."""
    llm._stack.enter_context(contextlib.closing(context))
    _set_lora(llm, context)


def _set_lora(llm: llama_cpp.Llama, context: Any) -> None:
    if llm._lora_adapter:
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(llm._lora_adapter)  # type: ignore[misc]
        scales = (ctypes.c_float * 1)(llm.lora_scale)
        if llama_cpp.llama_set_adapters_lora(context.ctx, adapters, 1, scales):
            raise RuntimeError(f"the LoRA adapter {llm.lora_path} can't be set")


def go_back(llm: llama_cpp.Llama, position: int) -> bool:
    """Takes what is behind `position` out of the memory. False where it can't, and is as it was."""
    return llm._ctx.kv_cache_seq_rm(-1, position, -1)


def can_go_back(llm: llama_cpp.Llama, n_swa: int) -> None:
    """Refuses to take positions out of the memory where layers with a sliding window have forgotten what the next ones
    attend to: llama_cpp then evaluates the prompt from its beginning."""
    context = llm._ctx
    remove = context.kv_cache_seq_rm

    def guarded(seq_id: int, p0: int, p1: int) -> bool:
        memory, seq = context.memory, max(seq_id, 0)
        if p0 > 0 and p1 < 0 and llama_cpp.llama_memory_seq_pos_max(memory, seq) >= p0:
            if llama_cpp.llama_memory_seq_pos_min(memory, seq) > max(0, p0 - n_swa + 1):
                return False
        return remove(seq_id, p0, p1)

    context.kv_cache_seq_rm = guarded  # type: ignore[method-assign]


def on_look(llm: llama_cpp.Llama, looked: Callable[[], None]) -> None:
    """`looked` is called whenever outputs are read through the context."""
    for name in ("get_logits", "get_logits_ith"):
        setattr(llm._ctx, name, _then(looked, getattr(llm._ctx, name)))


def _then(before: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        before()
        return function(*args)

    return call


def prepare(llm: llama_cpp.Llama) -> None:
    """What `close()` closes, which the base class calls however early the construction failed."""
    llm._stack = contextlib.ExitStack()


def makes_context(llm: llama_cpp.Llama) -> bool:
    """Whether the base class has loaded the model, and is about to make the context."""
    return "_model" in vars(llm) and not vars(llm).get("_ctx")


# ---- what is in it ----


def n_context(llm: llama_cpp.Llama) -> int:
    """Tokens that the context has room for, as llama.cpp rounds them."""
    return llm._n_ctx


def wants_all_logits(llm: llama_cpp.Llama) -> bool:
    return llm._logits_all


def needs_eval(llm: llama_cpp.Llama) -> bool:
    """Whether a token has to be evaluated before one can be sampled."""
    return llm._requires_eval


def require_eval(llm: llama_cpp.Llama, value: bool = True) -> None:
    llm._requires_eval = value


# ---- the model ----


def vocab(llm: llama_cpp.Llama) -> Any:
    """The llama_vocab."""
    return llm._model.vocab


def sampler(llm: llama_cpp.Llama) -> Any:
    """The LlamaSampler of the generation that began last."""
    return llm._sampler


def set_sampler(llm: llama_cpp.Llama, sampler: Any) -> None:
    llm._sampler = sampler


def make_sampler(llm: llama_cpp.Llama, options: dict[str, Any], seed: int | None) -> Any:
    """A LlamaSampler of its own, which a generation with these options would have; None: with the seed of `llm`."""
    own = llm._seed
    try:
        llm._seed = own if seed is None else seed
        return llm._init_sampler(**options)
    finally:
        llm._seed = own


def sampler_address(sampler: Any) -> int:
    """Of the llama_sampler of a LlamaSampler."""
    return ctypes.cast(sampler.sampler, ctypes.c_void_p).value or 0


def biased_sampler(llm: llama_cpp.Llama, sampler: Any, logit_bias: dict[int, float]) -> Any:
    """A LlamaSampler that adds these to the logits before `sampler`, which it takes over, sees them."""
    biased = _internals.LlamaSampler()
    biased.add_logit_bias(llm.n_vocab(), logit_bias)
    llama_cpp.llama_sampler_chain_add(biased.sampler, sampler.sampler)
    sampler.sampler = None
    return biased


def n_ctx_train(llm: llama_cpp.Llama) -> int:
    return llm._model.n_ctx_train()


def n_params(llm: llama_cpp.Llama) -> int:
    return llm._model.n_params()


def adds_bos(llm: llama_cpp.Llama) -> bool:
    """Whether texts begin with the start token."""
    return llm._model.add_bos_token()


def lora_is_missing(llm: llama_cpp.Llama) -> bool:
    """llama_cpp takes a null pointer for an adapter."""
    return bool(llm.lora_path) and not llm._lora_adapter


def exact_pieces(llm: llama_cpp.Llama) -> None:
    """Tokens of more than the 32 bytes that llama_cpp has room for give their text. What is no token is a ValueError,
    where llama.cpp would end the process."""
    model = llm._model
    n_vocab = llama_cpp.llama_vocab_n_tokens(model.vocab)

    def token_to_piece(token: int, special: bool = False) -> bytes:
        if not 0 <= token < n_vocab:
            raise ValueError(f"tokens: ids must be in [0, {n_vocab}); got {token}")
        return _piece(model.vocab, token, special)

    def detokenize(tokens: list[int], special: bool = False) -> bytes:
        output = b"".join([token_to_piece(token, special) for token in tokens])
        begins = len(tokens) > 0 and tokens[0] == model.token_bos() and output[:1] == b" "
        return output[1:] if begins else output  # the space that some vocabularies put before a text

    model.token_to_piece = token_to_piece  # type: ignore[method-assign]
    model.detokenize = detokenize  # type: ignore[method-assign]


def _piece(vocab: Any, token: int, special: bool) -> bytes:
    size = 64
    buffer = ctypes.create_string_buffer(size)
    n = llama_cpp.llama_token_to_piece(vocab, token, buffer, size, 0, special)
    if n < 0:
        size = -n
        buffer = ctypes.create_string_buffer(size)
        n = llama_cpp.llama_token_to_piece(vocab, token, buffer, size, 0, special)
    return buffer.raw[:n]


def mark_closed(llm: llama_cpp.Llama, stand_in: Any) -> None:
    """`stand_in` takes the place of what `Llama.close()` freed."""
    llm._ctx = llm._model = llm.tokenizer_ = stand_in


def ggml_type(number: int) -> tuple[str, int, int]:
    """Name of a ggml_type in lower case, values in a block, bytes of a block; KeyError if there is no such type."""
    n_types = llama_cpp.llama_model_quantize_default_params().token_embedding_type  # GGML_TYPE_COUNT: none is chosen
    name, block, size = libggml.ggml_type_name, libggml.ggml_blck_size, libggml.ggml_type_size
    name.restype, block.restype, size.restype = ctypes.c_char_p, ctypes.c_int64, ctypes.c_size_t
    if not (0 <= number < n_types and size(number)):
        raise KeyError(number)
    return name(number).decode().lower(), block(number), size(number)
