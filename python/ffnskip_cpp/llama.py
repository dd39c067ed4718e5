"""`llama_cpp.Llama` with feed-forward skipping.

llama_cpp does everything but decode: each batch goes through the core, which keeps account of what is in the context.
Where nothing is to be skipped the context has no callback, and is llama.cpp's own in everything. What is skipped is
decided in skipping.py, decoded in decoding.py, and what is known of it is in observed.py; texts are generated in
generation.py, several at once in batches.py, and scored in scoring.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from . import batches, scoring
from . import llama_cpp_internals as internals
from ._core import Controller, Profile
from .checked import token_ids, whole
from .context import SEQUENCES, Context
from .decoding import Decoder
from .drafts import SkippingDraft, dense_where_drafts_skip
from .generation import check_prompt, exclusively, first, prompt_tokens, sampling_options, text, token_steps
from .observed import ObservedLlama
from .skip_argument import Skip, check_keywords, is_dense
from .skip_config import SkipConfig
from .skipping import Skipping

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .arguments import BatchSamplingOptions, LlamaArguments, SamplingOptions

__all__ = ["Llama"]


class Llama(ObservedLlama):
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
        **kwargs: As for `llama_cpp.Llama`. With a `SkippingDraft` as `draft_model` the model itself skips nothing.

    Raises:
        TypeError: A keyword that is meant for `skip`; with the right spelling.
        ValueError: The model can't be loaded, a profile is damaged or another model's (`ProfileMismatchError`), or
            `skip` does not fit the model (`UnsupportedModelError` where the architecture has no FFN block that can be
            skipped; with "auto" such a model runs dense).
        FileNotFoundError: There is no such profile.
    """

    _draft: SkippingDraft | None = None  # with a context of this model

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        skip: Skip = "auto",
        reuse: Literal["all", "full"] = "all",
        **kwargs: Unpack[LlamaArguments],
    ):
        if reuse not in ("all", "full"):
            raise ValueError(f"reuse: {reuse!r} is not known; 'all' or 'full'")
        check_keywords(kwargs)
        skip = dense_where_drafts_skip(skip, kwargs.get("draft_model"))
        self._reuse = reuse
        self._controller = Controller()
        self._controller.set_reuse(reuse == "full")
        decoder = Decoder(self._controller)
        self._context = Context(decoder, generates=not kwargs.get("embedding", False))
        self._skipping = Skipping(skip, self._controller, self._context)
        super().__init__(model_path, decoder, **kwargs)
        try:
            self._skipping.begin(self)
            if isinstance(self.draft_model, SkippingDraft):
                self.draft_model.attach(self)
                self._draft = self.draft_model
        except ValueError:
            self.close()
            raise

    def close(self) -> None:
        """Frees the model. Using it afterwards raises RuntimeError."""
        super().close()
        if self._draft is not None:
            self._draft.release()
            self._draft = None
        if "_controller" in vars(self):  # or its arguments were refused before it had one
            self._controller.release_weights()

    if TYPE_CHECKING:  # llama_cpp's own makes one of this class, and says that it is one of llama_cpp's

        @classmethod
        def from_pretrained(  # type: ignore[override]
            cls,
            repo_id: str,
            filename: str | None,
            additional_files: list[str] | None = None,
            local_dir: str | os.PathLike[str] | None = None,
            local_dir_use_symlinks: bool | Literal["auto"] = "auto",
            cache_dir: str | os.PathLike[str] | None = None,
            *,
            skip: Skip = "auto",
            reuse: Literal["all", "full"] = "all",
            **kwargs: Unpack[LlamaArguments],
        ) -> Self: ...

    # The base class assigns context_params early in its constructor, and reads it to make the context when the model is
    # there: the moment to decide whether the context is to have a callback.
    @property
    def context_params(self) -> Any:
        if internals.makes_context(self):
            self._skipping.prepare(self)
        return self._context.params

    @context_params.setter
    def context_params(self, params: Any) -> None:
        self._context.params = params

    # ---- what is skipped ----

    @property
    def skip(self) -> SkipConfig | None:
        """What is skipped; None if nothing. Settable between calls to whatever the constructor takes. Within `dense()`
        or `skipping()` it takes effect when the block ends.

        Raises:
            ValueError: On assignment, where the value does not fit the model; what was set before stays.
            RuntimeError: The model is closed.
        """
        config = self._controller.config
        return None if is_dense(config) else config

    @skip.setter
    def skip(self, value: Skip) -> None:
        self._check_open()
        value = dense_where_drafts_skip(value, self.draft_model)
        with self._at_work():
            self._skipping.set(self, value)

    def dense(self) -> contextlib.AbstractContextManager[None]:
        """Within the block nothing is skipped. A text that skipping tokens wrote is evaluated again if it is part of a
        prompt there."""
        return contextlib.nullcontext() if self._closed else self.skipping(None)

    @contextlib.contextmanager
    def skipping(self, config: Skip) -> Iterator[None]:
        """Within the block the model skips as `config` says. Raises ValueError where that does not fit the model."""
        self._check_open()
        config = dense_where_drafts_skip(config, self.draft_model)
        with contextlib.ExitStack() as block:
            with self._at_work():
                block.enter_context(self._skipping.instead(self, config))
            try:
                yield
            finally:
                with self._lock:  # once another thread's step is over
                    block.close()

    def _mix_rows(self, *, sequences: bool = False) -> None:
        if self._context.mix_rows(self, sequences=sequences):
            self._skipping.restore(self)

    def _share(self, n_sequences: int) -> None:
        """The context is made for several sequences, whose rows may skip each for itself."""
        self._mix_rows(sequences=True)
        if self._context.share(self, n_sequences):
            self._skipping.restore(self)

    # ---- texts that are there already ----

    def forward(
        self,
        tokens: Sequence[int],
        eligible: scoring.Eligible = None,
        *,
        rows: scoring.Rows = None,
        keep: int = 0,
    ) -> npt.NDArray[np.float32]:
        """Teacher-forced logits of the skipping model: every row is as if its token had been generated.

        The context holds `tokens` afterwards.

        Args:
            tokens: Token ids, 1 to n_ctx of them.
            eligible: [n_tokens], whether row i may skip; rows that may not count as prompt. Or what each row is, a
                `RowKind`. None: the tokens are one generation from its start, so that row i may skip if
                i >= warm_up_index (Algorithm 1).
            rows: Those whose logits are returned, a slice or indices; an empty one saves their computation. None: all
                that are evaluated. Four bytes a logit: 2.5 GB for 4,096 tokens and a vocabulary of 152,000.
            keep: The first so many tokens are in the context already, and are not evaluated again, whatever settings
                they were evaluated under. (They are where the memory can't go back to them, as a recurrent one.)
        Returns:
            float32 [n_rows, n_vocab]: row i predicts token i + 1.
        Raises:
            ValueError: No tokens, more than the context holds, a token id out of range, `eligible` of another length,
                `rows` that are not there or kept, or a context that holds other tokens than those to keep.
        """
        with self._at_work():
            self._check_open()
            self._mix_rows()
            return scoring.forward(self, self._decoder, tokens, eligible, rows, keep)

    def score(
        self, prefix: scoring.Text, continuations: Sequence[scoring.Text], *, skip_prompts: int | None = None
    ) -> scoring.Score:
        """How likely the model is to go on with each of several texts. The context is empty afterwards.

        A continuation counts as generated from its first token on: token i may skip if i >= warm_up_index. The prefix
        is evaluated once, and of one that begins as that of the call before what follows that; continuations share
        batches. Where the memory forgets (recurrent models, swa_full=False) they come one by one. The first call makes
        the context anew, for several sequences in the memory of one.

        Args:
            prefix: Text or token ids, one at least.
            continuations: Text or token ids of each; with the prefix they fit the context. Texts are tokenised as
                evaluation harnesses do: together with the prefix, whose spaces at its end count to the continuation;
                where no token ends between the two, or the prefix is token ids, alone.
            skip_prompts: Tokens of the prefix from this one on count as generated, too, and continuations go on from
                there: 0 to the number of tokens. None: all of the prefix is a prompt, and runs in full.
        Raises:
            ValueError: The prefix has no tokens, or fewer than `skip_prompts`, a token id is out of range, or a
                continuation does not fit the context behind the prefix. The context is as it was then.
        """
        with self._at_work():
            self._check_open()
            ids, following = scoring.divided(self, prefix, continuations)
            n_prompt = scoring.prompt_length(len(ids), skip_prompts)
            self._share(SEQUENCES)
            return scoring.score(self, self._decoder, ids, following, n_prompt)

    # ---- generation ----

    @overload  # type: ignore[override]
    def generate(
        self, prompt: str, *args: Any, max_tokens: int | None = None, **kwargs: Unpack[SamplingOptions]
    ) -> Iterator[str]: ...
    @overload
    def generate(
        self,
        prompt: Sequence[int] | None = None,
        *args: Any,
        max_tokens: int | None = None,
        tokens: Sequence[int] | None = None,
        **kwargs: Unpack[SamplingOptions],
    ) -> Generator[int, Sequence[int] | None, None]: ...
    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *args: Any,
        max_tokens: int | None = None,
        tokens: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Iterator[str] | Generator[int, Sequence[int] | None, None]:
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
        max_tokens = None if max_tokens is None else whole("max_tokens", max_tokens)
        if max_tokens is not None and max_tokens < 0:
            raise ValueError(f"max_tokens: {max_tokens} is negative")
        options = sampling_options(args, kwargs)
        kept = 0 if options.get("reset", True) else self.n_tokens
        prompt = tokens if prompt is None else prompt
        if isinstance(prompt, str):
            ids = prompt_tokens(self, prompt, goes_on=kept > 0)
        else:
            ids = token_ids(() if prompt is None else prompt)
        check_prompt(self, ids, options)
        steps = token_steps(self, self._decoder, ids, options)
        steps = exclusively(steps, self._at_work)
        if isinstance(prompt, str):
            room = internals.n_context(self) - kept - len(ids) + 1  # the last token generated need not fit
            return text(self, first(steps, room if max_tokens is None else min(max_tokens, room)), ids[-1:])
        return steps if max_tokens is None else first(steps, max_tokens)

    def generate_batch(
        self,
        prompts: Sequence[scoring.Text],
        *,
        max_tokens: int | None = 128,
        stop: Sequence[str] = (),
        skip_prompts: int | None = None,
        n_parallel: int = 8,
        seed: int | None = None,
        **sampling: Unpack[BatchSamplingOptions],
    ) -> Iterator[batches.Completion]:
        """Generates from several prompts at once, which share batches; each is continued as it would be alone.

        A prompt begins when the cells that it may come to need, with `max_tokens` for its text, are free: a context of
        `n_ctx` cells is shared by those that run. What all prompts begin with is evaluated once. Where the memory
        forgets (recurrent models, swa_full=False) they come one by one. The first call makes the context anew, for
        several sequences in the memory of one; it is empty afterwards.

        Args:
            prompts: Text or token ids of each, 1 to n_ctx tokens.
            max_tokens: Tokens to generate for each at most, 0 or more. None: to the end of the context.
            stop: Strings that end a text, and are no part of it.
            skip_prompts: Tokens of each prompt from this one on count as generated, too; shorter prompts run in full,
                as all do if None.
            n_parallel: Texts at once, 1 to 255; not more than n_batch and n_ubatch take rows.
            seed: Of each text, 0 to 2**32 - 1. None: that of the `Llama`.
            **sampling: Options of `generate()`, but for `reset` and those that call Python for every token.
        Returns:
            In the order of the prompts, each when it and those before it are complete. It may be left at any time.
        Raises:
            ValueError: A prompt is empty, too long, or has a token id out of range: the message has its number. Nothing
                has been evaluated then. Or another argument is out of range.
            RuntimeError: From the iterator: this `Llama` was used for something else since.
        """
        with self._at_work():
            self._check_open()
            self._require_vocabulary()
            wanted = batches.Wanted(max_tokens, stop, skip_prompts, n_parallel, seed, dict(sampling))
            ids = batches.prompts_of(self, prompts)
        return exclusively(batches.completions(self, self._decoder, ids, wanted, self._share), self._at_work)

    # ---- lifetime ----

    def __getstate__(self) -> dict[str, Any]:
        given = self._skipping.given
        return {
            **super().__getstate__(),
            "skip": given.path if isinstance(given, Profile) else given,
            "reuse": self._reuse,
        }

    def __repr__(self) -> str:
        if self._closed:
            return f"Llama({self.model_path!r}, closed)"
        config = self._controller.config
        skips = (
            "nothing is skipped" if is_dense(config) else f"{config.policy}, {self.stats.skip_ratio:.1%} skipped so far"
        )
        return f"Llama({self.model_path!r}, {self.n_layer} layers, {skips})"
