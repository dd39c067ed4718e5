"""Text for calibration and analysis: read from files, cut into chunks of tokens.

texts = read_texts(["register.txt", "articles.jsonl"])
for tokens in chunks_of_tokens(llm, texts, n_ctx=512):
    logits = llm.forward(tokens)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Union

from .llama_cpp_internals import adds_bos

if TYPE_CHECKING:
    import llama_cpp

__all__ = ["MIN_TOKENS", "chunks_of_tokens", "read_texts"]

MIN_TOKENS = 32
"""Tokens a chunk must have: about the paper's warm-up, before which nothing can be skipped."""

CHARACTERS_PER_TOKEN = 32  # more than any text has on average: bounds what is tokenised where max_tokens is given

PathLike = Union[str, "os.PathLike[str]"]


def read_texts(paths: Iterable[PathLike]) -> list[str]:
    """The texts in some files, in their order.

    Args:
        paths: Plain text in UTF-8, a text per file; or .jsonl, a text per line, that of the key "text". Blank texts
            are passed over.
    Returns:
        At least one text; line ends are "\\n".
    Raises:
        ValueError: A file is empty, binary, not in UTF-8, or no JSON lines with a "text"; names the file, and the line.
        OSError: A file can't be read.
    """
    texts: list[str] = []
    for path in map(Path, paths):
        found = [text for text in _texts_of(path) if text.strip()]
        if not found:
            raise ValueError(f"{path}: there is no text in it")
        texts += found
    if not texts:
        raise ValueError("no text is given")
    return texts


def _texts_of(path: Path) -> list[str]:
    content = _decode(path, path.read_bytes())
    if path.suffix.lower() != ".jsonl":
        return [content]
    # Not splitlines(): a JSON string may hold other line separators, such as U+2028, as they are.
    lines = enumerate(content.split("\n"), start=1)
    return [_text_of(line, f"{path}:{number}") for number, line in lines if line.strip()]


def _decode(path: Path, data: bytes) -> str:
    if b"\0" in data:
        raise ValueError(f"{path}: a binary file, not text (byte {data.index(0)} is zero)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 (byte {error.start} is 0x{data[error.start]:02x})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _text_of(line: str, where: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise ValueError(f'{where}: not an object with a string under "text"')
    try:
        entry["text"].encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f'{where}: "text" holds half a surrogate pair') from error
    return entry["text"]


def chunks_of_tokens(
    llm: llama_cpp.Llama,
    texts: Sequence[str],
    n_ctx: int,
    *,
    max_tokens: int | None = None,
    min_tokens: int = MIN_TOKENS,
) -> list[list[int]]:
    """Cuts texts into chunks to be evaluated one by one, each from the start of a context.

    No chunk holds parts of two texts. Where the model's vocabulary asks for a start token, every chunk has it:

        text 1:  BOS a b c | BOS d e f | BOS g          text 2:  BOS p q

    The last chunk of a text may be short; one of fewer than `min_tokens` is left out.

    Args:
        llm: Whose tokens; nothing is evaluated.
        texts: Texts, markers such as "</s>" in them being text too.
        n_ctx: Tokens of a chunk at most.
        max_tokens: Tokens of all chunks together at most; the first ones are taken. None: all.
        min_tokens: Tokens of a chunk at least.
    Returns:
        Token ids of at least one chunk.
    Raises:
        ValueError: No text has `min_tokens` tokens, or a limit is too small for a chunk.
    """
    for name, limit in (("n_ctx", n_ctx), ("max_tokens", max_tokens)):
        if limit is not None and limit < min_tokens:
            raise ValueError(f"{name}: {limit} tokens are too few for a chunk; at least {min_tokens}")
    start = [llm.token_bos()] if adds_bos(llm) else []
    chunks: list[list[int]] = []
    left, longest = max_tokens, 0
    for text in texts:
        if left is not None and left < min_tokens:
            break
        tokens = _tokenize(llm, text, left)
        longest = max(longest, len(start) + len(tokens))
        for first in range(0, len(tokens), n_ctx - len(start)):
            chunk = (start + tokens[first : first + n_ctx - len(start)])[:left]
            if len(chunk) < min_tokens:
                break
            chunks.append(chunk)
            left = None if left is None else left - len(chunk)
    if not chunks:
        raise ValueError(
            f"the text is too short: the longest has {longest} tokens, and at least {min_tokens} are needed"
        )
    return chunks


def _tokenize(llm: llama_cpp.Llama, text: str, wanted: int | None) -> list[int]:
    """The tokens of a text, or, of one that is far longer than the tokens wanted, those of its beginning."""
    if wanted is not None:
        text = text[: wanted * CHARACTERS_PER_TOKEN]
    return llm.tokenize(text.encode("utf-8"), add_bos=False)
