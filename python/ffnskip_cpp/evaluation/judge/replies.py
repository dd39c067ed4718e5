"""Every reply that was paid for, in a file that grows line by line: what was asked once is never asked again.

with open_replies("results/judge/replies.jsonl") as replies:
    if replies.get(key) is None:
        replies.add(key, Reply("...", "stop", "gpt", 512, 64))
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Message", "Replies", "Reply", "key_of", "open_replies"]

Message = Mapping[str, str]
"""{"role": ..., "content": ...}"""


@dataclass(frozen=True)
class Reply:
    """As the server gave it."""

    text: str
    finish_reason: str
    """"stop", or "length" where it was cut off."""
    model: str
    """That answered, as the server calls it."""
    tokens_in: int
    tokens_out: int
    """0 where the server does not count."""

    @classmethod
    def of(cls, text: str, *, finish_reason: object, model: object, tokens_in: object, tokens_out: object) -> Reply:
        """The text is what was paid for; of the rest, what is no text, or no count, counts as absent."""
        return cls(text, _text(finish_reason), _text(model), _count(tokens_in), _count(tokens_out))


def _text(given: object) -> str:
    return given if isinstance(given, str) else ""


def _count(given: object) -> int:
    return given if isinstance(given, int) and not isinstance(given, bool) and given >= 0 else 0


def key_of(model: str, messages: Sequence[Message], parameters: Mapping[str, Any]) -> str:
    """SHA-256 of all that a reply hangs on. Texts, their order and the prompt's words are in the messages."""
    asked = json.dumps([model, [dict(message) for message in messages], dict(parameters)], sort_keys=True)
    return hashlib.sha256(asked.encode("ascii")).hexdigest()


class Replies:
    """For several threads at once; made by `open_replies`."""

    def __init__(self, known: dict[str, Reply], file: io.FileIO):
        self._known = known
        self._file = file
        self._lock = threading.Lock()

    def get(self, key: str) -> Reply | None:
        return self._known.get(key)

    def add(self, key: str, reply: Reply) -> None:
        """It is on the disk when this returns."""
        # ASCII, as a server's JSON may have half of a surrogate pair in it, which is no UTF-8.
        line = json.dumps({"key": key, **dataclasses.asdict(reply)}).encode("ascii") + b"\n"
        with self._lock:
            _append(self._file, line)
            self._known[key] = reply


def _append(file: io.FileIO, line: bytes) -> None:
    """All of it or nothing, so that another line may follow."""
    before = file.seek(0, os.SEEK_END)
    try:
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
        os.fsync(file.fileno())
    except OSError:
        file.truncate(before)
        raise


@contextlib.contextmanager
def open_replies(path: Path) -> Iterator[Replies]:
    """The file and its folder are made if they are missing; a last line that a killed process left torn is taken off.

    Raises:
        ValueError: Another process has it open; a line is no reply, the message names it.
        OSError: It can't be read or written.
    """
    path.parent.mkdir(exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{path.parent}: another ffnskip judge is at work here; wait for its end") from error
        except OSError:  # a file system without locks
            pass
        file.seek(0)
        yield Replies(_known(path, file), file)


def _known(path: Path, file: io.FileIO) -> dict[str, Reply]:
    *lines, last = file.readall().split(b"\n")
    known = dict(_reply(line, f"{path}:{number}") for number, line in enumerate(lines, start=1))
    if last:
        file.truncate(file.tell() - len(last))
        with contextlib.suppress(ValueError):  # torn, unless the end of the line alone is missing
            known.update([_reply(last, "")])
            _append(file, last + b"\n")
    return known


def _reply(line: bytes, where: str) -> tuple[str, Reply]:
    try:
        fields = json.loads(line)
        key, reply = fields.pop("key"), Reply.of(**fields)
        if not all(isinstance(text, str) for text in (key, reply.text)):
            raise TypeError("a text is none")
        return key, reply
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where}: no reply of a judge; without this line it is asked for again") from error
