"""SentencePiece: tokenizer.model itself, and the spellings of it that transformers writes to tokenizer.json."""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from .byte_bpe import unknown_pre_tokenizer
from .settings import Json, read_json
from .vocabulary import SPACE, AddedToken, BaseVocabulary, added_token

log = logging.getLogger("ffnskip_cpp.convert")

BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def spm_from_json(
    tokenizer: Json, ids: dict[str, int], merges: list[tuple[str, str]], added: set[str], sentencepiece: Path
) -> BaseVocabulary:
    """A SentencePiece BPE model that tokenizer.json spells as merges with byte fallback."""
    prefix = spm_space_prefix(tokenizer)
    types = {i: TokenType.BYTE for text, i in ids.items() if BYTE_PIECE.fullmatch(text)}
    refuse_missing_bytes(ids)
    scores = model_scores(sentencepiece, ids)
    if scores is None:
        scores = merge_scores(ids, merges, added)
    with_added = {**ids, **{entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []}}
    unknown = with_added.get(tokenizer["model"].get("unk_token"))
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    return BaseVocabulary("llama", "default", ids, types, scores, add_space_prefix=prefix)


def spm_space_prefix(tokenizer: Json) -> bool:
    """Whether a space is put before the text. Accepts the spellings of SentencePiece that transformers writes."""
    normalizer, pre = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    # Gemma's: splits at spaces, of which the normalizer leaves none
    idle = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    if pre in (None, idle) and steps in ([prepend, replace], [replace]):
        return bool(steps[0] == prepend)
    if not steps and pre and pre.get("type") == "Metaspace" and pre.get("replacement") == SPACE:
        scheme = pre.get("prepend_scheme", "always" if pre.get("add_prefix_space", True) else "never")
        if scheme in ("always", "first", "never") and not pre.get("split", True):
            if scheme != "never":
                log.warning(
                    "Metaspace %r: llama.cpp also puts a space before text that starts with one%s",
                    scheme,
                    ", and after each special token" if scheme == "first" else "",
                )
            return bool(scheme != "never")
    raise unknown_pre_tokenizer(tokenizer)


def merge_scores(ids: dict[str, int], merges: list[tuple[str, str]], added: set[str]) -> dict[int, float]:
    """Scores under which llama.cpp, which ranks a merge by its result, makes the merges of tokenizer.json.

    Possible when all merges with one result are neighbours in rank and every split of a token into two tokens is a
    merge, as in files made from a SentencePiece model. Anything else is refused: ids would differ.
    """
    scores: dict[int, float] = {}
    previous = None
    for left, right in merges:
        text = left + right
        if text != previous and text not in added:
            if ids.get(text) in scores:
                raise ValueError(f"tokenizer.json: merges into {text!r} are scattered; llama.cpp cannot rank them")
            scores[ids[text]] = -float(len(scores) + 1)
        previous = text
    listed = set(merges)
    for text in ids:
        for cut in range(1, len(text)):
            pair = (text[:cut], text[cut:])
            if pair not in listed and pair[0] in ids and pair[1] in ids:
                raise ValueError(f"tokenizer.json: {pair[0]!r} + {pair[1]!r} is no merge, but llama.cpp would merge it")
    return scores


def model_scores(sentencepiece: Path, ids: dict[str, int]) -> dict[int, float] | None:
    """The scores of tokenizer.model, where there is one and it lists the same pieces as tokenizer.json."""
    if not sentencepiece.is_file():
        return None
    pieces = read_sentencepiece(sentencepiece).pieces
    if any(i >= len(pieces) or pieces[i][0] != text for text, i in ids.items()):
        log.warning("tokenizer.model and tokenizer.json list different pieces; using tokenizer.json")
        return None
    return {i: score for i, (_, score, _) in enumerate(pieces)}


def refuse_missing_bytes(ids: dict[str, int]) -> None:
    for byte in range(256):
        if f"<0x{byte:02X}>" not in ids:
            raise ValueError(f"tokenizer: no byte piece <0x{byte:02X}>; llama.cpp needs all 256 for unknown characters")


# Numbers of fields in the protobuf messages TrainerSpec and NormalizerSpec, and two values
MODEL_TYPE, TREATS_SPACE_AS_SUFFIX, FALLS_BACK_TO_BYTES = 3, 24, 35
CHARACTER_MAP, ADDS_SPACE, SQUEEZES_SPACES, ESCAPES_SPACES = 2, 3, 4, 5
UNIGRAM, BPE = 1, 2


@dataclass
class SentencePieceModel:
    pieces: list[tuple[str, float, TokenType]]
    trainer: dict[int, Any]  # protobuf field number -> value
    normalizer: dict[int, Any]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """The protobuf message ModelProto: 1 = pieces {1 text, 2 score, 3 type}, 2 = trainer, 3 = normalizer."""
    model = SentencePieceModel([], {}, {})
    try:
        for number_, value in protobuf_fields(path.read_bytes()):
            if number_ == 1:
                piece = dict(protobuf_fields(value))
                score = struct.unpack("<f", piece.get(2, b"\0\0\0\0"))[0]
                model.pieces.append((piece[1].decode("utf-8"), score, TokenType(piece.get(3, TokenType.NORMAL))))
            elif number_ == 2:
                model.trainer = dict(protobuf_fields(value))
            elif number_ == 3:
                model.normalizer = dict(protobuf_fields(value))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error):
        raise ValueError(f"{path}: not a SentencePiece model, or damaged") from None
    if not model.pieces:
        raise ValueError(f"{path}: not a SentencePiece model, or damaged")
    return model


def protobuf_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one message; a value is an int (varint) or bytes."""
    at = 0
    value: Any
    while at < len(data):
        key, at = protobuf_varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = protobuf_varint(data, at)
        else:
            if wire == 2:
                length, at = protobuf_varint(data, at)
            else:
                length = {1: 8, 5: 4}[wire]
            value, at = data[at : at + length], at + length
            if at > len(data):
                raise ValueError("message ends inside a field")
        yield key >> 3, value


def protobuf_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def read_sentencepiece_directory(path: Path, settings: Json) -> tuple[BaseVocabulary, dict[int, AddedToken]]:
    """tokenizer.model alone, as checkpoints without tokenizer.json have it."""
    return base_of(read_sentencepiece(path), path.name), added_beside_sentencepiece(path.parent, settings)


def unigram_from_json(tokenizer: Json, sentencepiece: Path) -> BaseVocabulary:
    """A unigram model, which tokenizer.json spells too loosely; taken from the tokenizer.model it was made from.

    Raises:
        ValueError: There is none, or it lists other pieces.
    """
    if not sentencepiece.is_file():
        raise ValueError("tokenizer.json: a unigram model, which is only converted from a tokenizer.model beside it")
    model = read_sentencepiece(sentencepiece)
    if [text for text, _, _ in model.pieces] != [text for text, _ in tokenizer["model"]["vocab"][: len(model.pieces)]]:
        raise ValueError("tokenizer.json and tokenizer.model list different pieces")
    return base_of(model, sentencepiece.name)


def base_of(model: SentencePieceModel, name: str) -> BaseVocabulary:
    """The vocabulary of a whole SentencePiece model; `name` is its file's.

    Raises:
        ValueError: llama.cpp would cut some text otherwise; says what it does not do.
    """
    if model.trainer.get(TREATS_SPACE_AS_SUFFIX):
        raise ValueError(f"{name}: treats whitespace as a suffix, which llama.cpp does not do")
    ids: dict[str, int] = {}
    for i, (text, _, _) in enumerate(model.pieces):
        if text in ids:
            raise ValueError(f"{name}: piece {text!r} has two ids, {ids[text]} and {i}")
        ids[text] = i
    kind = model.trainer.get(MODEL_TYPE, UNIGRAM)
    if kind == UNIGRAM:
        base = unigram_base(model, ids, name)
    elif kind == BPE:
        base = bpe_base(model, ids, name)
    else:
        raise ValueError(f"{name}: a model of words or characters; llama.cpp knows SentencePiece BPE and unigram")
    base.types = {i: kind for i, (_, _, kind) in enumerate(model.pieces)}
    base.scores = {i: score for i, (_, score, _) in enumerate(model.pieces)}
    return base


def bpe_base(model: SentencePieceModel, ids: dict[str, int], name: str) -> BaseVocabulary:
    normalizer = model.normalizer
    if normalizer.get(CHARACTER_MAP) or normalizer.get(SQUEEZES_SPACES, 1) or not normalizer.get(ESCAPES_SPACES, 1):
        raise ValueError(f"{name}: normalises text or squeezes spaces, which llama.cpp does not do for this type")
    refuse_missing_bytes(ids)
    return BaseVocabulary("llama", "default", ids, add_space_prefix=bool(normalizer.get(ADDS_SPACE, 1)))


def unigram_base(model: SentencePieceModel, ids: dict[str, int], name: str) -> BaseVocabulary:
    """llama.cpp calls its unigram tokenizer t5, after the first model that had it."""
    if model.trainer.get(FALLS_BACK_TO_BYTES):
        raise ValueError(
            f"{name}: a unigram model that falls back to bytes, which llama.cpp's unigram tokenizer does not"
        )
    adds, squeezes = bool(model.normalizer.get(ADDS_SPACE, 1)), bool(model.normalizer.get(SQUEEZES_SPACES, 1))
    if (squeezes and not adds) or not model.normalizer.get(ESCAPES_SPACES, 1):
        raise ValueError(f"{name}: treats spaces in a way that llama.cpp's unigram tokenizer does not")
    n_defined = sum(kind is TokenType.USER_DEFINED for _, _, kind in model.pieces)
    if adds and n_defined:
        log.warning("%s: llama.cpp puts a space after each of the %d user-defined pieces", name, n_defined)
    return BaseVocabulary(
        "t5",
        "default",
        ids,
        add_space_prefix=adds,
        squeezes_spaces=squeezes,
        character_map=model.normalizer.get(CHARACTER_MAP) or None,
    )


def added_beside_sentencepiece(model_dir: Path, settings: Json) -> dict[int, AddedToken]:
    added = {i: AddedToken(text, False) for text, i in read_json(model_dir / "added_tokens.json").items()}
    for i, entry in (settings.get("added_tokens_decoder") or {}).items():
        added[int(i)] = added_token(entry)
    return added
