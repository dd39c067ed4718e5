"""Decoding through the core, in place of llama_cpp's call of llama_decode."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import LogitsProcessorList

from . import llama_cpp_internals as internals
from ._core import Controller, Session
from .checked import CheckedLlama, check_room, like, token_ids
from .notices import warn

__all__ = ["Decoder", "DecodingLlama", "GuardedProcessors"]

SINGLE_EVALS = 8  # tokens evaluated one by one, none of them sampled here, after which the user is told


class Decoder:
    """Stands in for `LlamaContext.decode`, and tells the core what it can't see: which token was sampled, and whether
    somebody looked at the outputs. Knows no Llama, so that no reference cycle keeps a model alive."""

    def __init__(self, controller: Controller):
        self.controller = controller
        self.session: Session  # of the context
        self.n_rows = 0  # of the last batch
        self.sampled: int | None = None  # the last token sampled, until it is fed back
        self.generation: object | None = None  # the one that has the context
        self._generated: bool | None = False  # the rows of the next batch; None: for the core to see
        self._is_prompt = False  # what is evaluated next begins a generation
        self._is_seen = False  # the outputs of the last batch
        self._n_single = 0

    def use(self, llm: llama_cpp.Llama) -> None:
        """Decode in the context that `llm` has now."""
        self.session = Session(internals.context_address(llm), self.controller)
        internals.redirect_decode(llm, self)
        internals.on_look(llm, self.look)
        if n_swa := llama_cpp.llama_model_n_swa(llm.model):
            internals.can_go_back(llm, n_swa)

    def __call__(self, batch: Any) -> None:
        self.n_rows = internals.n_rows(batch)
        self.session.decode_batch(internals.batch_address(batch), self._generated)

    def look(self) -> None:
        """Outputs are read, to choose a token from them perhaps."""
        self._is_seen = True

    def follow(self, token: int | None) -> None:
        """What comes next was not chosen from outputs, unless it is `token`, which was sampled."""
        self.sampled, self._is_seen = token, False

    def begin(self) -> None:
        """What is evaluated next is a prompt."""
        self.sampled, self._is_prompt = None, True

    @contextlib.contextmanager
    def feeding(self, ids: list[int], generated: bool | None, *, drafts: bool) -> Iterator[None]:
        """Within the block, rows are decoded as what `ids` are: `generated`, or if None as is known from before.

        Args:
            drafts: A draft may follow the token that was sampled.
        """
        self._generated = self._fed(ids, drafts) if generated is None else generated
        self._is_prompt, self.sampled = False, None
        try:
            yield
        finally:
            self._generated = self._is_seen = False

    def _fed(self, ids: list[int], drafts: bool) -> bool | None:
        if not self._is_prompt and len(ids) > 0 and ids[0] == self.sampled:
            return None if len(ids) == 1 else drafts
        if self._is_prompt or len(ids) != 1:
            self._n_single = 0
            return False
        if self._is_seen:
            return None
        self._n_single += self.controller.config.policy != "dense"
        if self._n_single == SINGLE_EVALS:
            warn(
                "tokens evaluated one by one run in full, as a prompt does, unless they were sampled here; "
                "eval(tokens, generated=True) lets them skip"
            )
        return False

    def say_notice(self) -> None:
        """What the core has to tell the user."""
        if notice := self.controller.take_notice():
            warn(notice)


class DecodingLlama(CheckedLlama):
    """Decodes through the core, which accounts for all that is evaluated; saved states have its account with them."""

    def __init__(self, model_path: str | os.PathLike[str], decoder: Decoder, **kwargs: Any):
        self._decoder = decoder
        super().__init__(model_path, **kwargs)
        decoder.use(self)

    @property
    def scores(self) -> npt.NDArray[np.single]:
        """As in `llama_cpp.Llama`."""
        self._decoder.look()
        return self._all_scores

    @scores.setter
    def scores(self, scores: npt.NDArray[np.single]) -> None:
        self._all_scores = scores

    @property
    def ctx(self) -> Any:
        """As in `llama_cpp.Llama`."""
        self._decoder.look()  # whoever asks for it may read outputs
        return super().ctx

    def eval(self, tokens: Sequence[int], *, generated: bool | None = None) -> None:
        """Evaluates tokens after those in the context.

        Args:
            tokens: Token ids.
            generated: Whether they are generated tokens, which may skip once the warm-up is over, or a prompt, which
                runs in full. None: one token is generated if it was sampled by `sample()`, or if outputs were read
                through this object since the last evaluation; several are if they are the sampled token and the draft
                of a `draft_model`.
        Raises:
            RuntimeError: The tokens do not fit the context, or llama.cpp refused the batch.
        """
        ids = token_ids(tokens)
        with self._at_work():
            self._check_open()
            check_room(self, len(ids))
            if generated and len(ids) > 1:
                self._mix_rows()
            with self._decoder.feeding(ids, generated, drafts=self.draft_model is not None):
                super().eval(ids)
            self._decoder.say_notice()

    def _mix_rows(self, *, sequences: bool = False) -> None:
        """Some rows of the next batch, of several sequences even, may skip, and others not."""

    @like(llama_cpp.Llama.sample)
    def sample(self, *args: Any, **kwargs: Any) -> int:
        guard = kwargs.get("logits_processor")
        with self._at_work():
            token = int(super().sample(*args, **kwargs))
            self._decoder.follow(token)
        if isinstance(guard, GuardedProcessors):
            guard.raise_pending()
        return token

    def reset(self) -> None:
        with self._at_work():
            self._decoder.sampled = None
            super().reset()

    def save_state(self) -> llama_cpp.LlamaState:
        """As in `llama_cpp.Llama`; what was generated and skipped is part of it."""
        with self._at_work():
            state = super().save_state()
            vars(state).update(account=self._decoder.controller.account(), sampled=self._decoder.sampled)
        return state

    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """As in `llama_cpp.Llama`. A generation that was saved goes on where it was, past its warm-up if it was."""
        with self._at_work():
            super().load_state(state)
            self._cover_context()
            account = getattr(state, "account", None)
            if account is None:
                self._decoder.controller.replaced()
            else:
                self._decoder.controller.restore(account)
            self._decoder.follow(getattr(state, "sampled", None))


class GuardedProcessors(LogitsProcessorList):
    """Logits processors whose exceptions reach the caller: one raised in a ctypes callback would only be printed."""

    def __init__(self, processors: Sequence[Any]):
        super().__init__(processors)
        self._pending: BaseException | None = None
        self[:] = [self._guarded(processor) for processor in processors]

    def _guarded(self, processor: Any) -> Any:
        def guarded(input_ids: Any, scores: Any) -> Any:
            if self._pending is None:
                try:
                    return np.broadcast_to(processor(input_ids, scores), scores.shape)
                except BaseException as error:
                    self._pending = error
            return scores

        return guarded

    def raise_pending(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            raise pending
