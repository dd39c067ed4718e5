"""The vocabulary of a GGUF: tokens by id, with types, scores or merges, and what llama.cpp must know beside them."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import Any

import gguf
from gguf import TokenType

from .settings import Json

log = logging.getLogger("ffnskip_cpp.convert")

SPACE = "\u2581"  # SentencePiece's visible space


@dataclass
class Vocabulary:
    """The tokenizer.ggml.* part of the file."""

    model: str  # gpt2: byte-level BPE; llama: SentencePiece BPE; t5: SentencePiece unigram
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    squeezes_spaces: bool | None = None  # unigram only
    character_map: bytes | None = None  # unigram only: SentencePiece's own table of normalisations
    special: dict[str, int] = field(default_factory=dict)  # bos, eos, eot, eom, unk, pad -> id
    add_bos: bool = False
    add_eos: bool = False
    chat_template: Any = None  # a string, or a list of {"name", "template"}

    def model_name(self, name: str) -> str:
        """`name`, unless llama.cpp would read a meaning into it that these tokens cannot have.

        It looks up Phi-3's special tokens wherever the name mentions Phi-3, and refuses the file without them.
        """
        if {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= set(self.tokens):
            return name
        return re.sub(r"(phi)-?(3)", r"\1 \2", name, flags=re.IGNORECASE)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        if self.squeezes_spaces is not None:
            writer.add_remove_extra_whitespaces(self.squeezes_spaces)
        if self.character_map is not None:
            writer.add_precompiled_charsmap(self.character_map)
        for role, i in self.special.items():
            getattr(writer, f"add_{role}_token_id")(i)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


@dataclass(frozen=True)
class AddedToken:
    text: str
    special: bool
    strips: bool = False


@dataclass
class BaseVocabulary:
    """A tokenizer before added tokens and padding."""

    model: str
    pre: str
    ids: dict[str, int]
    types: dict[int, TokenType] = field(default_factory=dict)  # those that are not NORMAL
    scores: dict[int, float] | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    squeezes_spaces: bool | None = None
    character_map: bytes | None = None


def complete(base: BaseVocabulary, added: dict[int, AddedToken], n_vocab: int) -> Vocabulary:
    """Lay the tokens out by id, add the added ones, and name the rows of the embedding that no token has."""
    tokens: list[str | None] = [None] * n_vocab
    types = [TokenType.UNUSED] * n_vocab
    scores = [-10000.0] * n_vocab
    for text, i in base.ids.items():
        if not 0 <= i < n_vocab:
            raise ValueError(f"token {text!r} has id {i}, but the embedding has {n_vocab} rows")
        if tokens[i] is not None:
            raise ValueError(f"tokens {tokens[i]!r} and {text!r} both have id {i}")
        tokens[i], types[i] = text, base.types.get(i, TokenType.NORMAL)
        scores[i] = (base.scores or {}).get(i, 0.0)
    for i, token in sorted(added.items()):
        if not isinstance(i, int) or i < 0:
            raise ValueError(f"added token {token.text!r} has id {i!r}; expected a row of the embedding")
        if i >= n_vocab:
            log.warning(
                "added token %r: id %d is beyond the %d rows of the embedding; left out", token.text, i, n_vocab
            )
            continue
        if token.strips:
            log.warning("added token %r strips the space around it in transformers, not in llama.cpp", token.text)
        tokens[i], types[i], scores[i] = token.text, added_type(token, base.types.get(i)), -1000.0
    named = [f"[PAD{i}]" if text is None else text for i, text in enumerate(tokens)]
    if base.model == "llama":  # llama.cpp looks for these in text as it is, before spaces become visible
        named = [
            text.replace(SPACE, " ") if kind is TokenType.USER_DEFINED else text for text, kind in zip(named, types)
        ]
    refuse_duplicates(named)
    return Vocabulary(
        base.model,
        base.pre,
        named,
        types,
        None if base.scores is None else scores,
        base.merges,
        base.add_space_prefix,
        base.squeezes_spaces,
        base.character_map,
    )


def added_type(token: AddedToken, base_type: TokenType | None) -> TokenType:
    if base_type is TokenType.UNKNOWN:
        return base_type
    # Some tokenizers do not flag their chat and infilling marks; llama.cpp treats the ones it knows as control tokens.
    marked = re.fullmatch(r"<\|.*\|>|<｜.*｜>", token.text, re.DOTALL)
    return TokenType.CONTROL if token.special or marked else TokenType.USER_DEFINED


def refuse_duplicates(tokens: list[str]) -> None:
    """llama.cpp aborts the process when two ids share a text."""
    seen: dict[str, int] = {}
    for i, text in enumerate(tokens):
        if text in seen:
            raise ValueError(f"token {text!r} has two ids, {seen[text]} and {i}")
        seen[text] = i


def added_token(entry: Json) -> AddedToken:
    """One entry of added_tokens or added_tokens_decoder."""
    strips = bool(entry.get("lstrip") or entry.get("rstrip"))
    return AddedToken(entry["content"], bool(entry.get("special")), strips)
