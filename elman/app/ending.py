"""How a command ends that is not let to its end: by a signal, or because nobody reads its output any more."""

from __future__ import annotations

import functools
import io
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not KeyboardInterrupt, which click takes for a status of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def ended(main: Callable[[], None]) -> Callable[[], None]:
    """A command line that ends by signal n with the status 128 + n, as shells say it, without a traceback: 130 for
    Ctrl-C, 143 for SIGTERM. It ends by SIGPIPE as programs do where their reader has gone (`elman generate … | head`).
    What its output's encoding lacks is written by its number.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
            return main()
        handlers: dict[int, Any] = {signal.SIGINT: _interrupt, signal.SIGTERM: _interrupt}
        if hasattr(signal, "SIGPIPE"):
            handlers[signal.SIGPIPE] = signal.SIG_DFL
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            main()
        except Interrupted as error:
            print(file=sys.stderr)  # the prompt is not to stand behind ^C
            sys.exit(128 + error.number)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return wrapped


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)
