"""Byte-level BPE: which of llama.cpp's pre-tokenizers cuts text as tokenizer.json does, or none."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import dataclass
from typing import Any

from .settings import Json
from .vocabulary import BaseVocabulary

log = logging.getLogger("ffnskip_cpp.convert")

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
START = r"[^\r\n\p{L}\p{N}]?"
CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASE = "words with capitals outside ASCII or with combining marks"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


Step = tuple[Any, ...]  # its kind, then what it does
Merge = tuple[str, str]


def split(regex: str) -> Step:
    return ("split", regex, "Isolated", False)


@dataclass(frozen=True)
class PreTokenizer:
    """How one tokenizer.ggml.pre of llama.cpp cuts text into words; `steps` as pre_tokenizer_steps() spells them."""

    name: str
    steps: tuple[Step, ...]
    ignore_merges: bool = False  # a word that is a token is taken whole
    differs: str = ""  # where llama.cpp's version of it gives other words, if anywhere


PRE_TOKENIZERS = (
    PreTokenizer("gpt-2", (("bytes", True),)),
    PreTokenizer("smollm", (("digits", True), ("bytes", True))),
    PreTokenizer("llama-bpe", (split(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"), ("bytes", False)), True),
    PreTokenizer("smaug-bpe", (split(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"), ("bytes", False))),
    PreTokenizer("qwen2", (split(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}"), ("bytes", False))),
    PreTokenizer(
        "tekken",
        (split(rf"{START}{UPPER}*{LOWER}+|{START}{UPPER}+{LOWER}*|\p{{N}}|{CASED_REST}"), ("bytes", False)),
        ignore_merges=True,
        differs=CASE,
    ),
    PreTokenizer(
        "gpt-4o",
        (
            split(
                rf"{START}{UPPER}*{LOWER}+{CONTRACTIONS}?|{START}{UPPER}+{LOWER}*{CONTRACTIONS}?|\p{{N}}{{1,3}}|{CASED_REST}"
            ),
            ("bytes", False),
        ),
        differs=CASE,
    ),
    PreTokenizer(
        "falcon",
        (("punctuation", "Contiguous"), ("bytes", True), ("digits", False), split("[0-9][0-9][0-9]")),
        differs="characters outside ASCII that have one of six bytes which look like digits when spelt, such as 'м'",
    ),
)


def bpe_from_json(tokenizer: Json, ids: dict[str, int], merges: list[Merge]) -> BaseVocabulary:
    steps = pre_tokenizer_steps(tokenizer.get("pre_tokenizer"))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    candidates = [pre for pre in PRE_TOKENIZERS if pre.steps == steps]
    candidates.sort(key=lambda pre: pre.ignore_merges != ignore_merges)
    if not candidates or not is_plain_normalizer(tokenizer.get("normalizer")):
        raise unknown_pre_tokenizer(tokenizer)
    if any(len(merge) != 2 or " " in merge[0] + merge[1] for merge in merges):
        raise ValueError("tokenizer.json: a merge is not two pieces without spaces, as byte-level BPE has them")
    pre = candidates[0]
    if pre.differs:
        log.warning("tokenizer: llama.cpp's pre-tokenizer %s cuts some text otherwise: %s", pre.name, pre.differs)
    if pre.ignore_merges != ignore_merges:
        refuse_unreachable(ids, merges, pre.name, ignore_merges)
    return BaseVocabulary("gpt2", pre.name, ids, merges=[" ".join(merge) for merge in merges])


def pre_tokenizer_steps(pre: Json | None) -> tuple[Step, ...]:
    """The pre_tokenizer of tokenizer.json without what does not change token ids (offsets, spelling)."""
    if pre is None:
        return ()
    kind = pre.get("type")
    if kind == "Sequence":
        return tuple(step for part in pre.get("pretokenizers", []) for step in pre_tokenizer_steps(part))
    if kind == "Split" and "Regex" in pre.get("pattern", {}):
        how = (pre.get("behavior"), pre.get("invert", False))
        regex = pre["pattern"]["Regex"]
        # Inverted, what no match covers is removed; an expression with one of these at its end leaves nothing.
        if how == ("Removed", True) and regex.endswith((REST, CASED_REST)):
            how = ("Isolated", False)
        return (("split", regex, *how),)
    if kind == "Punctuation":
        return (("punctuation", pre.get("behavior", "Isolated")),)
    if kind == "Digits":
        return (("digits", pre.get("individual_digits", False)),)
    if kind == "ByteLevel" and not pre.get("add_prefix_space", True):
        return (("bytes", pre.get("use_regex", True)),)
    return (("unknown", json.dumps(pre, sort_keys=True)),)


def is_plain_normalizer(normalizer: Json | None) -> bool:
    """None, or NFC, which llama.cpp does not apply: nearly all text is NFC already and not changed by it."""
    if normalizer is None or normalizer.get("type") == "NFC":
        return True
    return normalizer.get("type") == "Sequence" and all(map(is_plain_normalizer, normalizer.get("normalizers", [])))


def unknown_pre_tokenizer(tokenizer: Json) -> ValueError:
    parts = {key: tokenizer.get(key) for key in ("normalizer", "pre_tokenizer")}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    known = ", ".join(pre.name for pre in PRE_TOKENIZERS)
    return ValueError(
        f"tokenizer.json: unknown pre-tokenizer (sha256 of its normalizer and pre_tokenizer {digest[:16]}); "
        f"known: {known}. A guess would give other token ids"
    )


def refuse_unreachable(ids: dict[str, int], merges: list[Merge], pre: str, ignore_merges: bool) -> None:
    """`pre` of llama.cpp does the opposite of ignore_merges: harmless only where merging reaches every token."""
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    for text in ids:
        if len(merge_all(list(text), ranks)) > 1:
            raise ValueError(
                f"tokenizer.json: ignore_merges is {str(ignore_merges).lower()}, the opposite of {pre} in llama.cpp, "
                f"and token {text!r} depends on it"
            )


def merge_all(parts: list[str], ranks: dict[Merge, int]) -> list[str]:
    """Plain BPE on one word: apply the lowest-ranked merge until none is left."""
    while len(parts) > 1:
        rank, at = min((ranks.get(pair, math.inf), i) for i, pair in enumerate(zip(parts, parts[1:])))
        if rank == math.inf:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
