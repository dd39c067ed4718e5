"""The llama.cpp context that a `Llama` decodes in: with the core's callback, or llama.cpp's own where nothing is to be
skipped."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp

from . import llama_cpp_internals as internals
from .decoding import Decoder
from .errors import UnsupportedModelError
from .load_error import explained
from .skip_argument import DENSE

__all__ = ["Context"]

SEQUENCES = 9  # a text, and as many that go on from it at once; see share()
NO_GENERATION = "an embedding context does not generate; its FFN blocks always run"


class Context:
    """
    Args:
        generates: Whether it is one to generate in.
    """

    def __init__(self, decoder: Decoder, *, generates: bool):
        self.params: Any = None  # what llama_cpp makes the context from
        self.generates = generates
        self.has_callback = False
        self.why_dense = None if generates else NO_GENERATION
        self._decoder = decoder
        self._is_probed = False

    def add_callback(self) -> None:
        """Before the context is made."""
        self._attach(self.params)
        self.has_callback = True

    def probe(self, address: int) -> None:
        """Raises UnsupportedModelError where the model has no FFN block that can be skipped, and other ValueErrors."""
        self._is_probed = True
        try:
            self._decoder.controller.probe(address)
        except ValueError as error:
            self.why_dense = str(error)
            raise

    def learn(self, llm: llama_cpp.Llama) -> None:
        """Finds the FFN blocks, in a context for that alone if this one has no callback."""
        if self._is_probed or not self.generates:
            return
        params = self._copied_params()
        self._attach(params)
        params.n_ctx, params.n_seq_max = min(params.n_ctx, 64), 1
        params.n_batch = params.n_ubatch = min(params.n_batch, params.n_ctx)
        controller = self._decoder.controller
        account = controller.account()
        context = _made(llm, params)
        try:
            self.probe(context.ctx)
        except UnsupportedModelError:
            pass  # why_dense says so
        finally:
            context.close()
        controller.restore(account)
        controller.config = DENSE

    def need_callback(self, llm: llama_cpp.Llama) -> None:
        """A context that was made dense is made anew, with all that is in it."""
        if not self.generates:
            raise UnsupportedModelError(NO_GENERATION)
        if self.has_callback:
            return
        has_outputs = not internals.needs_eval(llm)
        state = llm.save_state() if llm.n_tokens > 0 else None
        params = self._copied_params()
        self._attach(params)
        context = _made(llm, params)
        try:
            self.probe(context.ctx)
        except ValueError:
            context.close()
            raise
        internals.adopt_context(llm, context)
        self.params, self.has_callback = params, True
        self._decoder.use(llm)
        if state is not None:
            llm.load_state(state)
            if has_outputs:
                self._compute_outputs_again(llm)

    def share(self, llm: llama_cpp.Llama) -> bool:
        """Makes the context anew, and empty, for several sequences at once; those of llama_cpp have one.

        False where it stays as it is: it was made so before, or the memory of the model is none that sequences share.
        """
        if not self.generates:
            raise UnsupportedModelError(NO_GENERATION)
        one_by_one = (
            llama_cpp.llama_model_is_recurrent(llm.model)
            or llama_cpp.llama_model_is_hybrid(llm.model)
            or (llama_cpp.llama_model_n_swa(llm.model) > 0 and not self.params.swa_full)  # shared cells are not reused
        )
        params = self._copied_params()
        params.n_seq_max = 1 if one_by_one else min(SEQUENCES, params.n_batch, params.n_ubatch)  # as llama.cpp asserts
        params.kv_unified = True
        if params.n_seq_max <= self.params.n_seq_max:
            return False
        context = _made(llm, params)
        if self.has_callback:
            self.probe(context.ctx)
        internals.adopt_context(llm, context)
        self.params = params
        self._decoder.use(llm)
        llm.reset()
        return True

    def _compute_outputs_again(self, llm: llama_cpp.Llama) -> None:
        """A state has none, and the user may sample from them."""
        account = self._decoder.controller.account()
        n = min(self._decoder.n_rows, llm.n_tokens) if internals.wants_all_logits(llm) else 1
        ids = llm.input_ids[llm.n_tokens - n : llm.n_tokens].tolist()
        llm.n_tokens -= n
        llama_cpp.Llama.eval(llm, ids)
        self._decoder.controller.restore(account)

    def _copied_params(self) -> Any:
        return type(self.params).from_buffer_copy(self.params)

    def _attach(self, params: Any) -> None:
        controller = self._decoder.controller
        params.cb_eval = ctypes.cast(controller.callback, llama_cpp.ggml_backend_sched_eval_callback)
        params.cb_eval_user_data = controller.user_data


def _made(llm: llama_cpp.Llama, params: Any) -> Any:
    with explained(quiet=not llm.verbose):
        return internals.make_context(llm, params)
