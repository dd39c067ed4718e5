"""The harness's model class `ffnskip`: requests of its tasks, answered by a `Llama`."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import llama_cpp
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry, register_model

from .. import __version__
from .. import llama_cpp_internals as internals
from ..batches import Completion
from ..errors import ArgumentError, FfnSkipError
from ..llama import Llama
from ..progress import progress_bar
from ..skip_argument import Skip
from ..threads import check_threads
from .arguments import AUTO, Generation, divided, generation_of, n_gpu_layers_of, n_parallel_of, sizes_of, skip_of
from .chats import Chats, Messages
from .stops import stopped
from .tally import Tally

__all__ = ["FfnSkipLM"]

_logger = logging.getLogger("lm_eval.ffnskip")  # the harness shows its own loggers alone


class _Answer(NamedTuple):
    log_likelihood: float
    is_greedy: bool
    n_tokens: int
    n_may_skip: int


class FfnSkipLM(TemplateLM):  # type: ignore[misc]
    """Tokens, contexts and chats are what the class `hf` makes of them.

    Args:
        pretrained: Path of a GGUF file.
        profile: Path of a skip profile.
        skip: A ratio, a policy, "auto" or None, as for `Llama`.
        skip_prompts: Tokens of each context from this one on count as generated; None: contexts run in full.
        max_length: Tokens of a context and what goes on from it. Default: `n_ctx`, or what the model was trained on,
            4096 at most.
        n_ctx: Tokens of all texts that are in the context at once. Default: `max_length`.
        threads: Default: all processors.
        n_gpu_layers: Layers on the GPU; -1, the default: all.
        batch_size: Texts that are generated at once; "auto": `max_batch_size`, or 8.
        device: "cpu": no layer on the GPU. The harness's default is "cuda:0", whatever there is.
        add_bos_token: Whether texts begin with the start token. Default: as the vocabulary says.
        prefix_token_id: What an empty context is. Default: the start token, or else the end token.
        trust_remote_code: The harness's, for data sets.
        **more: Fields of `SkipConfig`, and arguments of `llama_cpp.Llama`.
    Raises:
        ArgumentError: An argument is not known, or wrong whatever the model.
        FileNotFoundError: There is no such model, or profile.
        FfnSkipError: The model can't be loaded, or can't skip so.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        profile: str | None = None,
        skip: Skip = AUTO,
        skip_prompts: int | None = None,
        max_length: int | None = None,
        n_ctx: int | None = None,
        threads: int | None = None,
        n_gpu_layers: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str = "cuda",
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        trust_remote_code: bool | None = None,
        **more: Any,
    ):
        super().__init__()
        fields, llamas = divided(more, list(inspect.signature(type(self)).parameters))
        check_threads(threads)
        if skip_prompts is not None and skip_prompts < 0:
            raise ArgumentError(f"skip_prompts: {skip_prompts} is no number of tokens; 0 or more")
        wanted = skip_of(skip, profile, fields)
        self.batch_size = n_parallel_of(batch_size, max_batch_size)
        options = {
            "n_gpu_layers": n_gpu_layers_of(device, n_gpu_layers),
            "n_threads": threads or os.cpu_count(),
            "n_threads_batch": threads or os.cpu_count(),
            "verbose": False,
            **llamas,
        }
        if not os.path.isfile(pretrained):
            raise FileNotFoundError(f"pretrained: {pretrained}: no such file")
        self.max_length, n_ctx = sizes_of(pretrained, max_length, n_ctx)
        self.llm = _loaded(pretrained, wanted, n_ctx=n_ctx, **options)
        self._skip_prompts = skip_prompts
        self._add_bos_token = add_bos_token
        if add_bos_token and self.llm.token_bos() < 0:
            raise ArgumentError(f"add_bos_token: the vocabulary of {pretrained} has no start token")
        self._prefix_token_id = prefix_token_id
        self._tally = Tally()
        self._chats = Chats(self.llm, _logger)
        _logger.info("%s: %s", pretrained, self.llm.skip or "nothing is skipped")

    # ---- tokens ----

    @property
    def eot_token_id(self) -> int:
        return self.llm.token_eos()

    @property
    def prefix_token_id(self) -> int:
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        start = self.llm.token_bos()
        return start if start >= 0 else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """
        Args:
            add_special_tokens: None: what a text begins with by default, unless it does already.
        """
        adds = add_special_tokens
        if adds is None:
            adds = False if self._begins(string) else self._add_bos_token
        ids: list[int] = self.llm.tokenize(string.encode("utf-8"), add_bos=adds is not False, special=True)
        missing = adds and ids[:1] != [self.llm.token_bos()]
        return [self.llm.token_bos(), *ids] if missing else ids

    def _begins(self, text: str) -> bool:
        """Whether the text of the start token is there, as chat templates write it."""
        start = self._text_of(self.prefix_token_id)
        return start != "" and text.startswith(start)

    def _text_of(self, token: int) -> str:
        return self.llm.detokenize([token], special=True).decode("utf-8", "replace") if token >= 0 else ""

    # ---- likelihoods ----

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        answers: list[_Answer] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        for request, answer in zip(requests, answers):
            self._tally.add(request.task_name, answer.n_tokens, answer.n_may_skip)
        self._tell()
        return [(answer.log_likelihood, answer.is_greedy) for answer in answers]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        windows = [self._windows(request.args[0]) for request in requests]
        flat = [(None, *window) for parts in windows for window in parts]
        answers = iter(self._loglikelihood_tokens(flat, disable_tqdm=disable_tqdm))
        sums = []
        for request, parts in zip(requests, windows):
            total = 0.0
            for _ in parts:
                answer = next(answers)
                total += answer.log_likelihood
                self._tally.add(request.task_name, answer.n_tokens, answer.n_may_skip)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            sums.append(total)
        self._tell()
        return sums

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """Of a text that may be longer than the context; each token is predicted in one of them."""
        windows = utils.get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [utils.make_disjoint_window(window) for window in windows]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[_Answer]:
        """Answers to pairs of context and continuation; with each the request's two texts, for the cache."""
        groups: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        for index, request in enumerate(requests):
            context, continuation = self._fitted(*request)
            groups.setdefault(context, {}).setdefault(continuation, []).append(index)
        answers: dict[int, _Answer] = {}
        with progress_bar("loglikelihood", len(requests), show=False if disable_tqdm else None) as bar:
            for context in sorted(groups):  # what one has in common with the one before is not evaluated again
                for continuation, answer in self._scored(context, list(groups[context])):
                    for index in groups[context][continuation]:
                        answers[index] = answer
                        texts = requests[index][0]
                        if texts is not None:
                            self.cache_hook.add_partial("loglikelihood", texts, answer[:2])
                        bar.update(1)
        return [answers[index] for index in range(len(requests))]

    def _fitted(
        self, texts: tuple[str, str] | None, context: list[int], continuation: list[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The context is cut from its left where the two are too long; the last token is predicted, not evaluated."""
        if not 1 <= len(continuation) <= self.max_length:
            raise ValueError(
                f"continuation: {len(continuation)} tokens can't be scored; 1 to max_length={self.max_length}: {texts}"
            )
        room = self.max_length + 1 - len(continuation)
        if len(context) > room:
            self._warn_of_cuts()
        return tuple(context[-room:]), tuple(continuation)

    def _scored(
        self, context: tuple[int, ...], continuations: Iterable[tuple[int, ...]]
    ) -> Iterator[tuple[tuple[int, ...], _Answer]]:
        generated_from = None if self._skip_prompts is None else min(self._skip_prompts, len(context))
        for part in _portions(continuations, self.max_length):
            score = self.llm.score(context, part, skip_prompts=generated_from)
            columns = (score.log_likelihood, score.is_greedy, score.n_tokens, score.n_may_skip)
            for continuation, *values in zip(part, *(column.tolist() for column in columns)):
                yield continuation, _Answer(*values)

    # ---- generation ----

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer, where its task does not say."""
        return 256

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        end = self._text_of(self.eot_token_id)
        ways = [generation_of(request.args[1], self.max_gen_toks, end) for request in requests]
        prompts = [self._prompt(request.args[0], way) for request, way in zip(requests, ways)]
        groups: dict[tuple[str, int], list[int]] = {}
        times: Counter[tuple[str, tuple[int, ...]]] = Counter()
        for index, (way, prompt) in enumerate(zip(ways, prompts)):
            how = repr(way)
            groups.setdefault((how, times[how, tuple(prompt)]), []).append(index)
            times[how, tuple(prompt)] += 1  # again in another group, with another seed: for a vote, say
        texts = [""] * len(requests)
        with progress_bar("generate_until", len(requests), show=False if disable_tqdm else None) as bar:
            for indices in groups.values():
                completions = self._completions([prompts[index] for index in indices], ways[indices[0]])
                for completion, index in zip(completions, indices):
                    texts[index] = stopped(self.llm, completion, ways[index].stop, prompts[index][-1:])
                    self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                    self._tally.add(requests[index].task_name, len(completion.tokens), completion.n_may_skip)
                    bar.update(1)
        self._tell()
        return texts

    def _prompt(self, text: str, way: Generation) -> list[int]:
        """Cut from its left where the answer would not fit behind it."""
        room = self.max_length - way.max_tokens
        if room < 1:
            raise ArgumentError(f"max_gen_toks: {way.max_tokens} tokens leave no room in max_length={self.max_length}")
        ids = self.tok_encode(text) or [self.prefix_token_id]
        if len(ids) > room:
            self._warn_of_cuts()
        return ids[-room:]

    def _warn_of_cuts(self) -> None:
        utils.warning_once(
            _logger, f"contexts that are too long for max_length={self.max_length} are cut from their left"
        )

    def _completions(self, prompts: Sequence[list[int]], way: Generation) -> Iterator[Completion]:
        return self.llm.generate_batch(
            prompts,
            max_tokens=way.max_tokens,
            stop=way.stop,
            skip_prompts=self._skip_prompts,
            n_parallel=self.batch_size,
            seed=random.getrandbits(31),  # of the generator that the harness's --seed sets
            **way.sampling,
        )

    # ---- chats ----

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of requests tells chat templates apart by."""
        return hashlib.sha256(self.llm.metadata.get("tokenizer.chat_template", "").encode("utf-8")).hexdigest()

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own; None where `chat_template` is False.

        Raises:
            ArgumentError: A name, as of one template among several.
            FfnSkipError: The model has none.
        """
        if chat_template is False or chat_template is None:
            return None
        if chat_template is not True:
            raise ArgumentError(f"chat_template: {chat_template!r} can't be chosen; a model's own is applied")
        return self._chats.template

    def apply_chat_template(self, chat_history: Messages, add_generation_prompt: bool = True) -> str:
        """`Chats.rendered`."""
        return self._chats.rendered(chat_history, add_generation_prompt)

    # ---- what it came to ----

    def get_model_info(self) -> dict[str, Any]:
        """Goes into the results, under "config"."""
        skip = self.llm.skip
        return {
            "model_num_parameters": internals.n_params(self.llm),
            "ffnskip": {
                "version": __version__,
                "llama_cpp_python": llama_cpp.__version__,
                "fingerprint": self.llm.fingerprint,
                "skip": None if skip is None else skip.asdict(),
                "skip_prompts": self._skip_prompts,
                "skip_ratio": self.llm.stats.skip_ratio,
                "tasks": self._tally.as_dict(),
            },
        }

    def _tell(self) -> None:
        if self.llm.skip is None:
            return
        share, ratio = self._tally.share, self.llm.stats.skip_ratio
        _logger.info(
            "%.1f %% of the tokens that figures hang on could skip; skipped: %.1f %%", 100 * share, 100 * ratio
        )
        if self._tally.dense:
            _logger.warning(
                "no token that figures hang on could skip: %s. They are the dense model's. With skip_prompts=N tokens "
                "of contexts skip too; warm_up_index=N is how many run in full first",
                ", ".join(self._tally.dense),
            )


if "ffnskip" not in model_registry:  # or the harness has found the entry point
    register_model("ffnskip")(FfnSkipLM)


def _loaded(path: str, skip: Skip, **options: Any) -> Llama:
    try:
        return Llama(path, skip=skip, **options)
    except FfnSkipError:
        raise
    except ValueError as error:
        raise FfnSkipError(str(error)) from error


def _portions(continuations: Iterable[tuple[int, ...]], room: int) -> Iterator[list[tuple[int, ...]]]:
    """Of about as many tokens as fit the context at once: between two, the bar moves."""
    part: list[tuple[int, ...]] = []
    for continuation in continuations:
        if part and sum(map(len, part)) + len(continuation) > room:
            yield part
            part = []
        part.append(continuation)
    if part:
        yield part
