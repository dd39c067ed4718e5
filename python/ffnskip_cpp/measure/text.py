"""Text for calibration and analysis: read from files, cut into chunks of tokens.

texts = read_texts(["register.txt", "articles.jsonl", "chats.jsonl"])
for tokens in chunks_of_tokens(llm, texts, n_ctx=512):
    logits = llm.forward(tokens)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from .. import llama_cpp_internals as internals
from .._core import RowKind
from .chat import PROMPT, Chat, tokens_of_chat

if TYPE_CHECKING:
    import llama_cpp

__all__ = [
    "MIN_TOKENS",
    "N_CTX",
    "Chunk",
    "Text",
    "as_paths",
    "chunks_of_text",
    "chunks_of_tokens",
    "decoded",
    "encodable",
    "read_texts",
]

N_CTX = 512
"""Tokens of a chunk, if nothing else is said and the model was trained on as many."""

MIN_TOKENS = 32
"""Tokens a chunk must have: about the paper's warm-up, before which nothing can be skipped."""

CHARACTERS_PER_TOKEN = 32  # more than any text has on average: bounds what is tokenised where max_tokens is given

PathLike = Union[str, "os.PathLike[str]"]
Text = Union[str, Chat]

KINDS = 'a string under "text", "messages" with a "role" and a "content" each, or "turns", the user\'s messages'


@dataclass(frozen=True)
class Chunk:
    """Tokens to be evaluated from the start of a context."""

    tokens: list[int]
    generated: list[int]
    """Of each token: its index in a generation, or `chat.PROMPT`. A chunk of plain text is one generation; its first
    token is the prompt of the others, and never skips: no text begins without one, and models keep in it what later
    tokens attend to where they attend to nothing."""

    @classmethod
    def of_text(cls, tokens: list[int]) -> Chunk:
        """Of plain text."""
        return cls(tokens, [PROMPT, *range(1, len(tokens))])

    def eligible(self, warm_up_index: int) -> list[bool]:
        """[n_tokens]: may skip."""
        return [index >= warm_up_index for index in self.generated]

    def kinds(self, warm_up_index: int) -> list[RowKind]:
        """[n_tokens]: the same, and which of the others are generated tokens of a warm-up."""
        return [
            RowKind.prompt if index == PROMPT else RowKind.skippable if index >= warm_up_index else RowKind.warm_up
            for index in self.generated
        ]

    def rows(self, warm_up_index: int) -> list[int]:
        """The tokens that may skip and predict a known one: not the last."""
        return [i for i, may_skip in enumerate(self.eligible(warm_up_index)[:-1]) if may_skip]

    @property
    def n_prompt(self) -> int:
        """Tokens before the first one that is generated."""
        return next((i for i, index in enumerate(self.generated) if index != PROMPT), len(self))

    def __len__(self) -> int:
        return len(self.tokens)


# ---- reading ----


def as_paths(given: PathLike | Iterable[PathLike]) -> list[PathLike]:
    """One file, or several."""
    return [given] if isinstance(given, (str, os.PathLike)) else list(given)


def read_texts(paths: PathLike | Iterable[PathLike]) -> list[Text]:
    """The texts in some files, in their order.

    Args:
        paths: Plain text in UTF-8, a text per file; or .jsonl, a text or chat per line: {"text": "..."},
            {"messages": [{"role": "user", "content": "..."}, ...]}, or {"turns": ["...", ...]}, what the user says in
            MT-Bench's format. Blank texts are passed over.
    Returns:
        At least one text; line ends are "\\n".
    Raises:
        ValueError: A file is empty, binary, not in UTF-8, or no JSON lines of these kinds; names the file, and the
            line.
        OSError: A file can't be read.
    """
    texts: list[Text] = []
    for path in map(Path, as_paths(paths)):
        found = [text for text in _texts_of(path) if isinstance(text, Chat) or text.strip()]
        if not found:
            raise ValueError(f"{path}: there is no text in it")
        texts += found
    if not texts:
        raise ValueError("no text is given")
    return texts


def _texts_of(path: Path) -> list[Text]:
    content = decoded(path, path.read_bytes())
    if path.suffix.lower() != ".jsonl":
        return [content]
    # Not splitlines(): a JSON string may hold other line separators, such as U+2028, as they are.
    lines = enumerate(content.split("\n"), start=1)
    return [_text_of(line, f"{path}:{number}") for number, line in lines if line.strip()]


def decoded(path: Path, data: bytes) -> str:
    """The text that a file holds, line ends as "\\n". ValueError, which names the line, where it is not in UTF-8."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path}: in UTF-16; save it in UTF-8")
    if b"\0" in data:
        raise ValueError(f"{path}: a binary file, not text (byte {data.index(0)} is zero)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + (len(data) - len(error.object))  # the byte order mark is not part of what was decoded
        line = data.count(b"\n", 0, at) + 1
        raise ValueError(f"{path}:{line}: not text in UTF-8 (byte {at} is 0x{data[at]:02x})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _text_of(line: str, where: str) -> Text:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: not an object with {KINDS}")
    if "messages" in entry:
        return Chat(tuple(_message(message, where) for message in _some(entry, "messages", where)), where)
    if "turns" in entry:
        turns = [encodable(turn, '"turns"', where) for turn in _some(entry, "turns", where)]
        return Chat(tuple({"role": "user", "content": turn} for turn in turns), where)
    if not isinstance(entry.get("text"), str):
        raise ValueError(f"{where}: not an object with {KINDS}")
    return encodable(entry["text"], '"text"', where)


def _some(entry: dict[str, Any], key: str, where: str) -> list[Any]:
    given = entry[key]
    if not isinstance(given, list) or not given:
        raise ValueError(f'{where}: "{key}" is not a list of at least one')
    return given


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f'{where}: a message without a "role", such as "user" or "assistant"')
    return {
        "role": encodable(message["role"], '"role"', where),
        "content": encodable(message.get("content"), '"content"', where),
    }


def encodable(text: Any, name: str, where: str) -> str:
    """`text`, if it is one that has a form in UTF-8; `name` says in the ValueError what it is."""
    if not isinstance(text, str):
        raise ValueError(f"{where}: {name} holds what is no string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {name} holds half a surrogate pair") from error
    return text


# ---- chunks ----


def chunks_of_tokens(
    llm: llama_cpp.Llama,
    texts: Sequence[Text],
    n_ctx: int,
    *,
    max_tokens: int | None = None,
    min_tokens: int = MIN_TOKENS,
) -> list[list[int]]:
    """The tokens of `chunks_of_text`."""
    return [chunk.tokens for chunk in chunks_of_text(llm, texts, n_ctx, max_tokens=max_tokens, min_tokens=min_tokens)]


def chunks_of_text(
    llm: llama_cpp.Llama,
    texts: Sequence[Text],
    n_ctx: int,
    *,
    max_tokens: int | None = None,
    min_tokens: int = MIN_TOKENS,
) -> list[Chunk]:
    """Cuts texts into chunks to be evaluated one by one, each from the start of a context.

    No chunk holds parts of two texts. Where the model's vocabulary asks for a start token, every chunk has it:

        text 1:  BOS a b c | BOS d e f | BOS g          text 2:  BOS p q

    The last chunk of a text may be short; one of fewer than `min_tokens` is left out. A chat is rendered by the model's
    template, which decides on start tokens.

    Args:
        llm: Whose tokens; nothing is evaluated.
        texts: Texts, markers such as "</s>" in them being text too, and chats.
        n_ctx: Tokens of a chunk at most.
        max_tokens: Tokens of all chunks together at most; the first ones are taken. None: all.
        min_tokens: Tokens of a chunk at least.
    Returns:
        At least one chunk.
    Raises:
        ValueError: No text has `min_tokens` tokens, or a limit is too small for a chunk; a chat can't be rendered.
    """
    for name, limit in (("n_ctx", n_ctx), ("max_tokens", max_tokens)):
        if limit is not None and limit < min_tokens:
            raise ValueError(f"{name}: {limit} tokens are too few for a chunk; at least {min_tokens}")
    result: list[Chunk] = []
    left, longest = max_tokens, 0
    for text in texts:
        if left is not None and left < min_tokens:
            break
        cut = _cut_chat(llm, text, n_ctx) if isinstance(text, Chat) else _cut(llm, text, n_ctx, left)
        longest = max([longest, *map(len, cut)])
        for whole in cut:
            chunk = Chunk(whole.tokens[:left], whole.generated[:left])
            if len(chunk) < min_tokens:
                break
            result.append(chunk)
            left = None if left is None else left - len(chunk)
    if not result:
        raise ValueError(
            f"the text is too short: the longest has {longest} tokens, and at least {min_tokens} are needed"
        )
    return result


def _cut(llm: llama_cpp.Llama, text: str, n_ctx: int, wanted: int | None) -> list[Chunk]:
    start = [llm.token_bos()] if internals.adds_bos(llm) else []
    tokens = _tokenize(llm, text, wanted)
    step = n_ctx - len(start)
    parts = [start + tokens[first : first + step] for first in range(0, len(tokens), step)]
    return [Chunk.of_text(part) for part in parts]


def _cut_chat(llm: llama_cpp.Llama, chat: Chat, n_ctx: int) -> list[Chunk]:
    """What follows the first n_ctx tokens starts a context without what led to it: the tokens there count from its
    beginning."""
    tokens, generated = tokens_of_chat(llm, chat)
    result = []
    for first in range(0, len(tokens), n_ctx):
        part = generated[first : first + n_ctx]
        if first > 0:
            part = [PROMPT, *(PROMPT if index == PROMPT else min(index, i) for i, index in enumerate(part[1:], 1))]
        result.append(Chunk(tokens[first : first + n_ctx], part))
    return result


def _tokenize(llm: llama_cpp.Llama, text: str, wanted: int | None) -> list[int]:
    """The tokens of a text, or, of one that is far longer than the tokens wanted, those of its beginning."""
    if wanted is not None:
        text = text[: wanted * CHARACTERS_PER_TOKEN]
    return llm.tokenize(text.encode("utf-8"), add_bos=False)
