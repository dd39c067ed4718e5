"""`llama_cpp.Llama` with feed-forward skipping.

The base class does everything but decode: the context it makes carries the callback of a `_core.Controller`, and each
batch is decoded through that controller, which keeps account of what is in the context. Generation that needs no Python
per token leaves llama_cpp's loop after the first token for a native one. Where nothing is to be skipped the context has
no callback, and is llama.cpp's own in everything.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import logging
import numbers
import operator
import os
import sys
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import LlamaTokenizer

from . import _core
from . import llama_cpp_internals as internals
from ._core import Controller, FfnBlock, Profile, RowKind, SkipStats
from .errors import Unsupported
from .generation import GuardedProcessors, exclusively, first, sampling_options
from .gguf_file.header_check import check_header
from .load_error import explained
from .profile import write_profile
from .skip_argument import DENSE, Skip, Wanted, as_wanted, check_keywords, is_dense
from .skip_config import ResolvedConfig, SkipConfig

__all__ = ["Llama", "Trace"]

logger = logging.getLogger("ffnskip_cpp")

NOTICE_EVERY = 32  # tokens of the native loop between two looks for something to tell the user
SINGLE_EVALS = 8  # tokens evaluated one by one, none of them sampled here, after which the user is told

NO_PROFILE = (
    'no skip profile for this model: nothing is skipped; "ffnskip calibrate MODEL --text FILE" makes one, '
    '"ffnskip try MODEL" says what skipping would cost'
)
NO_GENERATION = "an embedding context does not generate; its FFN blocks always run"
UNCALIBRATED = 'these values are not calibrated for this model; "ffnskip try MODEL" says what they cost'


@dataclass
class Trace:
    """What happened to each generated token, in the order decoded; filled when the `Llama.trace()` block ends."""

    similarity: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """float32 [n_tokens, n_layer]: cosine of the residual before and after the FFN block; NaN where unchecked."""
    skipped: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty((0, 0), np.bool_))
    """bool [n_tokens, n_layer]: the FFN block was skipped."""


class Llama(llama_cpp.Llama):
    """A `llama_cpp.Llama` that skips feed-forward blocks while it generates. All its arguments and methods work.

    One thread at a time: a second one gets a RuntimeError. Tokens of a loop of your own may skip where they come from
    `sample()` or from logits read through this object; `eval(tokens, generated=True)` says so of any others.

    Args:
        model_path: Path of a GGUF file.
        skip: What to skip: "auto", what the skip profile beside or in the model says, and nothing without one; a
            `SkipConfig`; a float, the target share of FFN blocks to skip (Algorithm 1 with the paper's other values); a
            skip profile or its path; None, nothing (plain llama.cpp).
        reuse: What becomes of text that skipping tokens wrote when it is part of the next prompt, as in a chat: "all",
            the prompt goes on from it, as llama.cpp does; "full", it is evaluated again without skipping.
        **kwargs: As for `llama_cpp.Llama`.

    Raises:
        TypeError: A keyword that is meant for `skip`; with the right spelling.
        ValueError: The model can't be loaded, a profile is damaged or another model's, or `skip` does not fit the model
            (`Unsupported`, a ValueError, where the architecture has no FFN block that can be skipped; with "auto" such
            a model runs dense).
        FileNotFoundError: There is no such profile.
    """

    def __init__(self, model_path: str, *, skip: Skip = "auto", reuse: Literal["all", "full"] = "all", **kwargs: Any):
        internals.prepare(self)
        self._wanted: Wanted = as_wanted(skip)
        if reuse not in ("all", "full"):
            raise ValueError(f"reuse: {reuse!r} is not known; 'all' or 'full'")
        check_keywords(kwargs)
        self._skip_argument = skip
        self._reuse = reuse
        self._controller = Controller()
        self._controller.set_reuse(reuse == "full")
        self._decoder = _Decoder(self._controller)
        self._lock = threading.RLock()
        self._generation: object | None = None  # the one that has the context
        self._generates = not kwargs.get("embedding", False)
        self._has_callback = False
        self._is_probed = False
        self._in_dense = 0
        self._profile: Profile | None = None  # found beside or in the model
        self._sampled: int | None = None  # the last token sampled, until it is fed back
        self._single_evals = 0
        self._is_prompt = False  # what is evaluated next begins a generation
        self._is_told = False  # that its settings are not calibrated
        self._tracing = False
        self._closed = False
        self._why_dense: str | None = None if self._generates else NO_GENERATION
        if os.path.exists(model_path):  # or the base class says that it does not
            check_header(model_path)
        with explained(quiet=not kwargs.get("verbose", True)):
            super().__init__(os.fspath(model_path), **kwargs)
            if internals.lora_is_missing(self):
                self.close()
                raise RuntimeError(f"Failed to initialize LoRA adapter from lora path: {self.lora_path}")
        internals.exact_pieces(self)
        self._use_context()
        self._cover_context()
        self._set_up_skipping()

    def _use_context(self) -> None:
        """Decode through the controller in the context that there is now."""
        self._decoder.context_address = internals.context_address(self)
        internals.redirect_decode(self, self._decoder)
        internals.on_look(self, self._decoder.look)
        if n_swa := llama_cpp.llama_model_n_swa(self.model):
            internals.can_go_back(self, n_swa)

    def _cover_context(self) -> None:
        """llama.cpp rounds n_ctx up, and a draft model wants logits: the base class's arrays may be too short."""
        n_ctx = internals.n_context(self)
        self.input_ids = np.pad(self.input_ids, (0, max(0, n_ctx - len(self.input_ids))))
        if internals.wants_all_logits(self) and len(self._all_scores) < n_ctx:
            self.scores = np.zeros((n_ctx, self.n_vocab()), np.single)

    # ---- what is skipped ----

    # The base class assigns context_params early in its constructor, and reads it to make the context when the model is
    # there: the moment to decide whether the context is to have a callback.
    @property
    def context_params(self) -> Any:
        if self._wanted == "auto" and self._profile is None and internals.makes_context(self):
            self._profile = _core.find_profile(internals.model_address(self), self.model_path)
        wants_callback = self._profile is not None if self._wanted == "auto" else self._wanted is not None
        if wants_callback and self._generates and not self._has_callback:
            self._add_callback(self._context_params)
            self._has_callback = True
        return self._context_params

    @context_params.setter
    def context_params(self, params: Any) -> None:
        self._context_params = params

    def _add_callback(self, params: Any) -> None:
        params.cb_eval = ctypes.cast(self._controller.callback, llama_cpp.ggml_backend_sched_eval_callback)
        params.cb_eval_user_data = self._controller.user_data

    def _set_up_skipping(self) -> None:
        try:
            if self._has_callback:
                self._probe(internals.context_address(self))
            self._apply(self._wanted)
        except Unsupported as error:
            if not (self._wanted == "auto" or is_dense(self._wanted)):
                self.close()
                raise
            self._why_dense = str(error)
            if self._wanted == "auto":
                self._log(f"skip='auto': nothing is skipped: {error}")
            self._controller.config = DENSE
        except ValueError:
            self.close()
            raise
        if self._wanted == "auto" and self._generates and self._profile is None:
            self._log(NO_PROFILE)

    def _probe(self, context: int) -> None:
        self._is_probed = True
        self._controller.probe(context)

    def _log(self, message: str) -> None:
        logger.log(logging.WARNING if self.verbose else logging.INFO, message)

    def _apply(self, wanted: Wanted, *, warn: bool = True) -> None:
        """Raises ValueError where it does not fit the model; what was set before stays."""
        if wanted == "auto":
            wanted = self._profile
            if wanted is not None and self._why_dense is not None:
                if warn:
                    self._log(f"skip='auto': nothing is skipped: {self._why_dense}")
                wanted = None
            elif wanted is not None and warn:
                self._log(f"skip='auto': as {wanted.path} says")
        if is_dense(wanted):
            self._controller.config = DENSE
            return
        self._need_callback()
        if isinstance(wanted, Profile):
            self._controller.set_profile(wanted)
            return
        self._controller.config = wanted
        if warn and not self._is_told and not self._is_own_profiles(wanted):
            self._is_told = True
            _warn(f"skip: {_values(wanted, self._controller.resolved)}: {UNCALIBRATED}")

    def _is_own_profiles(self, config: SkipConfig) -> bool:
        profile = self._profile or _core.find_profile(internals.model_address(self), self.model_path)
        return profile is not None and profile.config == config

    def _need_callback(self) -> None:
        """A context that was made dense is made anew, with all that is in it."""
        if not self._generates:
            raise Unsupported(NO_GENERATION)
        if self._has_callback:
            return
        has_outputs = not internals.needs_eval(self)
        state = self.save_state() if self.n_tokens > 0 else None
        params = type(self._context_params).from_buffer_copy(self._context_params)
        self._add_callback(params)
        context = self._make_context(params)
        try:
            self._probe(context.ctx)
        except ValueError as error:
            context.close()
            self._why_dense = str(error)
            raise
        internals.adopt_context(self, context)
        self._context_params, self._has_callback = params, True
        self._use_context()
        if state is not None:
            self.load_state(state)
            if has_outputs:
                self._compute_outputs_again(state)

    def _compute_outputs_again(self, state: llama_cpp.LlamaState) -> None:
        """A state has none, and the user may sample from them."""
        n = min(self._decoder.n_rows, self.n_tokens) if internals.wants_all_logits(self) else 1
        ids = self.input_ids[self.n_tokens - n : self.n_tokens].tolist()
        self.n_tokens -= n
        super().eval(ids)
        self._controller.restore(state.account)

    def _make_context(self, params: Any) -> Any:
        with explained(quiet=not self.verbose):
            return internals.make_context(self, params)

    def _learn(self) -> None:
        """Finds the FFN blocks, in a context for that alone if this one has no callback."""
        if self._is_probed or not self._generates:
            return
        self._check_open()
        params = type(self._context_params).from_buffer_copy(self._context_params)
        params.n_ctx, params.n_seq_max = min(params.n_ctx, 64), 1
        params.n_batch = params.n_ubatch = min(params.n_batch, params.n_ctx)
        self._add_callback(params)
        context = self._make_context(params)
        account = self._controller.account()
        try:
            self._probe(context.ctx)
        except Unsupported as error:
            self._why_dense = str(error)
        finally:
            context.close()
        self._controller.restore(account)
        self._controller.config = DENSE

    @property
    def skip(self) -> SkipConfig | None:
        """What is skipped; None if nothing. Settable between calls to whatever the constructor takes. Within `dense()`
        it takes effect when the block ends.

        Raises:
            ValueError: On assignment, where the value does not fit the model; what was set before stays.
            RuntimeError: The model is closed.
        """
        config = self._controller.config
        return None if is_dense(config) else config

    @skip.setter
    def skip(self, value: Skip) -> None:
        self._check_open()
        wanted = as_wanted(value)
        with self._at_work():
            if wanted == "auto":
                self._profile = _core.find_profile(internals.model_address(self), self.model_path)
            self._apply(wanted)
            self._wanted, self._skip_argument = wanted, value
            if self._in_dense:
                self._controller.config = DENSE

    @property
    def resolved(self) -> ResolvedConfig:
        """What `skip` means for this model: every value it left open, such as "an eighth of the layers"."""
        self._learn()
        return self._controller.resolved

    @property
    def n_layer(self) -> int:
        """Layers of the model."""
        return llama_cpp.llama_model_n_layer(self.model)

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that the model was trained on."""
        return internals.n_ctx_train(self)

    @property
    def ffn_map(self) -> list[FfnBlock]:
        """The FFN block of each layer that has one, as found in the model's graph: kind, residual form, weights, bytes,
        and why a block can't be skipped where that is so."""
        self._learn()
        return self._controller.ffn_map

    @property
    def skippable(self) -> npt.NDArray[np.bool_]:
        """bool [n_layer]: the layer has an FFN block that can be skipped."""
        self._learn()
        return self._controller.skippable

    @property
    def fingerprint(self) -> str:
        """What tells this model from others, whatever its quantisation."""
        self._learn()
        return self._controller.fingerprint

    @property
    def why_dense(self) -> str | None:
        """Why this model or context can't skip; None if it can."""
        self._learn()
        return self._why_dense

    @contextlib.contextmanager
    def dense(self) -> Iterator[None]:
        """Within the block nothing is skipped. A text that skipping tokens wrote is evaluated again if it is part of a
        prompt there."""
        with self._at_work():
            self._in_dense += 1
            self._controller.config = DENSE
        try:
            yield
        finally:
            self._in_dense -= 1
            if self._in_dense == 0 and not self._closed:
                self._apply(self._wanted, warn=False)

    @contextlib.contextmanager
    def skipping(self, config: Skip) -> Iterator[None]:
        """Within the block the model skips as `config` says. Raises ValueError where that does not fit the model."""
        self._check_open()
        before, in_dense = self._wanted, self._in_dense
        wanted = as_wanted(config)
        with self._at_work():
            self._apply(wanted, warn=False)
            self._wanted, self._in_dense = wanted, 0
        try:
            yield
        finally:
            self._wanted, self._in_dense = before, in_dense
            if not self._closed:
                self._apply(None if in_dense else before, warn=False)

    @property
    def stats(self) -> SkipStats:
        """Counts over the tokens generated since construction or `reset_stats()`. From any thread."""
        return self._controller.stats

    def reset_stats(self) -> None:
        self._controller.reset_stats()

    @contextlib.contextmanager
    def trace(self) -> Iterator[Trace]:
        """Records similarity and skipped blocks of every token generated within the block, one row per token.

        Raises:
            RuntimeError: A trace is being recorded already.
        """
        if self._tracing:
            raise RuntimeError("a trace is being recorded already")
        self._learn()
        trace = Trace()
        self._tracing = True
        self._controller.start_trace()
        try:
            yield trace
        finally:
            trace.similarity, trace.skipped = self._controller.stop_trace()
            self._tracing = False

    def save_profile(self, path: str | os.PathLike[str]) -> None:
        """Writes what `skip` is now as a skip profile of this model.

        Raises:
            ValueError: Nothing is skipped, or the policy is a random one, which no profile holds.
        """
        write_profile(path, self.fingerprint, self._controller.config, self._controller.resolved)

    # ---- one user at a time ----

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this Llama is at work in another thread; one at a time may use it")
        try:
            yield
        finally:
            self._lock.release()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the model is closed")

    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        with self._at_work():
            return super().create_completion(*args, **kwargs)

    def create_chat_completion(self, *args: Any, **kwargs: Any) -> Any:
        with self._at_work():
            return super().create_chat_completion(*args, **kwargs)

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        with self._at_work():
            return super().embed(*args, **kwargs)

    # ---- decoding ----

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
        ids = _token_ids(tokens)
        with self._at_work():
            self._check_open()
            self._check_room(len(ids))
            self._decoder.generated = self._fed(ids) if generated is None else generated
            self._is_prompt, self._sampled = False, None
            try:
                super().eval(ids)
            finally:
                self._decoder.generated = self._decoder.looked_at = False
            self._say_notice()

    def _fed(self, ids: list[int]) -> bool | None:
        """What `eval` is given; None: for the core to see."""
        continues = not self._is_prompt and len(ids) > 0 and ids[0] == self._sampled
        if continues:
            return None if len(ids) == 1 else self.draft_model is not None
        if self._is_prompt or len(ids) != 1:
            self._single_evals = 0
            return False
        self._single_evals += 0 if self._decoder.looked_at or is_dense(self._controller.config) else 1
        if self._single_evals == SINGLE_EVALS:
            _warn(
                "tokens evaluated one by one run in full, as a prompt does, unless they were sampled here; "
                "eval(tokens, generated=True) lets them skip"
            )
        return None if self._decoder.looked_at else False

    def _say_notice(self) -> None:
        if notice := self._controller.take_notice():
            _warn(notice)

    def _check_room(self, n_tokens: int) -> None:
        n_ctx = internals.n_context(self)
        room = n_ctx - self.n_tokens
        if n_tokens > room:
            raise RuntimeError(
                f"the context is full: {n_tokens} more tokens do not fit, {room} of n_ctx={n_ctx} are free"
            )

    def _init_sampler(self, *args: Any, **kwargs: Any) -> Any:
        for name, value in kwargs.items():
            if isinstance(value, numbers.Real) and np.isnan(value):
                raise ValueError(f"{name}: nan is no number to sample with")
        sampler = super()._init_sampler(*args, **kwargs)
        n = llama_cpp.llama_sampler_chain_n(sampler.sampler)
        if not all(llama_cpp.llama_sampler_chain_get(sampler.sampler, i) for i in range(n)):
            raise ValueError("grammar: llama.cpp can't parse it")  # and left a null pointer in the chain
        return sampler

    def sample(self, *args: Any, **kwargs: Any) -> int:
        guard = kwargs.get("logits_processor")
        with self._at_work():
            self._sampled = super().sample(*args, **kwargs)
            self._decoder.looked_at = False
        if isinstance(guard, GuardedProcessors):
            guard.raise_pending()
        return self._sampled

    def reset(self) -> None:
        with self._at_work():
            self._sampled = None
            super().reset()

    def save_state(self) -> llama_cpp.LlamaState:
        """As in `llama_cpp.Llama`; what was generated and skipped is part of it."""
        with self._at_work():
            state = super().save_state()
            state.account, state.sampled = self._controller.account(), self._sampled
        return state

    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """As in `llama_cpp.Llama`. A generation that was saved goes on where it was, past its warm-up if it was."""
        with self._at_work():
            super().load_state(state)
            self._cover_context()
            self._sampled = getattr(state, "sampled", None)
            account = getattr(state, "account", None)
            if account is None:
                self._controller.replaced()
            else:
                self._controller.restore(account)
            self._decoder.looked_at = False

    def forward(self, tokens: Sequence[int], eligible: Sequence[bool] | None = None) -> npt.NDArray[np.float32]:
        """Teacher-forced logits of the skipping model: every row is as if its token had been generated.

        The context is emptied first and holds `tokens` afterwards.

        Args:
            tokens: Token ids, 1 to n_ctx of them.
            eligible: [n_tokens], whether row i may skip; rows that may not count as prompt. None: the tokens are one
                generation from its start, so that row i may skip if i >= warm_up_index (Algorithm 1).
        Returns:
            float32 [n_tokens, n_vocab]: row i predicts token i + 1. Four bytes for each: 2.5 GB for 4,096 tokens and a
            vocabulary of 152,000.
        Raises:
            ValueError: No tokens, more than the context holds, a token id out of range, or `eligible` of another
                length.
        """
        ids = _token_ids(tokens)
        self._check_forward(ids, eligible)
        if eligible is None:
            kinds = [self._controller.row_kind(i) for i in range(len(ids))]
        else:
            kinds = [RowKind.skippable if may_skip else RowKind.prompt for may_skip in eligible]
        rows = np.empty((len(ids), self.n_vocab()), np.float32)
        self._evaluate(ids, kinds, rows)
        if internals.wants_all_logits(self):
            self._all_scores[: len(ids)] = rows
        return rows

    def _evaluate(self, ids: list[int], kinds: list[RowKind], rows: npt.NDArray[np.float32] | None = None) -> None:
        """Decodes tokens into an emptied context; `rows`, [n_tokens, n_vocab], gets the logits where it is given."""
        with self._at_work():
            self.reset()
            self._generation = None
            for begin in range(0, len(ids), self.n_batch):
                chunk = ids[begin : begin + self.n_batch]
                self._controller.decode(
                    internals.context_address(self),
                    chunk,
                    begin,
                    kinds[begin : begin + len(chunk)],
                    all_logits=rows is not None,
                )
                if rows is not None:
                    rows[begin : begin + len(chunk)] = internals.logits(self, len(chunk))
            self.input_ids[: len(ids)] = ids
            self.n_tokens = len(ids)
            internals.require_eval(self, False)

    def _check_forward(self, ids: list[int], eligible: Sequence[bool] | None) -> None:
        if not 1 <= len(ids) <= internals.n_context(self):
            raise ValueError(f"tokens: {len(ids)} given; 1 to n_ctx={internals.n_context(self)} can be evaluated")
        if min(ids) < 0 or max(ids) >= self.n_vocab():
            raise ValueError(f"tokens: ids must be in [0, {self.n_vocab()}); got {min(ids)} to {max(ids)}")
        if eligible is not None and len(eligible) != len(ids):
            raise ValueError(f"eligible: {len(eligible)} entries for {len(ids)} tokens")

    # ---- text ----

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As in `llama_cpp.Llama`. Raises ValueError where the model has no vocabulary."""
        self._require_vocabulary()
        return super().tokenize(text, add_bos, special)

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """As in `llama_cpp.Llama`. Raises ValueError where the model has no vocabulary."""
        self._require_vocabulary()
        return super().detokenize(tokens, prev_tokens, special)

    def _require_vocabulary(self) -> None:
        """llama.cpp aborts the process otherwise."""
        own = isinstance(self.tokenizer_, LlamaTokenizer)  # or else one of the caller's
        if own and llama_cpp.llama_vocab_type(internals.vocab(self)) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            raise ValueError("the model has no vocabulary, so text means nothing to it; give token ids")

    # ---- generation ----

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *args: Any,
        max_tokens: int | None = None,
        tokens: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generates from a prompt.

        Args:
            prompt: Token ids, to get token ids as from `llama_cpp.Llama.generate`; or a string, to get text.
            max_tokens: Tokens to generate at most. None: a string's generation ends with the model's end token or
                with the context, that of token ids does not end by itself.
            tokens: llama_cpp's name for `prompt`.
            *args, **kwargs: Sampling options of `llama_cpp.Llama.generate`.
        Returns:
            For token ids a generator of ints, to which tokens can be sent; for a string a generator of non-empty
            pieces of text, whole characters each.
        Raises:
            ValueError: The prompt is empty or does not fit the context.
        """
        max_tokens = None if max_tokens is None else _whole("max_tokens", max_tokens)
        if max_tokens is not None and max_tokens < 0:
            raise ValueError(f"max_tokens: {max_tokens} is negative")
        options = sampling_options(args, kwargs)
        prompt = tokens if prompt is None else prompt
        if isinstance(prompt, str):
            ids = self._prompt_tokens(prompt, goes_on=not options.get("reset", True) and self.n_tokens > 0)
            self._check_prompt(ids, options)
            return self._generate_text(ids, max_tokens, options)
        ids = _token_ids(prompt)
        self._check_prompt(ids, options)
        generation = self._generate_tokens(ids, options)
        return generation if max_tokens is None else first(generation, max_tokens)

    def _prompt_tokens(self, text: str, *, goes_on: bool) -> list[int]:
        """With what the vocabulary asks to be added; one start token, and none where the text goes on."""
        with explained(quiet=not self.verbose):  # llama.cpp warns of the second start token, which is taken out here
            ids = self.tokenize(text.encode("utf-8"), add_bos=True, special=True)
        begins = internals.adds_bos(self) and ids[:1] == [self.token_bos()]
        return ids[1:] if begins and (goes_on or ids[:2] == [self.token_bos()] * 2) else ids

    def _check_prompt(self, tokens: list[int], options: dict[str, Any]) -> None:
        if not tokens and (options.get("reset", True) or internals.needs_eval(self)):
            raise ValueError("the prompt is empty: it has no tokens")
        if len(tokens) > internals.n_context(self):
            raise ValueError(f"the prompt has {len(tokens)} tokens, more than n_ctx={internals.n_context(self)}")

    def _generate_text(self, tokens: list[int], max_tokens: int | None, options: dict[str, Any]) -> Iterator[str]:
        kept = 0 if options.get("reset", True) else self.n_tokens
        room = internals.n_context(self) - kept - len(tokens) + 1  # the last token generated need not fit
        limit = room if max_tokens is None else min(max_tokens, room)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        last = tokens[-1:]
        for token in first(self._generate_tokens(tokens, options), limit):
            if llama_cpp.llama_vocab_is_eog(internals.vocab(self), token):
                break
            piece = decoder.decode(self.detokenize([token], prev_tokens=last))
            last = [token]
            if piece:
                yield piece
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest

    def _generate_tokens(self, tokens: list[int], options: dict[str, Any]) -> Generator[int, Any, None]:
        yield from exclusively(self._steps(tokens, options), self._at_work)

    def _steps(self, tokens: list[int], options: dict[str, Any]) -> Generator[int, Any, None]:
        self._check_open()
        generation = self._generation = object()
        goes_on = not options.get("reset", True) and tokens == [self._sampled]
        if not goes_on:
            self._sampled, self._is_prompt = None, True
        if options.get("reset", True):
            self._controller.count_from_here()
            if self._controller.first_to_repeat(self.n_tokens) < self.n_tokens:
                internals.require_eval(self)  # the outputs there are come from what is to be computed again
        if options.get("logits_processor") is not None:
            options = {**options, "logits_processor": GuardedProcessors(options["logits_processor"])}
        steps = super().generate(tokens, **options)
        if not self._needs_python(options):
            steps = self._generate_natively(steps)
        sent = None
        with contextlib.closing(steps):
            while True:
                if self._generation is not generation:
                    raise RuntimeError("another generation, or forward(), began on this Llama; open one for each")
                try:
                    token = steps.send(sent)
                except StopIteration:
                    return
                sent = yield token

    def _needs_python(self, options: dict[str, Any]) -> bool:
        """Whether a generation runs Python for every token, or wants the logits of every token in Python.

        A grammar does not: llama_cpp hands its text to libllama's own sampler.
        """
        return (
            internals.wants_all_logits(self)
            or self.draft_model is not None
            or options.get("logits_processor") is not None
            or options.get("stopping_criteria") is not None
            or any(getattr(type(self), name) is not getattr(Llama, name) for name in ("eval", "sample"))
            or not {"eval", "sample"}.isdisjoint(vars(self))
        )

    def _generate_natively(self, steps: Generator[int, Any, None]) -> Generator[int, Any, None]:
        """Continues `steps`, llama_cpp's generation, from its first token on, with the same sampler chain."""
        token = next(steps)
        steps.close()
        sampler = internals.sampler(self)
        sampler_address = ctypes.cast(sampler.sampler, ctypes.c_void_p).value or 0
        while True:
            sent = yield token
            if sent is not None or self._sampled != token:  # the caller added tokens, or used this object meanwhile
                internals.set_sampler(self, sampler)
                self.eval([token, *(sent or ())])
                token = self.sample()
                continue
            self._check_room(1)
            position = self.n_tokens
            following = self._controller.step(internals.context_address(self), sampler_address, token, position)
            self.input_ids[position] = token
            self.n_tokens = position + 1
            internals.require_eval(self, False)
            self._sampled = token = following
            if position % NOTICE_EVERY == 0:
                self._say_notice()

    # ---- lifetime ----

    def __getstate__(self) -> dict[str, Any]:
        skip = self._skip_argument.path if isinstance(self._skip_argument, Profile) else self._skip_argument
        return {**super().__getstate__(), "skip": skip, "reuse": self._reuse}

    def __repr__(self) -> str:
        if self._closed:
            return f"Llama({self.model_path!r}, closed)"
        config = self._controller.config
        skips = (
            "nothing is skipped" if is_dense(config) else f"{config.policy}, {self.stats.skip_ratio:.1%} skipped so far"
        )
        return f"Llama({self.model_path!r}, {self.n_layer} layers, {skips})"

    def close(self) -> None:
        """Frees the model. Using it afterwards raises RuntimeError."""
        super().close()
        self._closed = True
        internals.mark_closed(self, _Closed())

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Decoder:
    """Stands in for `LlamaContext.decode`. Knows no Llama, so that no reference cycle keeps a model alive."""

    def __init__(self, controller: Controller):
        self.generated: bool | None = False  # the rows of the next batch; None: for the controller to see
        self.looked_at = False  # the outputs of the last one
        self.n_rows = 0  # of the last one
        self.context_address = 0
        self._controller = controller

    def look(self) -> None:
        self.looked_at = True

    def __call__(self, batch: Any) -> None:
        self.n_rows = internals.n_rows(batch)
        self._controller.decode_batch(self.context_address, internals.batch_address(batch), self.generated)


class _Closed:
    """Stands in for what `Llama.close()` freed."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("the model is closed")


def _token_ids(tokens: Sequence[int]) -> list[int]:
    if isinstance(tokens, (str, bytes, bytearray)):
        raise TypeError(f"tokens: {tokens[:20]!r} is text; llm.tokenize(text) gives its token ids")
    return [_whole("tokens", token) for token in tokens]


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name}: {value!r} is no whole number") from error


def _warn(message: str) -> None:
    """Points at the line of the user's, however many calls of this package and of llama_cpp lead here from it."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("ffnskip_cpp", "llama_cpp"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _values(config: SkipConfig, resolved: ResolvedConfig) -> str:
    if config.layers is not None and config.max_skip == 0:
        return f"layers {list(config.layers)} (warm_up_index={config.warm_up_index})"
    return (
        f"{resolved['policy']} (sim_threshold={resolved['sim_threshold']:g}, layers [{resolved['cold_s']}, "
        f"{resolved['cold_e']}), max_skip={resolved['max_skip']}, warm_up_index={resolved['warm_up_index']})"
    )
