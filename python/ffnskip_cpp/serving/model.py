"""A `Llama` whose context has room for several texts at once."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import llama_cpp

from .. import llama_cpp_internals as internals
from .._core import Controller, Session
from ..llama import Llama
from ..skip_argument import Skip

__all__ = ["ServedLlama"]

DEFAULT_N_CTX = 4096

NOT_SERVED = {
    "draft_model": "drafts are for one text at a time",
    "embedding": "an embedding context does not generate",
    "logits_all": "it would keep the logits of every token",
    "vocab_only": "a vocabulary does not generate",
}


class ServedLlama(Llama):
    """
    Args:
        n_parallel: Texts at once.
        n_ctx: Tokens of each; None: as many as the model was trained on, 4096 at most.
        flash_attn: None: llama.cpp decides, as in its own server.
        **options: As for `Llama`.
    Raises:
        ValueError: What `Llama` raises, or an option that is not for several texts.
    """

    def __init__(
        self,
        model_path: str,
        *,
        n_parallel: int,
        n_ctx: int | None,
        skip: Skip,
        flash_attn: bool | None = None,
        **options: Any,
    ):
        for name, reason in NOT_SERVED.items():
            if options.get(name):
                raise ValueError(f"{name}: not for a server: {reason}")
        if n_ctx is not None and n_ctx < 1:
            raise ValueError(f"n_ctx: {n_ctx} is less than 1")
        self._n_parallel = n_parallel
        self._n_ctx_wanted = n_ctx
        self._flash_attn = flash_attn
        self._is_prepared = False
        super().__init__(
            model_path, skip=skip, n_ctx=n_parallel * (n_ctx or DEFAULT_N_CTX), flash_attn=flash_attn is True, **options
        )
        self._require_vocabulary()

    # As in `Llama`: the moment before the context is made.
    @property
    def context_params(self) -> Any:
        if internals.makes_context(self) and not self._is_prepared:
            self._is_prepared = True
            n_ctx = self._n_ctx_wanted or min(self.n_ctx_train, DEFAULT_N_CTX)
            self._check_batch()
            self._context.serve(self._n_parallel, n_ctx)
            if self._flash_attn is None:
                self._context.params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
        return super().context_params

    @context_params.setter
    def context_params(self, params: Any) -> None:
        self._context.params = params

    def _check_batch(self) -> None:
        params = self._context.params
        most = min(params.n_batch, params.n_ubatch, llama_cpp.llama_max_parallel_sequences())
        if not 1 <= self._n_parallel <= most:
            raise ValueError(f"n_parallel: {self._n_parallel} is outside [1, {most}], the rows of a batch")

    @property
    def n_ctx_slot(self) -> int:
        """Tokens of each text."""
        n_ctx = internals.n_context(self) // self._n_parallel
        return min(n_ctx, self._n_ctx_wanted or n_ctx)

    def at_work(self) -> AbstractContextManager[None]:
        """Within the block this thread alone evaluates; another one that would gets a RuntimeError."""
        return self._at_work()

    @property
    def session(self) -> Session:
        return self._decoder.session

    @property
    def controller(self) -> Controller:
        return self._controller
