"""A generation: llama_cpp's own loop, or from its first token on a native one, where no Python is needed per token; and
generators around it: text, a limit, one user at a time, exceptions that reach the caller."""

from __future__ import annotations

import codecs
import contextlib
import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Optional, TypeVar

import llama_cpp

from . import llama_cpp_internals as internals
from .checked import check_room
from .decoding import Decoder, DecodingLlama, GuardedProcessors
from .drafts import SkippingDraft
from .load_error import explained

__all__ = [
    "Steps",
    "check_prompt",
    "exclusively",
    "first",
    "prompt_tokens",
    "sampling_options",
    "text",
    "token_steps",
]

NOTICE_EVERY = 32  # tokens of the native loop between two looks for something to tell the user

_SELF, _TOKENS, *_OPTIONS = inspect.signature(llama_cpp.Llama.generate).parameters.values()
_SIGNATURE = inspect.Signature(_OPTIONS)
_INSTEAD = {
    "temperature": "temp",
    "stop": "create_completion(stop=...)",
    "seed": "set_seed(...) before it",
    "stream": "nothing: it always streams",
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
}

Yielded = TypeVar("Yielded")
Sent = TypeVar("Sent")
Steps = Generator[int, Optional[Sequence[int]], None]
"""Token ids; what is sent is evaluated after the token before."""


def sampling_options(args: Sequence[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """The options of `llama_cpp.Llama.generate` by name. Raises TypeError for others, with the right spelling."""
    for name in keywords:
        if name not in _SIGNATURE.parameters and name in _INSTEAD:
            raise TypeError(f"generate() has no option {name!r}; use {_INSTEAD[name]}")
    return _SIGNATURE.bind(*args, **keywords).arguments


def prompt_tokens(llm: llama_cpp.Llama, text: str, *, goes_on: bool = False) -> list[int]:
    """With what the vocabulary asks to be added; one start token, and none where the text goes on."""
    with explained(quiet=not llm.verbose):  # llama.cpp warns of the second start token, which is taken out here
        ids = llm.tokenize(text.encode("utf-8"), add_bos=True, special=True)
    begins = internals.adds_bos(llm) and ids[:1] == [llm.token_bos()]
    return ids[1:] if begins and (goes_on or ids[:2] == [llm.token_bos()] * 2) else ids


def check_prompt(llm: llama_cpp.Llama, tokens: list[int], options: dict[str, Any]) -> None:
    """Raises ValueError where there is nothing to go on from, or too much."""
    if not tokens and (options.get("reset", True) or internals.needs_eval(llm)):
        raise ValueError("the prompt is empty: it has no tokens")
    if len(tokens) > internals.n_context(llm):
        raise ValueError(f"the prompt has {len(tokens)} tokens, more than n_ctx={internals.n_context(llm)}")


def token_steps(llm: DecodingLlama, decoder: Decoder, prompt: list[int], options: dict[str, Any]) -> Steps:
    """
    Args:
        options: Of `llama_cpp.Llama.generate`, by name.
    """
    internals.context_address(llm)  # raises if the model is closed
    generation = decoder.generation = object()
    reset = options.get("reset", True)
    if reset or prompt != [decoder.sampled]:
        decoder.begin()
    if reset:
        decoder.controller.count_from_here()
        if decoder.controller.first_to_repeat(llm.n_tokens) < llm.n_tokens:
            internals.require_eval(llm)  # the outputs there are come from what is to be computed again
    if options.get("logits_processor") is not None:
        options = {**options, "logits_processor": GuardedProcessors(options["logits_processor"])}
    if isinstance(llm.draft_model, SkippingDraft):
        llm.draft_model.begin()
    steps = llama_cpp.Llama.generate(llm, prompt, **options)
    if not _needs_python(llm, options):
        steps = _natively(llm, decoder, steps)
    sent = None
    with contextlib.closing(steps):
        while True:
            if decoder.generation is not generation:
                raise RuntimeError("another generation, or forward(), began on this Llama; open one for each")
            try:
                token = next(steps) if sent is None else steps.send(sent)
            except StopIteration:
                return
            sent = yield token


def _needs_python(llm: DecodingLlama, options: dict[str, Any]) -> bool:
    """Whether a generation runs Python for every token, or wants the logits of every token in Python.

    A grammar does not: llama_cpp hands its text to libllama's own sampler.
    """
    return (
        internals.wants_all_logits(llm)
        or llm.draft_model is not None
        or options.get("logits_processor") is not None
        or options.get("stopping_criteria") is not None
        or any(getattr(type(llm), name) is not getattr(DecodingLlama, name) for name in ("eval", "sample"))
        or not {"eval", "sample"}.isdisjoint(vars(llm))
    )


def _natively(llm: DecodingLlama, decoder: Decoder, steps: Steps) -> Steps:
    """Continues `steps`, llama_cpp's generation, from its first token on, with the same sampler chain."""
    token = next(steps)
    steps.close()
    sampler = internals.sampler(llm)
    sampler_address = internals.sampler_address(sampler)
    while True:
        sent = yield token
        if sent is not None or decoder.sampled != token:  # the caller added tokens, or used this object meanwhile
            internals.set_sampler(llm, sampler)
            llm.eval([token, *(sent or ())])
            token = llm.sample()
            continue
        check_room(llm, 1)
        position = llm.n_tokens
        internals.context_address(llm)  # raises if the model is closed
        following = decoder.session.step(sampler_address, token, position)
        llm.input_ids[position] = token
        llm.n_tokens = position + 1
        internals.require_eval(llm, False)
        decoder.sampled = token = following
        if position % NOTICE_EVERY == 0:
            decoder.say_notice()


def text(llm: DecodingLlama, steps: Steps, last: list[int]) -> Iterator[str]:
    """Pieces of text, whole characters each, up to the model's end token.

    Args:
        last: The last token before the first of `steps`, if there is one.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in steps:
        if llama_cpp.llama_vocab_is_eog(internals.vocab(llm), token):
            break
        piece = decoder.decode(llm.detokenize([token], prev_tokens=last))
        last = [token]
        if piece:
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def first(generation: Steps, n: int) -> Steps:
    """The first n tokens; the n-th is not fed back to the model."""
    sent = None
    try:
        for _ in range(n):
            sent = yield generation.send(sent)
    except StopIteration:
        pass
    finally:
        generation.close()


def exclusively(
    steps: Generator[Yielded, Sent, None], at_work: Callable[[], AbstractContextManager[None]]
) -> Generator[Yielded, Sent, None]:
    """Every step within `at_work()`, which may refuse it."""
    sent: Any = None
    try:
        while True:
            with at_work():
                try:
                    made = steps.send(sent)
                except StopIteration:
                    return
            sent = yield made
    finally:
        steps.close()
