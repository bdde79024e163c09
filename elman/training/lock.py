"""One process to a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elman.errors import StateError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process can enter for the same folder. Raises StateError if one is in there.

    The lock belongs to the process, not to the file: the system lets go of it however the process ends.
    """
    path = folder / ".lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _take(handle):
            holder = os.read(handle, 32).decode(errors="replace").strip()
            raise StateError(
                what="another process is training in this run folder", where=folder,
                got=f"process {holder}" if holder else None, mend="wait for it, stop it, or choose another --out",
            )  # fmt: skip
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
