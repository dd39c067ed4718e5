"""Files that are whole or not there: written under another name beside their own, then renamed.

with whole_file("model.gguf", inputs=[source]) as part:
    write(part)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Union

__all__ = ["check_output", "check_text_output", "made_folder", "whole_file"]

PathLike = Union[str, "os.PathLike[str]"]

PART = ".ffnskip-part"
FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it outgrows the limit on the size of a file",
}
PROBED = 2**20  # bytes


def check_output(path: PathLike, inputs: Iterable[PathLike] = ()) -> None:
    """For commands that work long before they write: what `whole_file` would refuse, now.

    Raises:
        ValueError: `path` is a directory, or one of `inputs`, by whatever name or link.
        FileNotFoundError: There is no directory to write it into.
        PermissionError: What is there is write-protected.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a directory; give the name of a file")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such directory for the output")
    if not path.exists():
        return
    for name in inputs:
        if os.path.exists(name) and path.samefile(name):
            raise ValueError(f"{path}: is the input itself; give another name")
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path}: is write-protected")


def check_text_output(path: PathLike, inputs: Iterable[PathLike] = ()) -> None:
    """`check_output` of what is no model: a GGUF file, which may have taken days to make, is not what it replaces.

    Raises:
        ValueError, FileNotFoundError, PermissionError: As `check_output`; ValueError where `path` is a GGUF file.
    """
    check_output(path, inputs)
    if os.path.isfile(path):
        with open(path, "rb") as file:
            if file.read(4) == b"GGUF":
                raise ValueError(f"{path}: is a GGUF file, which is not overwritten; give another name")


@contextlib.contextmanager
def whole_file(path: PathLike, inputs: Iterable[PathLike] = (), *, size: int | None = None) -> Iterator[Path]:
    """A name to write to, of an empty file. If the block ends without an error the file gets its own, in place of what
    was there; else it is removed, and so are those that killed runs left.

    Where `path` is a link, the file it points to is replaced. What is no regular file, a device or a pipe, stays what
    it is, and is written into at the end.

    Args:
        path: The file.
        inputs: Files it must not take the place of.
        size: Bytes it will have, to be named where there is no room for them.
    Raises:
        ValueError, FileNotFoundError, PermissionError: As `check_output`.
        OSError: The disk is full, or the file can't be written for another reason; it names `path`.
    """
    path = Path(path)
    check_output(path, inputs)
    try:
        with _into(path) if path.exists() and not path.is_file() else _beside(path) as part:
            try:
                yield part
            except OSError as error:
                _probe(part, error)
                raise
    except OSError as error:
        if error.errno in FULL:
            takes = "" if size is None else f"; it takes {size / 1e6:,.0f} MB"
            raise OSError(f"{path}: {FULL[error.errno]}{takes}; nothing was written") from error
        if str(error.filename).endswith(PART):  # a name that the user does not know
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """It and those above are made where they are missing; if the block fails they are removed, unless something is in
    them."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


def _probe(part: Path, error: OSError) -> None:
    """NumPy and C++ streams lose the reason why they could not write; the file system tells it once more."""
    if error.errno is None:
        with open(part, "ab", buffering=0) as file:
            if file.write(bytes(PROBED)) == PROBED:
                return
            file.write(bytes(PROBED))


@contextlib.contextmanager
def _into(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, "part")
        part.touch()
        yield part
        with open(part, "rb") as source, open(path, "wb") as sink:
            shutil.copyfileobj(source, sink)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    target = Path(os.path.realpath(path))
    _remove_left_over(target.parent)
    try:
        part, descriptor = _create(target)
    except PermissionError as error:
        raise PermissionError(f"{path}: no permission to write into {target.parent}") from error
    try:
        yield part
        if target.exists():
            _keep_owner_and_mode(target, descriptor)
        os.fsync(descriptor)  # before the old file is gone
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
        os.close(descriptor)


def _create(target: Path) -> tuple[Path, int]:
    """An empty file with a name of its own, locked as long as the descriptor is open."""
    while True:
        part = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}{PART}")  # 255 bytes at most
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if part.exists():  # and no other run has taken it for left over, before it was locked
            return part, descriptor
        os.close(descriptor)


def _remove_left_over(folder: Path) -> None:
    """What nobody has locked: locks end with their process, whichever machine or container it runs in."""
    for part in folder.glob(f".*{PART}"):
        with contextlib.suppress(OSError), open(part, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def _keep_owner_and_mode(target: Path, descriptor: int) -> None:
    before = target.stat()
    with contextlib.suppress(OSError):  # only root may give a file away
        os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
