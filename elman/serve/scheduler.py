"""Texts that are written together: one thread owns a stream of the model, in which each text has a row.

    scheduler = Scheduler(model)
    job = scheduler.submit([Ask(tokenizer.encode("The ").numpy(), most=100, seed=1)])[0]
    job.result().text

A row joins at the next step and leaves when its text ends. Between two steps at most one block of one prompt is read
(`elman.serve.reading`); its last symbols are stepped through beside what the others write. A text is a function of what
was asked, its seed and the weights: bits of a row depend on no other row, random numbers on the row's key alone.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from elman.circuit.structure import fill, flatten
from elman.errors import ElmanError, InputError, StateError
from elman.models import LanguageModel
from elman.serve.asked import Ask, Job, SchedulerCounts, Scored
from elman.serve.prefixes import Prefixes
from elman.serve.reading import BLOCK, Reader
from elman.serve.sampling import drawn, key, log_probabilities, uniform
from elman.serve.written import Spelling, Stops

# Seconds between two words to the readers, and for each of them besides: to wake one and to send takes some of them.
_PACE, _PACE_EACH = 0.002, 0.0001
_LOOK = 0.03  # between two looks at the units of a row that somebody watches, and at the clock
_SHOWN = 1024  # units of a layer that are shown at most


class Busy(ElmanError):
    """As many texts are being written as there may be."""


class Scheduler:
    """rows: texts at once. seconds: that one may take. kept: bytes for states of texts that may go on. notify: is
    called by its thread, between two steps, with the owners of the jobs that there is news of.

    Raises InputError for a model that has no tokenizer, or is told something besides its symbols.
    """

    def __init__(
        self, model: LanguageModel, *, rows: int = 256, seconds: float = 300.0, kept: int = 2**26,
        notify: Callable[[set[Any]], None] = lambda owners: None,
    ) -> None:  # fmt: skip
        if model.tokenizer is None or model.condition is not None:
            raise InputError(
                what="a text is written by a model that reads nothing besides, and has a tokenizer", where="model",
                got="no tokenizer" if model.tokenizer is None else "a model with a context", mend="serve another one",
            )  # fmt: skip
        self.model, self.most, self.seconds, self.notify = model.eval(), rows, seconds, notify
        self.spelling, self.prefixes, self.counts = (
            Spelling(model.tokenizer),
            Prefixes(kept),
            SchedulerCounts(),
        )
        self.changed = threading.Condition()
        self.failed: str | None = None
        self._closing: float | None = None  # when what runs has to have ended
        self._new: list[Job] = []
        self._gone: list[Job] = []
        self._open: set[Job] = set()
        self._begin()
        self._thread = threading.Thread(target=self._run, name="elman-scheduler", daemon=True)
        self._thread.start()

    # --- from other threads -------------------------------------------------------------------------------------------

    @property
    def open(self) -> int:
        """Texts that have not ended."""
        return len(self._open)

    @property
    def alive(self) -> bool:
        """Whether it takes on more."""
        return self._closing is None and self._thread.is_alive()

    @property
    def exact(self) -> bool:
        """Whether prompts are read in blocks."""
        return self._reader.exact

    def submit(self, asks: Sequence[Ask], owner: Any = None) -> list[Job]:
        """Have these texts written, all or none. Raises Busy where there is no room, StateError after `close`."""
        now = time.monotonic()
        jobs = [Job(ask, self.changed, self._cancel, now, now + self.seconds, owner) for ask in asks]
        with self.changed:
            if not self.alive:
                raise StateError(what="the server is ending", where="submit", mend="ask another one")
            if len(self._open) + len(jobs) > self.most:
                raise Busy(
                    what="as many texts are being written as there may be", where="submit",
                    got=f"{len(self._open)} and {len(jobs)} more", expected=f"at most {self.most}",
                    mend="try again later",
                )  # fmt: skip
            self._new += jobs
            self._open.update(jobs)
            self.changed.notify_all()
        return jobs

    def close(self, seconds: float = 0.0) -> None:
        """Take on nothing more; what runs has so many seconds to end. Returns at once; `join` waits."""
        with self.changed:
            self._closing = min(self._closing or float("inf"), time.monotonic() + seconds)
            self.changed.notify_all()

    def join(self, seconds: float | None = None) -> None:
        """Wait until its thread has ended, for so many seconds at most."""
        self._thread.join(seconds)

    def _cancel(self, job: Job) -> None:
        with self.changed:
            if job.reason is None:
                self._gone.append(job)
                self.changed.notify_all()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """With a stream that has no rows yet."""
        self._stream = self.model.stream()
        self._reader = Reader(self.model, self._stream)
        self._reading: deque[Job] = deque()  # prompts of which a block or more is left
        self._joining: list[Job] = []
        self._rows: list[Job] = []
        self._told: set[Any] = set()
        self._ended = False  # whether one of these has ended
        self._spoken = self._looked = self._timed = 0.0
        self._pace = _PACE
        self._scoring = self._watched = False  # whether any row is
        self._next = np.zeros(0, np.int64)  # of each row: the symbol that it reads next,
        self._left = np.zeros(0, np.int64)  # how many of its prompt's it has yet to be told behind that,
        self._count = np.zeros(0, np.int64)  # symbols written,
        self._key = np.zeros(0, np.uint64)
        self._heat, self._share = np.zeros(0), np.zeros(0)
        self._unknown = self.spelling.tokenizer.unknown
        self._spoiled = False  # whether another stream has to be begun

    def _run(self) -> None:
        while True:
            with self.changed:
                busy = self._rows or self._reading
                if not busy and not self._new and not self._gone and self._closing is None:
                    self.changed.wait()
                new, gone, closing = self._new, self._gone, self._closing
                self._new, self._gone = [], []
            if closing is not None and not busy and not new:
                return
            try:
                if self._spoiled:
                    self._begin()
                self._turn(new, gone, closing)
            except Exception as error:  # nothing of one request may end the others' server
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """What there was ends, and its owners are told. The next turn begins another stream, for what has come since:
        where there is no memory for one, that turn fails likewise, and the one after it tries again."""
        traceback.print_exc(file=sys.stderr)
        self.failed, self._spoiled = type(error).__name__, True
        self._rows, self._reading, self._joining = [], deque(), []
        with self.changed:
            there = self._open.difference(self._new)
        for job in there:
            self._end(job, "error")
        self._tell()

    def _turn(self, new: list[Job], gone: list[Job], closing: float | None) -> None:
        """At most a block, and a step."""
        for job in new:
            self._arrive(job)
        ends = {job: "cancelled" for job in gone if job.reason is None}
        if (now := time.monotonic()) - self._timed > _LOOK:
            self._timed = now
            for job in [*self._rows, *self._reading]:
                if closing is not None and now >= closing:
                    ends.setdefault(job, "closed")
                elif job.due < now:
                    ends.setdefault(job, "timeout")
        if ends:
            self._leave(ends)
        if self._reading:
            self._read()
        if self._joining:
            self._join()
        if self._rows:
            self._step()
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if not self._told or (self._rows and now - self._spoken < self._pace):
            return
        told, self._told, self._spoken = self._told, set(), now
        self._pace = _PACE + _PACE_EACH * len(told)
        self.notify(told)
        if self._ended:
            self._ended = False
            with self.changed:
                self.changed.notify_all()

    # --- prompts ------------------------------------------------------------------------------------------------------

    def _arrive(self, job: Job) -> None:
        ask = job.ask
        last = int(ask.prompt[-1])
        job.spell, job.rest = self.spelling.begun(last)
        job.stops = Stops(ask.stop) if ask.stop else None
        if not ask.most and not ask.of_prompt:
            return self._end(job, "length")
        if ask.of_prompt and ask.logprobs is not None:  # nothing foretells the first
            job.scored.append(Scored(int(ask.prompt[0]), None, {}))
        if not ask.of_prompt:
            # The last symbol is stepped in any case: what follows it is what is asked.
            job.fed, job.state = self.prefixes.longest(ask.prompt, len(ask.prompt) - 1)
            job.known = job.fed
            self.counts.known += job.fed
        job.state = job.state or self._reader.initial
        whole = not ask.of_prompt and self._reader.exact and len(ask.prompt) - 1 - job.fed >= BLOCK
        if whole:
            job.seen = self.prefixes.seen(ask.prompt[: job.fed])
        (self._reading if whole else self._joining).append(job)
        return None

    def _read(self) -> None:
        """A block of the prompt whose turn it is."""
        begun, job = time.perf_counter(), self._reading.popleft()
        symbols = job.ask.prompt[job.fed : job.fed + BLOCK]
        job.state = self._reader.block(symbols, job.state or [])
        job.fed += BLOCK
        self.prefixes.keep_on(job.seen, job.fed, symbols, job.state)
        if len(job.ask.prompt) - 1 - job.fed >= BLOCK:
            self._reading.append(job)
        else:
            self._joining.append(job)
        self.counts.blocks += BLOCK
        self.counts.block_seconds += time.perf_counter() - begun

    def _join(self) -> None:
        """All that wait become rows, behind the others."""
        jobs, self._joining = self._joining, []
        states = [job.state or [] for job in jobs]
        self._stream.add(
            state=fill(self._reader.structure, [torch.cat(parts) for parts in zip(*states, strict=True)])
        )
        for job in jobs:
            job.state = None
        asks = [job.ask for job in jobs]
        seeds = [secrets.randbits(62) if ask.seed is None else ask.seed for ask in asks]
        self._rows += jobs

        def more(before: np.ndarray, values: list[Any]) -> np.ndarray:
            return np.concatenate([before, np.array(values, before.dtype)])

        self._next = more(self._next, [job.ask.prompt[job.fed] for job in jobs])
        self._left = more(self._left, [len(job.ask.prompt) - 1 - job.fed for job in jobs])
        self._count = more(self._count, [0] * len(jobs))
        self._key = more(self._key, [key(seed, ask.choice) for seed, ask in zip(seeds, asks, strict=True)])
        self._heat = more(self._heat, [ask.temperature for ask in asks])
        self._share = more(self._share, [ask.top_p for ask in asks])
        self._note()

    def _note(self) -> None:
        """What rows there are now."""
        self._scoring = any(job.ask.logprobs is not None for job in self._rows)
        self._watched = any(job.ask.watched for job in self._rows)

    # --- a step -------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        begun, rows = time.perf_counter(), self._rows
        logits = self._stream.step(self._next)
        ends: dict[Job, str] = {}
        if self._left.any():
            which = np.flatnonzero(self._left == 0)
            self._tell_on(np.flatnonzero(self._left), logits)
        else:
            which = np.arange(len(rows))
        if len(which):
            some = logits if len(which) == len(rows) else logits[which]
            raw = self._scored(which, some) if self._scoring else {}
            if self._unknown is not None:
                some[:, self._unknown] = -np.inf  # it has no text
            u = uniform(self._key[which], self._count[which])
            symbols = drawn(some, self._heat[which], self._share[which], u)
            self._next[which], now = symbols, time.monotonic()
            self._count[which] += 1
            for n, (i, symbol) in enumerate(zip(which.tolist(), symbols.tolist(), strict=True)):
                if (reason := self._write(rows[i], symbol, raw.get(n), now)) is not None:
                    ends[rows[i]] = reason
            self.counts.written += len(which)
        if self._watched and begun - self._looked > _LOOK:
            self._look(begun)
        if ends:
            self._leave(ends, keep=True)
        self.counts.steps += 1
        self.counts.step_seconds += time.perf_counter() - begun

    def _tell_on(self, which: np.ndarray, logits: np.ndarray) -> None:
        """The next symbols of prompts that are still read."""
        self._left[which] -= 1
        self.counts.stepped += len(which)
        for i in which.tolist():
            job = self._rows[i]
            symbol = int(job.ask.prompt[len(job.ask.prompt) - 1 - self._left[i]])
            self._next[i] = symbol
            if job.ask.of_prompt and job.ask.logprobs is not None:
                row = log_probabilities(logits[i : i + 1])[0]
                job.scored.append(_score(row, symbol, job.ask.logprobs))

    def _scored(self, which: np.ndarray, logits: np.ndarray) -> dict[int, np.ndarray]:
        """log p of all symbols, by the place in `which`, of rows that are told of them."""
        asked = [n for n, i in enumerate(which.tolist()) if self._rows[i].ask.logprobs is not None]
        return dict(zip(asked, log_probabilities(logits[asked]), strict=True)) if asked else {}

    def _write(self, job: Job, symbol: int, logp: np.ndarray | None, now: float) -> str | None:
        """A symbol more; why the text ends with it, or None."""
        ask = job.ask
        if job.first is None:
            job.first = now
        self._told.add(job.owner)
        if symbol < 0:
            return "error"
        if not ask.most:  # the prompt alone was asked about
            return "length"
        job.symbols.append(symbol)
        piece = job.spell(symbol)
        if logp is not None:
            job.scored.append(_score(logp, symbol, ask.logprobs or 0))
        if job.stops is not None:
            piece, stopped = job.stops.add(piece)
            if stopped:
                job.pieces.append(piece)
                return "stop"
        if piece:
            job.pieces.append(piece)
        return "length" if len(job.symbols) >= ask.most else None

    def _look(self, now: float) -> None:
        """The units of rows that somebody watches."""
        self._looked = now
        state = self._stream.state
        for i, job in enumerate(self._rows):
            if job.ask.watched:
                job.units = {
                    f"layer {k + 1}" + f", {part + 1}" * (len(parts) > 1): _shown(one[i])
                    for k, parts in enumerate(flatten(layer, "state")[0] for layer in state)
                    for part, one in enumerate(parts)
                }

    # --- the end ------------------------------------------------------------------------------------------------------

    def _leave(self, ends: dict[Job, str], keep: bool = False) -> None:
        """Texts end. keep: their states, since they have just made a step."""
        gone = [i for i, job in enumerate(self._rows) if job in ends]
        if keep and self.prefixes.most:
            states = flatten(self._stream.state, "state")[0]
            for i in gone:
                job = self._rows[i]
                if ends[job] != "error" and job.symbols:
                    seen = np.concatenate([job.ask.prompt, np.array(job.symbols[:-1], np.int64)])
                    self.prefixes.keep(seen, [tensor[i : i + 1].clone() for tensor in states])
        if gone:
            self._stream.drop(gone)
            out = set(gone)
            self._rows = [job for i, job in enumerate(self._rows) if i not in out]
            for name in ("_next", "_left", "_count", "_key", "_heat", "_share"):
                setattr(self, name, np.delete(getattr(self, name), gone))
            self._note()
        self._reading = deque(job for job in self._reading if job not in ends)
        self._joining = [job for job in self._joining if job not in ends]
        for job, reason in ends.items():
            self._end(job, reason)

    def _end(self, job: Job, reason: str) -> None:
        if reason != "stop" and job.rest is not None:
            piece, stopped = job.rest(), False
            if job.stops is not None:
                piece, stopped = job.stops.add(piece)
                piece += "" if stopped else job.stops.rest()
            if piece:
                job.pieces.append(piece)
            reason = "stop" if stopped else reason
        self._told.add(job.owner)
        with self.changed:
            job.reason, self._ended = reason, True
            self._open.discard(job)


def _score(logp: np.ndarray, symbol: int, count: int) -> Scored:
    top = np.argsort(-logp, kind="stable")[:count]
    return Scored(symbol, float(logp[symbol]), {int(k): float(logp[k]) for k in top})


def _shown(units: torch.Tensor) -> list[int]:
    """Units in hundredths, -100 … 100."""
    return (units.flatten()[:_SHOWN].float().clamp(-1, 1) * 100).round().int().tolist()
