"""Text in UTF-16 that says so by its byte order mark, as Windows and spreadsheets write it: its bytes as UTF-8."""

from __future__ import annotations

import codecs
import io
from typing import IO, Any

from elman.errors import DataError

_BLOCK = 2**16  # bytes that are read at a time, at most


def as_utf8(opened: IO[bytes], where: object) -> IO[bytes]:
    """A file to read on from, from its beginning: UTF-16 with a byte order mark as UTF-8 without one, anything else as
    it is; lines are there as soon as they have come.

    opened: stays open. where: the file's name. Reading raises DataError for UTF-16 that is broken, with the offset.
    """
    head = opened.readline(_BLOCK)
    return io.BufferedReader(_Utf8(opened, head, where), _BLOCK)  # type: ignore[return-value]


def is_utf16(head: bytes) -> bool:
    """By the beginning of a file. The mark of UTF-32 begins as that of UTF-16 does."""
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return head.startswith(marks) and not head.startswith(codecs.BOM_UTF32_LE)


class _Utf8(io.RawIOBase):
    """head: what has been read of the file already."""

    def __init__(self, opened: Any, head: bytes, where: object) -> None:
        self._opened, self._where = opened, where
        self._decoder = codecs.getincrementaldecoder("utf-16")() if is_utf16(head) else None
        self._taken = 0  # bytes of the file that have been decoded
        self._held = self._told(head, ends=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            raw = self._opened.read1(_BLOCK)
            self._held = self._told(raw, ends=not raw)
            if not raw:
                break
        size = min(len(buffer), len(self._held))
        buffer[:size], self._held = self._held[:size], self._held[size:]
        return size

    def _told(self, raw: bytes, *, ends: bool) -> bytes:
        if self._decoder is None:
            return raw
        begin = self._taken - len(self._decoder.getstate()[0])  # of a character that was cut
        try:
            told = self._decoder.decode(raw, ends)
        except UnicodeDecodeError as error:
            got = error.object[error.start : error.start + 4].hex(" ")
            raise DataError(
                what=f"the text is broken UTF-16: {error.reason}",
                where=f"{self._where}, byte offset {begin + error.start}", got=got, expected="UTF-8 or UTF-16",
                mend="save it anew, as UTF-8 at best",
            ) from error  # fmt: skip
        self._taken += len(raw)
        return told.encode()


__all__ = ["as_utf8", "is_utf16"]
