"""`llama_cpp.Llama` with feed-forward skipping.

The base class does everything but decode: the context it makes carries the callback of a `_core.Controller`, and each
batch is decoded through that controller, which is told which rows are generated tokens. Generation that needs no
Python per token leaves llama_cpp's loop after the first token for a native one.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import inspect
import logging
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import LlamaTokenizer, LogitsProcessorList

from . import _core
from ._core import Controller, FfnBlock, Profile, SkipConfig, SkipStats, Unsupported
from .header_check import check_header
from .load_error import explained
from .profile import read_profile, write_profile

__all__ = ["Llama", "Trace"]

logger = logging.getLogger("ffnskip_cpp")

Skip = Union[SkipConfig, float, str, "os.PathLike[str]", None]
_Wanted = Union[SkipConfig, Profile, Literal["auto"]]
DENSE = SkipConfig(policy="dense")
SKIPPABLE_ROW = 2  # ffnskip::RowKind

_SELF, _TOKENS, *_OPTIONS = inspect.signature(llama_cpp.Llama.generate).parameters.values()
GENERATE_OPTIONS = inspect.Signature(_OPTIONS)


@dataclass
class Trace:
    """What happened to each generated token, in the order decoded; filled when the `Llama.trace()` block ends."""

    similarity: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """float32 [n_tokens, n_layer]: cosine of the residual before and after the FFN block; NaN where unchecked."""
    skipped: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty((0, 0), np.bool_))
    """bool [n_tokens, n_layer]: the FFN block was skipped."""


class Llama(llama_cpp.Llama):
    """A `llama_cpp.Llama` that skips feed-forward blocks while it generates. All its arguments and methods work.

    Args:
        model_path: Path of a GGUF file.
        skip: What to skip: a `SkipConfig`; a float, the target share of FFN blocks to skip (Algorithm 1 with the
            paper's other values); the path of a skip profile; "auto", the profile beside or in the model, or else the
            paper's values; None, nothing (plain llama.cpp).
        **kwargs: As for `llama_cpp.Llama`.

    Raises:
        ValueError: The model can't be loaded, a profile is damaged or another model's, or `skip` does not fit the model
            (`Unsupported`, a ValueError, where the architecture has no FFN block that can be skipped; with "auto" such
            a model runs dense).
        FileNotFoundError: There is no such profile.
    """

    def __init__(self, model_path: str, *, skip: Skip = "auto", **kwargs: Any):
        self._stack = contextlib.ExitStack()  # the base class closes it, however early construction fails
        wanted = _as_wanted(skip)
        self._skip_argument = skip
        self._controller = Controller()
        self._attachable = not kwargs.get("embedding", False)
        self._sampled: int | None = None  # the last token sampled, until it is fed back
        self._generation_start = 0  # position of generated token 0
        self._n_full = 0  # of the tokens in the context, the first that ran in full
        self._dense = True
        self._tracing = False
        self._why_dense: str | None = None
        if os.path.exists(model_path):  # or the base class says that it does not
            check_header(model_path)
        with explained(quiet=not kwargs.get("verbose", True)):
            super().__init__(os.fspath(model_path), **kwargs)
            if self.lora_path and not self._lora_adapter:  # a null pointer, which llama_cpp takes for an adapter
                self.close()
                raise RuntimeError(f"Failed to initialize LoRA adapter from lora path: {self.lora_path}")
        self._decoder = _Decoder(self._controller, self._ctx)
        self._ctx.decode = self._decoder
        self._cover_context()
        self._set_up_skipping(wanted)

    def _cover_context(self) -> None:
        """llama.cpp rounds n_ctx up, and a draft model wants logits: the base class's arrays may be too short."""
        self.input_ids = np.pad(self.input_ids, (0, max(0, self._n_ctx - len(self.input_ids))))
        if self._logits_all and len(self.scores) < self._n_ctx:
            self.scores = np.zeros((self._n_ctx, self._n_vocab), np.single)

    def _set_up_skipping(self, wanted: _Wanted) -> None:
        try:
            if self._attachable:
                self._controller.probe(self._ctx.ctx)
            self._apply(wanted)
        except Unsupported as error:
            if not (wanted == "auto" or _is_dense(wanted)):
                self.close()
                raise
            self._why_dense = str(error)
            self._apply(DENSE)
            if wanted == "auto":
                self._log(f"skip='auto': nothing is skipped: {error}")
        except ValueError:
            self.close()
            raise

    def _apply(self, wanted: _Wanted) -> None:
        if not self._attachable and not _is_dense(wanted):
            raise Unsupported("an embedding context does not generate; its FFN blocks always run")
        if isinstance(wanted, Profile):
            self._controller.set_profile(wanted)
        elif wanted == "auto":
            self._apply_automatically()
        else:
            self._controller.config = wanted
        self._dense = _is_dense(self._controller.config)

    def _apply_automatically(self) -> None:
        profile = _core.find_profile(ctypes.cast(self._model.model, ctypes.c_void_p).value or 0, self.model_path)
        if profile is not None:
            self._controller.set_profile(profile)
            self._log(f"skip='auto': as {profile.path} says")
            return
        try:
            self._controller.config = SkipConfig()
        except ValueError as error:  # too few layers for the paper's cold regions
            raise Unsupported(str(error)) from error
        resolved = self._controller.resolved
        self._log(
            f"skip='auto': uncalibrated values from the paper (sim_threshold={resolved['sim_threshold']:g}, layers "
            f"[{resolved['cold_s']}, {resolved['cold_e']}), max_skip={resolved['max_skip']}, "
            f"warm_up_index={resolved['warm_up_index']}); `ffnskip calibrate` finds this model's own"
        )

    def _log(self, message: str) -> None:
        logger.log(logging.WARNING if self.verbose else logging.INFO, message)

    # The base class assigns context_params early in its constructor, well before it makes the context.
    @property
    def context_params(self) -> Any:
        return self._context_params

    @context_params.setter
    def context_params(self, params: Any) -> None:
        self._context_params = params
        if self._attachable:
            params.cb_eval = ctypes.cast(self._controller.callback, llama_cpp.ggml_backend_sched_eval_callback)
            params.cb_eval_user_data = self._controller.user_data

    # ---- skipping ----

    @property
    def skip(self) -> SkipConfig | None:
        """What is skipped; None if nothing. Settable between calls to whatever the constructor takes.

        Raises:
            ValueError: On assignment, where the value does not fit the model; what was set before stays.
        """
        config = self._controller.config
        return None if _is_dense(config) else config

    @skip.setter
    def skip(self, value: Skip) -> None:
        self._apply(_as_wanted(value))
        self._skip_argument = value

    @property
    def ffn_map(self) -> list[FfnBlock]:
        """The FFN block of each layer that has one, as found in the model's graph: kind, residual form, weights, bytes,
        and why a block can't be skipped where that is so."""
        return self._controller.ffn_map

    @property
    def why_dense(self) -> str | None:
        """Why this model or context can't skip; None if it can."""
        return self._why_dense

    @contextlib.contextmanager
    def dense(self) -> Iterator[None]:
        """Within the block nothing is skipped."""
        config = self._controller.config
        self._apply(DENSE)
        try:
            yield
        finally:
            self._apply(config)

    @property
    def stats(self) -> SkipStats:
        """Counts over the tokens generated since construction or `reset_stats()`."""
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
        write_profile(path, self._controller.fingerprint, self._controller.config, self._controller.resolved)

    # ---- decoding ----

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluates tokens after those in the context.

        One token, the one sampled last, continues a generation and may skip; anything else is a prompt or a batch to
        verify, and runs in full.

        Raises:
            RuntimeError: The tokens do not fit the context, or llama.cpp refused the batch.
        """
        first = self.n_tokens
        self._check_room(len(tokens))
        continues = len(tokens) > 0 and tokens[0] == self._sampled
        may_skip = continues and len(tokens) == 1
        if not continues:
            self._generation_start = first + len(tokens)
        if may_skip:
            self._decoder.kinds = [self._controller.row_kind(first - self._generation_start)]
        self._sampled = None
        try:
            super().eval(tokens)
        finally:
            self._decoder.kinds = None
            self._keep_account(first, self.n_tokens - first, may_skip)

    def _check_room(self, n_tokens: int) -> None:
        room = self._n_ctx - self.n_tokens
        if n_tokens > room:
            raise RuntimeError(
                f"the context is full: {n_tokens} more tokens do not fit, {room} of n_ctx={self._n_ctx} are free"
            )

    def _keep_account(self, first: int, n: int, may_skip: bool) -> None:
        """Positions [first, first + n) were decoded."""
        if may_skip and not self._dense:
            self._n_full = min(self._n_full, first)
        elif first <= self._n_full:
            self._n_full = first + n

    def _init_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._init_sampler(*args, **kwargs)
        n = llama_cpp.llama_sampler_chain_n(sampler.sampler)
        if not all(llama_cpp.llama_sampler_chain_get(sampler.sampler, i) for i in range(n)):
            raise ValueError("grammar: llama.cpp can't parse it")  # and left a null pointer in the chain
        return sampler

    def sample(self, *args: Any, **kwargs: Any) -> int:
        guard = kwargs.get("logits_processor")
        self._sampled = super().sample(*args, **kwargs)
        if isinstance(guard, _GuardedProcessors):
            guard.raise_pending()
        return self._sampled

    def reset(self) -> None:
        self._sampled = None
        super().reset()

    def save_state(self) -> llama_cpp.LlamaState:
        state = super().save_state()
        state.n_full = self._n_full
        return state

    def load_state(self, state: llama_cpp.LlamaState) -> None:
        super().load_state(state)
        self._cover_context()
        self._sampled = None
        self._n_full = getattr(state, "n_full", state.n_tokens)

    def forward(self, tokens: Sequence[int], eligible: Sequence[bool] | None = None) -> npt.NDArray[np.float32]:
        """Teacher-forced logits of the skipping model: every row is as if its token had been generated.

        The context is emptied first and holds `tokens` afterwards.

        Args:
            tokens: Token ids, 1 to n_ctx of them.
            eligible: [n_tokens], whether row i may skip; rows that may not count as prompt. None: the tokens are one
                generation from its start, so that row i may skip if i >= warm_up_index (Algorithm 1).
        Returns:
            float32 [n_tokens, n_vocab]: row i predicts token i + 1.
        Raises:
            ValueError: No tokens, more than the context holds, a token id out of range, or `eligible` of another
                length.
        """
        ids = [int(token) for token in tokens]
        self._check_forward(ids, eligible)
        if eligible is None:
            kinds = [self._controller.row_kind(i) for i in range(len(ids))]
        else:
            kinds = [SKIPPABLE_ROW if may_skip else 0 for may_skip in eligible]
        logits = np.empty((len(ids), self._n_vocab), np.float32)
        self._evaluate(ids, kinds, logits)
        if self._logits_all:
            self.scores[: len(ids)] = logits
        return logits

    def _evaluate(self, ids: list[int], kinds: list[int], logits: npt.NDArray[np.float32] | None = None) -> None:
        """Decodes tokens into an emptied context; `logits`, [n_tokens, n_vocab], is filled where it is given."""
        self.reset()
        for first in range(0, len(ids), self.n_batch):
            chunk = ids[first : first + self.n_batch]
            self._controller.decode(
                self._ctx.ctx, chunk, first, kinds[first : first + len(chunk)], all_logits=logits is not None
            )
            if logits is not None:
                rows = np.ctypeslib.as_array(self._ctx.get_logits(), shape=(len(chunk), self._n_vocab))
                logits[first : first + len(chunk)] = rows
        self.input_ids[: len(ids)] = ids
        self.n_tokens = self._generation_start = len(ids)
        self._n_full = len(ids) if self._dense or SKIPPABLE_ROW not in kinds else kinds.index(SKIPPABLE_ROW)
        self._requires_eval = False

    def _check_forward(self, ids: list[int], eligible: Sequence[bool] | None) -> None:
        if not 1 <= len(ids) <= self._n_ctx:
            raise ValueError(f"tokens: {len(ids)} given; 1 to n_ctx={self._n_ctx} can be evaluated")
        if min(ids) < 0 or max(ids) >= self._n_vocab:
            raise ValueError(f"tokens: ids must be in [0, {self._n_vocab}); got {min(ids)} to {max(ids)}")
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
        if own and llama_cpp.llama_vocab_type(self._model.vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
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
        if max_tokens is not None and max_tokens < 0:
            raise ValueError(f"max_tokens: {max_tokens} is negative")
        options = GENERATE_OPTIONS.bind(*args, **kwargs).arguments
        prompt = tokens if prompt is None else prompt
        if isinstance(prompt, str):
            ids = self.tokenize(prompt.encode("utf-8"), add_bos=True, special=True)
            self._check_prompt(ids, options)
            return self._generate_text(ids, max_tokens, options)
        ids = [int(token) for token in prompt]
        self._check_prompt(ids, options)
        generation = self._generate_tokens(ids, options)
        return generation if max_tokens is None else _first(generation, max_tokens)

    def _check_prompt(self, tokens: list[int], options: dict[str, Any]) -> None:
        if not tokens and (options.get("reset", True) or self._requires_eval):
            raise ValueError("the prompt is empty: it has no tokens")
        if len(tokens) > self._n_ctx:
            raise ValueError(f"the prompt has {len(tokens)} tokens, more than n_ctx={self._n_ctx}")

    def _generate_text(self, tokens: list[int], max_tokens: int | None, options: dict[str, Any]) -> Iterator[str]:
        kept = 0 if options.get("reset", True) else self.n_tokens
        room = self._n_ctx - kept - len(tokens) + 1  # the last token generated need not fit
        limit = room if max_tokens is None else min(max_tokens, room)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        last = tokens[-1:]
        for token in _first(self._generate_tokens(tokens, options), limit):
            if llama_cpp.llama_vocab_is_eog(self._model.vocab, token):
                break
            piece = decoder.decode(self.detokenize([token], prev_tokens=last))
            last = [token]
            if piece:
                yield piece
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest

    def _generate_tokens(self, tokens: list[int], options: dict[str, Any]) -> Generator[int, Any, None]:
        self._sampled = None
        if options.get("reset", True) and self.n_tokens > self._n_full:
            # llama_cpp reuses what is in the context as far as the prompt agrees with it: no token that skipped.
            self.n_tokens = self._n_full
            self._requires_eval = True
        if options.get("logits_processor") is not None:
            options = {**options, "logits_processor": _GuardedProcessors(options["logits_processor"])}
        steps = super().generate(tokens, **options)
        if self._needs_python(options):
            yield from steps
        else:
            yield from self._generate_natively(steps)

    def _needs_python(self, options: dict[str, Any]) -> bool:
        """Whether a generation runs Python for every token, or wants the logits of every token in Python.

        A grammar does not: llama_cpp hands its text to libllama's own sampler.
        """
        return (
            self._logits_all
            or self.draft_model is not None
            or options.get("logits_processor") is not None
            or options.get("stopping_criteria") is not None
            or type(self).eval is not Llama.eval
            or type(self).sample is not Llama.sample
        )

    def _generate_natively(self, steps: Generator[int, Any, None]) -> Generator[int, Any, None]:
        """Continues `steps`, llama_cpp's generation, from its first token on, with the same sampler chain."""
        token = next(steps)
        steps.close()
        sampler = self._sampler
        sampler_address = ctypes.cast(sampler.sampler, ctypes.c_void_p).value or 0
        while True:
            sent = yield token
            if sent is not None or self._sampled != token:  # the caller added tokens, or used this object meanwhile
                self._sampler = sampler
                self.eval([token, *(sent or ())])
                token = self.sample()
                continue
            self._check_room(1)
            position = self.n_tokens
            index = position - self._generation_start
            following = self._controller.step(self._ctx.ctx, sampler_address, token, position, index)
            self.input_ids[position] = token
            self.n_tokens = position + 1
            self._keep_account(position, 1, may_skip=True)
            self._requires_eval = False
            self._sampled = token = following

    # ---- lifetime ----

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "skip": self._skip_argument}

    def close(self) -> None:
        """Frees the model. Using it afterwards raises RuntimeError."""
        super().close()
        self._ctx = self._model = self.tokenizer_ = _Closed()

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Decoder:
    """Stands in for `LlamaContext.decode`. Knows no Llama, so that no reference cycle keeps a model alive."""

    def __init__(self, controller: Controller, context: Any):
        self.kinds: list[int] | None = None  # of the rows of the next batch; None: all prompt
        self._controller = controller
        self._context_address = context.ctx

    def __call__(self, batch: Any) -> None:
        self._controller.decode_batch(self._context_address, ctypes.addressof(batch.batch), self.kinds)


class _Closed:
    """Stands in for what `Llama.close()` freed."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("the model is closed")


class _GuardedProcessors(LogitsProcessorList):
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


def _first(generation: Generator[int, Any, None], n: int) -> Generator[int, Any, None]:
    """The first n tokens; the n-th is not fed back to the model."""
    sent = None
    try:
        for _ in range(n):
            sent = yield generation.send(sent)
    except StopIteration:
        pass
    finally:
        generation.close()


def _is_dense(wanted: _Wanted) -> bool:
    return isinstance(wanted, SkipConfig) and wanted.policy == "dense"


def _as_wanted(skip: Skip) -> _Wanted:
    if skip is None:
        return DENSE
    if isinstance(skip, SkipConfig):
        return skip
    if skip == "auto":
        return "auto"
    if isinstance(skip, os.PathLike) or (isinstance(skip, str) and skip.endswith(".gguf")):
        return read_profile(skip)
    if isinstance(skip, (int, float)) and not isinstance(skip, bool):
        return SkipConfig(skip_ratio=float(skip))
    raise ValueError(
        f"skip: {skip!r} is not known; give a SkipConfig, a ratio in [0, 1], the path of a profile (.gguf), 'auto' or "
        "None"
    )
