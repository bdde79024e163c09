"""What the command line draws: training as it goes, the loss curve, bars, and text as it is written."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from elman.app.writing import shown
from elman.tasks.task import Task
from elman.training import Step, Validation
from elman.training.progress import FAINT, NEW, bar, clock

OLD = "yellow"
_PLAIN_EVERY = 10.0  # seconds between two lines where there is no terminal to redraw


@dataclass(frozen=True)
class Level:
    """A figure in bits per character that a curve is compared with: a line across the plot with its name."""

    name: str
    bits: float


class Lasting(Console):
    """A console of which nothing is lost but the words where the reader of its output goes away: training goes on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if hasattr(signal, "SIGPIPE") and threading.current_thread() is threading.main_thread():
            signal.signal(
                signal.SIGPIPE, signal.SIG_IGN
            )  # for the rest of the command: see `elman.app.ending`

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


class Watch:
    """Draws a training run while it goes: a live curve on a terminal, now and then a line elsewhere.

    with Watch(console, levels) as watch:
        for event in trainer:
            watch.show(event)

    task: says a step in its words. levels, plot: of a curve in bits per character.
    """

    def __init__(
        self, console: Console, levels: Sequence[Level] = (), *, task: Task, plot: bool = True
    ) -> None:
        self.console, self.levels, self.plot, self.task = console, levels, plot, task
        self.steps: list[Step] = []
        self.validation: Validation | None = None
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )
        self._shown = -math.inf

    def __enter__(self) -> Watch:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()  # what it drew goes; the last figures are to stay
            self._shown = -math.inf
        if self.steps and kind is None and self._shown != self.steps[-1].seconds:
            self._tell(self.steps[-1])

    def note(self, words: str) -> None:
        """Say something that is not a figure."""
        self.console.print(Text(words, OLD), soft_wrap=True)

    def show(self, step: Step | Validation) -> None:
        """Take in a step or a validation, and draw if it is time to."""
        if isinstance(step, Validation):
            self.validation = step
            return
        self.steps.append(step)
        now = step.seconds
        if self._live is not None and now - self._shown > 0.25:
            self._shown = now
            parts = [bar(step), _line(step, self.validation, self.task)]
            if self.plot:
                parts += [Text(), *curve(self.steps, self.levels, self.console.width)]
            self._live.update(Group(*parts), refresh=True)
        elif self._live is None and now - self._shown > _PLAIN_EVERY:
            self._tell(step)

    def _tell(self, step: Step) -> None:
        self._shown = step.seconds
        # One line in a file, however long.
        self.console.print(_plain(step, self.validation, self.task), soft_wrap=True)


def _line(step: Step, validation: Validation | None, task: Task) -> Text:
    """The figures of a step in one line, in the words of its task, and the speed."""
    line = Text(f"step {step.step:,}")
    for words, kind in task.line(step, validation):
        line.append(f"   {words}", {"new": NEW, "old": OLD, "": ""}[kind])
    return line.append(f"   {step.count / max(step.seconds, 1e-9):,.0f} {task.unit}s/s")


def _plain(step: Step, validation: Validation | None, task: Task) -> Text:
    left = step.seconds * (1 - step.done) / max(step.done, 1e-9)
    return _line(step, validation, task).append(
        f"   {clock(left)} left" if step.done < 1 else f"   {clock(step.seconds)}", FAINT
    )


_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0)
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a Braille character: [row][column]


def curve(steps: Sequence[Step], levels: Sequence[Level], width: int, height: int = 11) -> list[Text]:
    """The loss in bits per character against the share of the run that is done, as lines of text.

    The scale is logarithmic: the first seconds fall by bits, the rest by hundredths. Two columns and four
    rows of dots make one character.
    """
    beside = max((len(level.name) for level in levels), default=0) + 7
    columns = max(min(width - 7 - beside, 90), 24)  # room for the words under the plot
    points = [(step.done, step.loss / math.log(2)) for step in steps]
    values = [bits for _, bits in points] + [level.bits for level in levels]
    low, high = math.log(min(values) * 0.93), math.log(max(values) * 1.03)

    def row_of(bits: float) -> int:
        return min(max(int((high - math.log(bits)) / (high - low) * height * 4), 0), height * 4 - 1)

    dots = [[0] * columns for _ in range(height)]
    before = None
    for x, bits in _filled(points, columns * 2):
        y = row_of(bits)
        top, bottom = (y, y) if before is None else (min(y, before), max(y, before))
        for between in range(top, bottom + 1):
            dots[between // 4][x // 2] |= _DOTS[between % 4][x % 2]
        before = y
    ticks = {row_of(tick) // 4: f"{tick:g}" for tick in _TICKS if low <= math.log(tick) <= high}
    named = {row_of(level.bits) // 4: level for level in levels}
    lines = []
    for row in range(height):
        line = Text(no_wrap=True)
        line.append(f"{ticks.get(row, ''):>4} ", FAINT).append("┤" if row in ticks else "│", FAINT)
        for dot in dots[row]:
            if dot:
                line.append(chr(0x2800 + dot), NEW)
            else:
                line.append("╌" if row in named else " ", OLD)
        if row in named:
            line.append(f" {named[row].name} {named[row].bits:.2f}", OLD)
        lines.append(line)
    foot = Text(no_wrap=True).append("     ╰" + "─" * columns, FAINT)
    end = f"{steps[-1].count:,} characters" if steps[-1].done >= 1 else ""
    note = Text(f"      bits per character{end:>{columns - 18}}", FAINT, no_wrap=True)
    return [*lines, foot, note]


def _filled(points: Sequence[tuple[float, float]], columns: int) -> Iterator[tuple[int, float]]:
    """(column, value) for every column from the first point's to the last's; x runs from 0 to 1.

    A value is the mean of the points in its column, or lies on the line between its neighbours where there are none.
    """
    held: dict[int, list[float]] = {}
    for x, value in points:
        held.setdefault(min(int(x * columns), columns - 1), []).append(value)
    means = {column: sum(values) / len(values) for column, values in held.items()}
    for left, right in pairwise(sorted(means)):
        for column in range(left, right):
            share = (column - left) / (right - left)
            yield column, (1 - share) * means[left] + share * means[right]
    if means:
        yield max(means), means[max(means)]


def bars(levels: Sequence[Level], ours: str) -> Table:
    """Bits per character side by side: shorter is better. The level named `ours` stands out."""
    table = Table.grid(padding=(0, 2))
    longest = max(level.bits for level in levels)
    for level in levels:
        style = NEW if level.name == ours else OLD
        bar = "█" * max(round(level.bits / longest * 40), 1)
        table.add_row(Text(level.name), Text(f"{level.bits:.3f}", style, justify="right"), Text(bar, style))
    return table


def write(console: Console, prompt: str, pieces: Iterable[str]) -> None:
    """Text that goes on from a prompt, each piece shown as soon as it comes."""
    console.print(Text(prompt, "bold"), end="", soft_wrap=True)
    for piece in pieces:
        # Not through markup or wrapping: what the model writes may hold brackets, and its newlines are its
        # own.
        console.file.write(shown(piece))
        console.file.flush()
    console.print()


def heading(console: Console, text: str) -> None:
    console.print()
    console.rule(Text(text, "bold"), align="left", style=FAINT)
    console.print()
