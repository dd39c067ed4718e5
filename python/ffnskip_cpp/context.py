"""The llama.cpp context that a `Llama` decodes in: with the core's callback, or llama.cpp's own where nothing is to be
skipped."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llama_cpp

from . import llama_cpp_internals as internals
from .decoding import Decoder
from .errors import UnsupportedModelError
from .load_error import explained
from .skip_argument import DENSE

__all__ = ["Context"]

SEQUENCES = 9  # a text, and as many that go on from it at once
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

    def serve(self, n_sequences: int, n_ctx: int) -> None:
        """Before the context is made: it is for so many texts of `n_ctx` tokens, each with settings of its own."""
        self.params.n_seq_max, self.params.n_ctx = n_sequences, n_sequences * n_ctx
        self.params.kv_unified = False  # no text attends to memory that others take
        self.add_callback()

    def probe(self, address: int) -> None:
        """Raises UnsupportedModelError where the model has no FFN block that can be skipped, and other ValueErrors."""
        try:
            self._decoder.controller.probe(address)
        except ValueError as error:
            self.why_dense = str(error)
            raise
        finally:
            self._is_probed = True

    @property
    def is_learnt(self) -> bool:
        """All is known of the model that there is to know."""
        return self._is_probed or not self.generates

    def learn(self, llm: llama_cpp.Llama) -> None:
        """Finds the FFN blocks, in a context for that alone if this one has no callback."""
        if self.is_learnt:
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

    def need(self, llm: llama_cpp.Llama, *, is_static: bool) -> None:
        """What was made dense is to skip: by its graphs as llama.cpp builds them where that is static, else by the
        callback, with which it is made anew. All that is in it stays."""
        if not self.generates:
            raise UnsupportedModelError(NO_GENERATION)
        if self.has_callback or (is_static and self._decoder.controller.hooked):
            return
        hooks = is_static and not internals.wants_all_logits(llm)  # of which it would keep four times as many
        if hooks and llm.n_tokens == 0:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), False)
            if self._hook(internals.context_address(llm)):
                return
        has_outputs = not internals.needs_eval(llm)
        state = llm.save_state() if llm.n_tokens > 0 else None
        if state is None or not (hooks and self._renew(llm, self._copied_params(), self._hook)):
            params = self._copied_params()
            self._attach(params)
            self._renew(llm, params, self._probe)
            self.has_callback = True
        if state is not None:
            llm.load_state(state)
            if has_outputs:
                self._compute_outputs_again(llm)

    def mix_rows(self, llm: llama_cpp.Llama, *, sequences: bool) -> bool:
        """Rows of one batch, of several sequences even, are to skip each for itself, which takes the callback. True
        where the context was made anew for that."""
        controller = self._decoder.controller
        if not controller.hooked or (controller.config.every_row and not sequences):
            return False
        self.need(llm, is_static=False)
        return True

    def _hook(self, address: int) -> bool:
        """Whether the context can skip without the callback."""
        try:
            self._decoder.controller.hook(address)
        except UnsupportedModelError:
            return False
        self._is_probed = True
        return True

    def _probe(self, address: int) -> bool:
        self.probe(address)
        return True

    def share(self, llm: llama_cpp.Llama, n_sequences: int) -> bool:
        """Makes the context anew, and empty, for so many sequences at once; those of llama_cpp have one.

        False where it stays as it is: it was made for as many before, or the memory of the model is none that sequences
        share.
        """
        if not self.generates:
            raise UnsupportedModelError(NO_GENERATION)
        one_by_one = (
            llama_cpp.llama_model_is_recurrent(llm.model)
            or llama_cpp.llama_model_is_hybrid(llm.model)
            or (llama_cpp.llama_model_n_swa(llm.model) > 0 and not self.params.swa_full)  # shared cells are not reused
        )
        params = self._copied_params()
        params.n_seq_max = (
            1 if one_by_one else min(n_sequences, params.n_batch, params.n_ubatch)
        )  # as llama.cpp asserts
        params.kv_unified = True
        if params.n_seq_max <= self.params.n_seq_max:
            return False
        self._renew(llm, params, self._probe if self.has_callback else None)
        llm.reset()
        return True

    def _renew(self, llm: llama_cpp.Llama, params: Any, learn: Callable[[int], bool] | None) -> bool:
        """Makes the context anew, and empty. The one there is stays where that fails, or where `learn`, called with the
        address of the new one, says no."""
        context = _made(llm, params)
        try:
            takes_over = learn is None or learn(context.ctx)
            if takes_over:
                internals.adopt_context(llm, context)
        except BaseException:
            context.close()
            raise
        if not takes_over:
            context.close()
            return False
        self.params = params
        self._decoder.use(llm)
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
