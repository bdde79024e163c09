"""Files that a crash cannot spoil, and that are what they should be: no pipe, no device, no link to something else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from elman.errors import DataError

# Not to wait for who writes into a pipe. No text, on Windows.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextmanager
def refusing(what: str, where: object, mend: str) -> Iterator[None]:
    """An OSError of the body becomes a DataError. what: that cannot be done, to which the system's own words come."""
    try:
        yield
    except OSError as error:
        raise DataError(what=f"{what}: {error.strerror or error}", where=where, mend=mend) from error


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write in; at any moment, power failures included, the old one or the whole new one is at `path`.

    It is written beside, brought to the disk, and renamed; nothing is left of it where the body raises. Where `path`
    is a link, the file takes the link's place. What is no file but leads somewhere, such as /dev/stdout or /dev/null,
    is written into as it is.
    """
    if _leads_on(path):
        with open(path, "wb") as file:
            yield file
        return
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=draft_prefix(path))
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)  # mkstemp makes files for the owner alone
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    with contextlib.suppress(OSError):  # not every file system syncs folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _leads_on(path: Path) -> bool:
    """Whether a name is that of a device or, in the system's own folders, of what a process has open: whoever may
    would replace it by a file, for everybody. Raises OSError for a disk."""
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):  # there is none, or there can be none
        return False
    if stat.S_ISBLK(mode):
        raise OSError(errno.EINVAL, "it is a device, no file")
    return stat.S_ISCHR(mode) or (stat.S_ISLNK(mode) and path.absolute().parts[1:2] in (("dev",), ("proc",)))


def draft_prefix(path: Path) -> str:
    """How names begin of what becomes `path`, and lies beside it until then: short enough for what comes behind."""
    return f".{path.name.encode(errors='ignore')[:100].decode(errors='ignore')}."


@contextmanager
def reading(path: Path, what: str, mend: str = "restore it") -> Iterator[IO[bytes]]:
    """A file to read from. what: it is called in errors. Raises DataError for what is no file, before it is opened."""
    try:
        _refuse(os.stat(path))  # a device may act on being opened
        handle = os.open(path, os.O_RDONLY | _FLAGS)
        with os.fdopen(handle, "rb") as file:
            _refuse(os.fstat(handle))
            yield file
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that no system takes
        problem = (isinstance(error, OSError) and error.strerror) or error
        raise DataError(what=f"{what} cannot be read: {problem}", where=path, mend=mend) from error


def read_file(path: Path, most: int, what: str, mend: str = "restore it") -> bytes:
    """What a file of at most `most` bytes holds. Raises DataError."""
    with reading(path, what, mend) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DataError(
            what=f"{what} is too large",
            where=path,
            got=f"more than {most:,} bytes",
            expected="less",
            mend=mend,
        )
    return content


def open_own(path: Path, flags: int) -> int:
    """The descriptor of a file under that very name, made if there is none. Raises OSError for links and the like.

    flags: os.O_RDWR, os.O_WRONLY, os.O_APPEND.
    """
    with contextlib.suppress(FileNotFoundError):
        _refuse(os.lstat(path))
    handle = os.open(path, flags | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | _FLAGS, 0o666)
    try:
        _refuse(os.fstat(handle))
    except OSError:
        os.close(handle)
        raise
    return handle


def _refuse(status: os.stat_result) -> None:
    """Raise OSError for what is no file, by what it is."""
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "no file")
        raise OSError(errno.EINVAL, f"it is {kind}, no file")
