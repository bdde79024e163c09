"""Whatever ends a command, in a few lines: the one place where what nobody thought of becomes words."""

from __future__ import annotations

import os
import tempfile
import traceback
import unicodedata

from elman.errors import ElmanError


def told(error: BaseException) -> str:
    """What to say of an error; where its traceback is, if it is neither a user's mistake nor the system's refusal."""
    if isinstance(error, ElmanError):
        return str(error)
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return "there is not enough memory\n  mend: take a smaller model, batch or window"
    if isinstance(error, OSError) and error.strerror:
        where = (
            f"\n  where: {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""
        )
        return f"the system refuses: {error.strerror}{where}"
    message = str(error).partition("\n")[0][:200]
    return (
        f"this is a defect of elman, please report it: {type(error).__name__}{f': {message}' if message else ''}\n"
        f"  where: {_kept(error)}\n"
        "  mend: report it with that file, which names your folders but holds none of your files"
    )


def _kept(error: BaseException) -> str:
    """The new file that holds an error's traceback."""
    try:
        handle, path = tempfile.mkstemp(prefix="elman-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError as problem:
        return f"its traceback could not be written: {problem.strerror or problem}"
    return f"its traceback is in {path}"


def plain(text: str) -> str:
    """A message without what a terminal would act on: parts of it may come from a file of anybody's."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd" for c in text
    )
