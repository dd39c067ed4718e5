"""A model that drafts for itself: tokens skip in a second context of the same weights; the first one verifies them."""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp.llama_speculative import LlamaDraftModel

from . import llama_cpp_internals as internals
from ._core import Controller, Profile, Session, SkipStats, find_profile
from .channel_weights import storing_weights
from .checked import whole
from .draft_pace import Pace
from .load_error import explained
from .skip_argument import Skip, as_wanted, is_dense
from .skip_config import SkipConfig

__all__ = ["DraftStats", "SkippingDraft", "dense_where_drafts_skip"]


@dataclass(frozen=True)
class DraftStats:
    """What became of drafts, over all generations."""

    rounds: int = 0
    """Drafts that were verified."""
    drafted: int = 0
    """Tokens in them."""
    accepted: int = 0
    """Of these, tokens that the model chose itself."""
    stopped: int = 0
    """Generations in which drafting was given up because it was slower than none."""
    seconds_plain: float = math.nan
    """Of a token without drafts, in the generation judged last; NaN: none was."""
    seconds_drafted: float = math.nan
    """Of a token with them."""

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were accepted; NaN without any."""
        return self.accepted / self.drafted if self.drafted else math.nan


class SkippingDraft(LlamaDraftModel):
    """The `draft_model` of a `Llama` whose drafts come from the model itself, with skipping, in a second context.

    The model runs in full, without a callback: the text is llama.cpp's own, whatever is skipped. The first tokens of
    each generation are not drafted, `warm_up_index` of them and 8 at least; then drafts are made as long as they are
    faster than none, which is measured as the generation goes on.

    Args:
        skip: What drafts skip, as `Llama` takes it. "auto": what the profile beside or in the model says, and without
            one policy "channels".
        num_pred_tokens: Tokens of a draft, 1 to 63.

    Raises:
        ValueError: Nothing is skipped, or `num_pred_tokens` is out of range.
    """

    def __init__(self, skip: Skip = "auto", num_pred_tokens: int = 4):
        self.skip = skip
        self.num_pred_tokens = whole("num_pred_tokens", num_pred_tokens)
        if not 1 <= self.num_pred_tokens <= 63:
            raise ValueError(f"num_pred_tokens: {num_pred_tokens} is outside [1, 63]")
        self._wanted = as_wanted(skip)
        if is_dense(self._wanted):
            raise ValueError(f"skip: {skip!r} skips nothing, and such drafts can't be faster than the model itself")
        self._controller = Controller()  # another one for each model
        self._session: Session | None = None
        self._n_plain = 0
        self._stats = DraftStats()

    def __reduce__(self) -> tuple[Any, ...]:
        return SkippingDraft, (self.skip, self.num_pred_tokens)

    def __repr__(self) -> str:
        return f"SkippingDraft({self.skip!r}, num_pred_tokens={self.num_pred_tokens})"

    @property
    def stats(self) -> DraftStats:
        return self._stats

    @property
    def skip_stats(self) -> SkipStats:
        """What drafts skipped; tokens that were refused count as well."""
        return self._controller.stats

    # ---- what a Llama does with it ----

    def attach(self, llm: llama_cpp.Llama) -> None:
        """Makes the second context of the model.

        Raises:
            ValueError: It drafts for another model already, or `skip` does not fit this one.
        """
        if self._session is not None:
            raise ValueError("draft_model: this SkippingDraft drafts for another model; make one for each")
        self._controller = Controller()
        params = type(llm.context_params).from_buffer_copy(llm.context_params)
        params.cb_eval = ctypes.cast(self._controller.callback, llama_cpp.ggml_backend_sched_eval_callback)
        params.cb_eval_user_data = self._controller.user_data
        with explained(quiet=not llm.verbose):
            context = internals.make_context(llm, params)
        internals.keep_context(llm, context)
        self._controller.probe(context.ctx)
        self._apply(llm)
        self._sampler = llama_cpp.llama_sampler_init_greedy()
        self._n_ctx = internals.n_context(llm)
        self._held = np.empty(self._n_ctx, np.intc)
        self._session = Session(context.ctx, self._controller)
        self._n_held = 0
        self.begin()

    def _apply(self, llm: llama_cpp.Llama) -> None:
        path, wanted = os.path.abspath(llm.model_path), self._wanted
        if not isinstance(wanted, (Profile, SkipConfig)):  # "auto"
            wanted = find_profile(internals.model_address(llm), path) or SkipConfig(policy="channels")
        with storing_weights(
            self._controller, path, n_threads=llm.n_threads_batch, show=None if llm.verbose else False
        ):
            if isinstance(wanted, Profile):
                self._controller.set_profile(wanted)
            else:
                self._controller.config = wanted
        # Tokens of the warm-up run in full, which the model does itself.
        self._n_plain = self._controller.config.warm_up_index
        self._controller.config = self._controller.config.replace(warm_up_index=0)

    def begin(self) -> None:
        """What comes next is another generation."""
        self._pace = Pace(self._n_plain)
        self._n_prompt: int | None = None  # tokens that are not drafts' own
        self._n_seen = 0
        self._drafted: list[int] = []

    def release(self) -> None:
        """The model was freed, and the context with it."""
        self._session = None
        llama_cpp.llama_sampler_free(self._sampler)
        self._controller.release_weights()

    # ---- drafts ----

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        """
        Args:
            input_ids: int32 [n], all tokens of the text so far.
        Returns:
            int32 [0 to num_pred_tokens], what may come next.
        Raises:
            RuntimeError: It is not the draft model of a `Llama` that is open.
        """
        if self._session is None:
            raise RuntimeError("a SkippingDraft drafts for the Llama that it is the draft_model of, while that is open")
        self._settle(input_ids, perf_counter())
        n_tokens = min(self.num_pred_tokens, self._n_ctx - len(input_ids))
        if self._pace.drafts and n_tokens > 0:
            self._drafted = self._draft(self._session, input_ids, n_tokens)
        return np.array(self._drafted, np.intc)

    def _settle(self, ids: npt.NDArray[np.intc], now: float) -> None:
        """What became of the last draft."""
        drafted, self._drafted = self._drafted, []
        n_new = len(ids) - self._n_seen if self._n_seen else 0
        was_lost = self._pace.is_lost
        self._pace.see(n_new, now, drafted=len(drafted) > 0)
        if drafted:
            accepted = _n_common(np.array(drafted, np.intc), ids[self._n_seen :])
            self._count(len(drafted), accepted, lost=self._pace.is_lost and not was_lost)
        self._n_seen = len(ids)

    def _count(self, drafted: int, accepted: int, *, lost: bool) -> None:
        old, pace = self._stats, self._pace
        self._stats = DraftStats(
            old.rounds + 1,
            old.drafted + drafted,
            old.accepted + accepted,
            old.stopped + lost,
            pace.seconds_plain,
            pace.seconds_drafted if pace.rounds else old.seconds_drafted,
        )

    def _draft(self, session: Session, ids: npt.NDArray[np.intc], n_tokens: int) -> list[int]:
        if self._n_prompt is None:
            self._n_prompt = len(ids) - 1
        kept = min(_n_common(self._held[: self._n_held], ids), len(ids) - 1)
        self._n_held = 0  # until all is done
        try:
            token = self._go_on(session, ids, kept)
        except RuntimeError:
            token = self._go_on(session, ids, 0)  # a sliding window does not go back
        drafted = [token]
        while len(drafted) < n_tokens:
            drafted.append(self._step(session, drafted[-1], len(ids) + len(drafted) - 1))
        self._n_held = len(ids) + len(drafted) - 1
        self._held[: len(ids)] = ids
        self._held[len(ids) : self._n_held] = drafted[:-1]
        return drafted

    def _go_on(self, session: Session, ids: npt.NDArray[np.intc], kept: int) -> int:
        """The context takes in `ids`, of which it holds some. Returns the token that it would have next."""
        n_prompt = self._n_prompt or 0
        if kept < n_prompt:
            session.decode(ids[kept:n_prompt].tolist(), kept)
            kept = n_prompt
        token = -1
        for position in range(kept, len(ids)):
            token = self._step(session, int(ids[position]), position)
        return token

    def _step(self, session: Session, token: int, position: int) -> int:
        return session.step(ctypes.cast(self._sampler, ctypes.c_void_p).value or 0, token, position)


def _n_common(a: npt.NDArray[np.intc], b: npt.NDArray[np.intc]) -> int:
    """Tokens that both begin with."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def dense_where_drafts_skip(skip: Skip, draft_model: LlamaDraftModel | None) -> Skip:
    """What the model itself is to skip: nothing, where a SkippingDraft drafts for it. Raises ValueError where it was
    told to all the same."""
    if not isinstance(draft_model, SkippingDraft):
        return skip
    if isinstance(skip, str) and skip == "auto":
        return None
    if not is_dense(as_wanted(skip)):
        raise ValueError(
            f"skip: {skip!r}: a model with a SkippingDraft runs in full; give SkippingDraft(skip=...) what is skipped"
        )
    return skip
