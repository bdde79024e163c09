"""How far training has come, on a terminal: a bar, the time that is left, the loss, and the latest look; and what else
takes its time."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from elman.training.fit import Step
from elman.training.measure import Validation, percent

NEW, FAINT = "bold cyan", "bright_black"
_EVERY = 0.25  # seconds between two pictures


class Bar:
    """Draws on standard error while a model learns. shown: True, on a terminal as a bar that goes at the end, elsewhere
    as a line for each look; False: not at all; None: as a bar, where that is a terminal and nothing else of this
    program may be drawing on it (other threads and processes)."""

    def __init__(self, shown: bool | None) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False)
        self.shown = shown = _is_shown(shown, self.console)
        self._drawn, self._look = float("-inf"), ""
        drawing = shown and self.console.is_terminal
        self._live = Live(console=self.console, auto_refresh=False, transient=True) if drawing else None
        self._step: Step | None = None

    def __enter__(self) -> Bar:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, event: Step | Validation) -> None:
        if not self.shown:
            return
        if isinstance(event, Validation):
            self._look = f"   {event.measure}"
            if self._live is None and self._step is not None:
                self.console.print(self._line(self._step), soft_wrap=True)
            return
        self._step = event
        if self._live is not None and event.seconds - self._drawn > _EVERY:
            self._drawn = event.seconds
            self._live.update(self._line(event), refresh=True)

    def _line(self, step: Step) -> Text:
        return bar(step, 20).append(f"   step {step.step:,}   loss {step.loss:.4f}{self._look}")


def _is_shown(shown: bool | None, console: Console) -> bool:
    if shown is not None:
        return shown
    alone = threading.current_thread() is threading.main_thread() and multiprocessing.parent_process() is None
    return console.is_terminal and alone


@contextmanager
def saying(shown: bool | None) -> Iterator[Callable[[str], None]]:
    """Inside, what a function is given stands on standard error as what is being done. shown: as of `Bar`; elsewhere
    than on a terminal a line for each."""
    console = Console(stderr=True, highlight=False, markup=False)
    if not _is_shown(shown, console):
        yield lambda words: None
    elif not console.is_terminal:
        yield lambda words: console.print(words, soft_wrap=True)
    else:
        with console.status("") as status:
            yield status.update


def bar(step: Step, width: int = 40) -> Text:
    """The share of a run that is done, and the time that is left."""
    full = round(width * min(step.done, 1))
    line = Text("━" * full, NEW, no_wrap=True).append("━" * (width - full), FAINT)
    left = step.seconds * (1 - step.done) / max(step.done, 1e-9)
    return line.append(f" {percent(step.done, 0):>5}").append(f"   {clock(left)} left", FAINT)


def clock(seconds: float) -> str:
    """75.2 -> "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
