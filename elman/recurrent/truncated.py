"""Truncated back-propagation through time over a stream of chunks: each k1 steps, back through k2."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from elman.circuit.structure import Structure, fill, flatten, paths
from elman.errors import InputError, InputTypeError, NotSupported, expect
from elman.recurrent.bidirectional import Bidirectional
from elman.recurrent.layer import Recurrent
from elman.recurrent.order import turned
from elman.recurrent.stack import Stack
from elman.segments.check import read_bools, read_lengths

Tensor = torch.Tensor
_NAMES = ("x", "y", "lengths", "mask", "reset")  # what a chunk may hold


@dataclass(frozen=True, eq=False)
class Window:
    """The newest steps of a stream, at most k1, each of them in one window only.

    outputs: of these steps; their gradients reach as far back as the window does, through k2 steps.
    x, y: of these steps, as the chunks had them; y is None where there is none.
    happens: bools, which of these steps happen: `outputs[happens]` beside `y[happens]` are what a loss counts.
    state: after the last of them, without its history. first: the number of the first of them, from the stream's 0.

    Sequences are `[n, B, …]`, n ≤ k1, or `[B, n, …]` where the module is batch first, and `happens` is in that order.
    """

    outputs: Any
    x: Any
    y: Any
    happens: Tensor
    state: Any
    first: int


def truncated(
    module: Callable[..., tuple[Any, Any]], chunks: Iterable[Any] | None = None, *, k1: int, k2: int | None = None,
    state: Any = None, batch_first: bool | None = None,
) -> Truncated:  # fmt: skip
    """Truncated back-propagation through time over chunks of any length: every k1 steps, back through k2.

        for window in elman.truncated(rnn, chunks, k1=20, k2=50):
            loss = cross_entropy(readout(window.outputs[window.happens]), window.y[window.happens])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    With `states[0] = state` it equals, for chunks that make up x, y of T steps,

        for first in range(0, T, k1):
            begin, stop = max(0, first - (k2 - k1)), min(first + k1, T)
            state = states[begin]
            for t in range(begin, stop):
                outputs[t], state = cell(x[t], state)
                states[t + 1] = state.detach()
            yield outputs[first:stop]

    so a loss counts each step once. The k2 - k1 older steps are run again, with the weights of now, from the state that
    they began with when they were run before. k1 = k2 is the usual way, window by window. With k2 ≥ T and k1 = T the
    gradients are those of a call on the whole.

    module: called as (x, state) -> (outputs, new state), and where not all steps happen with `mask=`, `reset=`: a
        `Recurrent`, a `Stack`, a layer of `elman.nn` or `torch.nn`, any module or function. state may be None.
    chunks: x; or (x, y); or {"x": …, "y": …, "lengths": …, "mask": …, "reset": …} of which x is needed. Each goes on
        where the one before ended: x, y `[T, B, …]`, alone or nested, T any number and B the same for all; lengths,
        mask, reset as of `Recurrent.forward`, for this chunk. A reset at a masked step counts for the next step of the
        row that happens, in whichever chunk. They are taken one by one, when a window needs them. None: see `feed`.
    k1: steps from one backward pass to the next. k2: steps that it goes back, k1 or more; None: k1.
    state: what the stream begins with, without its history; None: what the module begins with, whose gradient is taken
        by the windows that reach back to there.
    batch_first: whether sequences are `[B, T, …]`; None: as `module.batch_first` says.

    Held are k2 steps, one chunk, and a state. The last window may be shorter than k1. A window in which nothing happens
    is run and not given out. Random numbers of older steps are drawn anew.
    Raises InputError or InputTypeError for what does not fit; where a layer runs backward, which no stream can.

    Source: Williams and Peng, An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories, 1990: BPTT(h; h') with h = k2, h' = k1.
    """
    return Truncated(module, chunks, k1, k1 if k2 is None else k2, state, batch_first)


class Truncated:
    """The windows of a stream: what `truncated` gives. state: after the latest window, without its history."""

    def __init__(
        self, module: Callable[..., tuple[Any, Any]], chunks: Iterable[Any] | None, k1: int, k2: int, state: Any,
        batch_first: bool | None,
    ) -> None:  # fmt: skip
        if not callable(module):
            raise InputTypeError(
                what="what runs over a stream is a module", where="truncated(module)", got=type(module).__name__,
                expected="something that is called as (x, state) -> (outputs, new state)",
            )  # fmt: skip
        if (backward := _reads_backward(module)) is not None:
            raise InputError(
                what="a layer that reads backward begins at the end, which a stream has not reached yet",
                where="truncated(module)", got=backward, expected="layers that read forward",
                mend="call it on the whole sequence",
            )  # fmt: skip
        for name, value in (("k1", k1), ("k2", k2)):
            expect(value, int, f"{name} is a number of steps", f"truncated({name}=)")
        if not 1 <= k1 <= k2:
            raise InputError(
                what="k1 new steps are some of the k2 that a window has", where="truncated(k1=, k2=)",
                got=f"k1={k1}, k2={k2}", expected="1 ≤ k1 ≤ k2",
            )  # fmt: skip
        self.module, self.chunks, self.k1, self.k2 = module, chunks, int(k1), int(k2)
        self.state = _detached(state)
        self._time = int(bool(getattr(module, "batch_first", False) if batch_first is None else batch_first))
        self._held: deque[_Chunk] = deque()
        self._like: _Chunk | None = None  # the first chunk
        # Steps that the next window begins with, that are new in it, and that have come; the state at its beginning.
        self._begin, self._next, self._came, self._start = 0, 0, 0, self.state
        self._owed = np.zeros(0, bool)  # rows of which the next step that happens begins a new sequence

    def __iter__(self) -> Iterator[Window]:
        """The windows of all chunks, and at last of the steps that are left over."""
        if self.chunks is None:
            raise InputError(
                what="there are no chunks", where="truncated(module)", mend="pass them, or call feed(chunk) for each"
            )  # fmt: skip
        for chunk in self.chunks:
            windows = self.feed(chunk)
            del chunk  # it may be freed before the next one is made
            yield from windows
        yield from self.rest()

    def feed(self, chunk: Any) -> Iterator[Window]:
        """The windows that are whole with this chunk, for who gets chunks one by one: a step of somebody else's loop.

        Each is made when it is asked for. What is left of the chunk is new in the next window.
        """
        self._add(chunk)
        return self._windows(self.k1)

    def rest(self) -> Iterator[Window]:
        """The last window, of the steps that are left over, if there are any."""
        return self._windows(1)

    def _windows(self, least: int) -> Iterator[Window]:
        while self._came - self._next >= least:
            window = self._run(min(self._next + self.k1, self._came))
            if window is not None:
                yield window
            del window  # and its graph, before the next one is made
        # What is left of a chunk of which some steps are over would keep all of it alive while the next one is made.
        for held in self._held:
            if held.first < self._begin:
                held.cut(self._begin, self._time)

    def _run(self, stop: int) -> Window | None:
        """Run the window that ends at a step, and get ready for the next one."""
        begin, first, kind = self._begin, self._next, self._like
        assert kind is not None
        cut = max(begin, stop - (self.k2 - self.k1))  # where the next one begins
        *tensors, happens, reset = self._take(begin, stop)
        xs, ys, t = tensors[: kind.width], tensors[kind.width :], self._time
        outputs, after = [], self._start
        for a, b in ((begin, cut), (cut, stop)):
            if a == b:
                continue
            output, after = self._call([v.narrow(t, a - begin, b - a) for v in (*xs, happens, reset)], after)
            if b == cut:
                self._start = _detached(after)
            if b > first:
                outputs.append(_last(output, b - max(a, first), b - a, t))
        self._begin, self._next, self.state = cut, stop, _detached(after)
        while self._held and self._held[0].stop <= cut:
            self._held.popleft()
        new = stop - first
        xs, ys, happens = _newest(xs, new, t), _newest(ys, new, t), happens.narrow(t, first - begin, new)
        if not happens.any():
            return None
        return Window(
            _joined(outputs, t), fill(kind.structures[0], xs), fill(kind.structures[1], ys), happens.to(xs[0].device),
            self.state, first,
        )  # fmt: skip

    def _call(self, tensors: list[Tensor], state: Any) -> tuple[Any, Any]:
        *xs, happens, reset = tensors
        given = {"mask": None if happens.all() else happens, "reset": reset if reset.any() else None}
        given = {name: value for name, value in given.items() if value is not None}
        assert self._like is not None
        x = fill(self._like.structures[0], xs)
        if given and not _takes(self.module, x, state, given):
            raise InputTypeError(
                what=f"the module takes no {' and no '.join(given)}", where="truncated(module)",
                got=type(self.module).__name__, expected="module(x, state, mask=…, reset=…)",
                mend="use elman.Recurrent, or of torch.nn's layers those of elman.nn",
            )  # fmt: skip
        returned = self.module(x, state, **given)
        if not isinstance(returned, (tuple, list)) or len(returned) != 2:
            raise InputTypeError(
                what="the module does not return outputs and a state", where="truncated(module)",
                got=f"a {type(returned).__name__}", expected="(outputs, new state)",
            )  # fmt: skip
        return returned[0], returned[1]

    # --- chunks ---------------------------------------------------------------------------------------------------

    def _add(self, given: Any) -> None:
        chunk = self._read(given)
        if not chunk.steps:
            return
        self._held.append(chunk)
        self._came = chunk.stop

    def _take(self, begin: int, stop: int) -> list[Tensor]:
        parts = [
            [t.narrow(self._time, a - held.first, b - a) for t in held.tensors]
            for held in self._held
            if (a := max(begin, held.first)) < (b := min(stop, held.stop))
        ]
        return (
            parts[0]
            if len(parts) == 1
            else [torch.cat(same, self._time) for same in zip(*parts, strict=True)]
        )

    def _read(self, given: Any) -> _Chunk:
        """A chunk, checked; resets stand at steps that happen, so that it can be cut anywhere."""
        parts = _named(given)
        xs, of_x = flatten(parts["x"], "chunk['x']")
        ys, of_y = flatten(parts.get("y"), "chunk['y']")
        if not xs:
            raise InputError(what="a chunk has no tensor that says how long it is", where="chunk['x']")
        names = [*paths(of_x, "chunk['x']"), *paths(of_y, "chunk['y']")]
        order = "[B, T, …]" if self._time else "[T, B, …]"
        for name, tensor in zip(names, (*xs, *ys), strict=True):
            if tensor.dim() < 2 or tensor.shape[:2] != xs[0].shape[:2]:
                raise InputError(
                    what="the sequences of a chunk have time and batch in front, the same for all", where=name,
                    got=f"shape {list(tensor.shape)}",
                    expected=order if tensor is xs[0] else f"[{xs[0].shape[0]}, {xs[0].shape[1]}, …] as x",
                )  # fmt: skip
            if tensor.grad_fn is not None:
                raise InputError(
                    what="it has a history from before the stream, which several windows would go back through",
                    where=name, mend="compute it inside of the module that runs over the stream, or detach it",
                )  # fmt: skip
        steps, batch = xs[0].shape[self._time], xs[0].shape[1 - self._time]
        happens, reset = self._selection(parts, steps, batch)
        tensors = [*xs, *ys, *(turned(t) if self._time else t for t in (happens, reset))]
        chunk = _Chunk(self._came, steps, tensors, len(xs), (of_x, of_y))
        if self._like is None:
            # Nothing of its first steps: only what they are like.
            nothing = [t.narrow(self._time, 0, 0).clone().detach() for t in tensors]
            self._like = _Chunk(0, 0, nothing, len(xs), chunk.structures)
        self._check(chunk, names, batch)
        return chunk

    def _selection(self, parts: Mapping[str, Any], steps: int, batch: int) -> tuple[Tensor, Tensor]:
        """Which steps happen, and at which of these a sequence begins, `[T, B]` bools."""
        order: Any = turned if self._time else lambda value: value
        happens = np.ones((steps, batch), bool)
        if (lengths := parts.get("lengths")) is not None:
            happens &= np.arange(steps)[:, None] < read_lengths(lengths, steps, batch).numpy()
        if (mask := parts.get("mask")) is not None:
            happens &= read_bools(order(mask), "mask", steps, batch).numpy()
        reset = np.zeros((steps, batch), bool)
        if (given := parts.get("reset")) is not None:
            reset |= read_bools(order(given), "reset", steps, batch).numpy()
        # Steps count from 1 here; 0 is what is owed from before, and -1 nothing. A step that happens begins a sequence
        # if the latest reset is later than the latest step that happened before.
        owed = self._owed if len(self._owed) == batch else np.zeros(batch, bool)
        count = np.arange(1, steps + 1)[:, None]
        asked = np.maximum.accumulate(np.vstack([np.where(owed, 0, -1)[None], np.where(reset, count, -1)]))
        kept = np.maximum.accumulate(np.vstack([np.full((1, batch), -1), np.where(happens, count, -1)]))
        self._owed = asked[-1] > kept[-1]
        return torch.from_numpy(happens), torch.from_numpy(happens & (asked[1:] > kept[:-1]))

    def _check(self, chunk: _Chunk, names: Sequence[str], batch: int) -> None:
        like = self._like
        assert like is not None
        if chunk.structures != like.structures:
            raise InputTypeError(
                what="a chunk is not of the structure of the first one", where="chunk", got=repr(chunk.structures),
                expected=repr(like.structures),
            )  # fmt: skip
        for name, one, other in zip(names, chunk.tensors, like.tensors, strict=False):
            if one.shape[1 - self._time] != other.shape[1 - self._time]:
                raise InputError(
                    what="a chunk goes on with the rows of the one before, and has another number of them", where=name,
                    got=f"B = {batch}", expected=f"B = {other.shape[1 - self._time]}",
                    mend='drop an incomplete last batch, or fill it up and say so: {"x": …, "lengths": …}',
                )  # fmt: skip
            if _form(one) != _form(other):
                raise InputError(
                    what="a chunk is not like the first one",
                    where=name,
                    got=_form(one),
                    expected=_form(other),
                )


class _Chunk:
    """Steps first … stop - 1 of a stream. tensors: `width` of x, those of y, which steps happen, and resets."""

    def __init__(
        self, first: int, steps: int, tensors: list[Tensor], width: int, structures: tuple[Structure, Structure]
    ) -> None:  # fmt: skip
        self.first, self.steps, self.tensors = first, steps, tensors
        self.width, self.structures = width, structures

    @property
    def stop(self) -> int:
        return self.first + self.steps

    def cut(self, begin: int, time: int) -> None:
        """Forget what lies before a step."""
        gone = begin - self.first
        self.first, self.steps = begin, self.steps - gone
        self.tensors = [tensor.narrow(time, gone, self.steps).clone() for tensor in self.tensors]


def _named(chunk: Any) -> Mapping[str, Any]:
    """A chunk by names."""
    if isinstance(chunk, Tensor):
        return {"x": chunk}
    if isinstance(chunk, PackedSequence):
        raise NotSupported(
            what="a PackedSequence has its rows in another order in every chunk", where="chunk",
            mend='pass {"x": padded, "lengths": lengths}',
        )  # fmt: skip
    if isinstance(chunk, (tuple, list)) and len(chunk) == 2:
        return {"x": chunk[0], "y": chunk[1]}
    if isinstance(chunk, Mapping) and "x" in chunk and not (chunk.keys() - {*_NAMES}):
        return chunk
    names = ", ".join(map(repr, chunk)) if isinstance(chunk, Mapping) else None
    raise InputTypeError(
        what="this is no chunk of a stream", where="chunk",
        got=f"a dict of {names}" if names else f"{type(chunk).__name__}",
        expected="x, or (x, y), or a dict of x and perhaps " + ", ".join(_NAMES[1:]),
    )  # fmt: skip


def _reads_backward(module: Any) -> str | None:
    """The layer that runs from the end to the beginning, if there is one."""
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    if isinstance(module, Stack):
        return next(filter(None, map(_reads_backward, module)), None)
    backward = (
        isinstance(module, Bidirectional)
        or (isinstance(module, Recurrent) and module.reverse)
        or (isinstance(module, torch.nn.RNNBase) and module.bidirectional)
    )
    return repr(module).partition("\n")[0] if backward else None


def _takes(module: Any, x: Any, state: Any, given: Mapping[str, Any]) -> bool:
    """Whether a call with these arguments is one."""
    try:
        inspect.signature(getattr(module, "forward", module)).bind(x, state, **given)
    except TypeError:
        return False
    except ValueError:  # it does not say
        return True
    return True


def _detached(state: Any) -> Any:
    return pytree.tree_map_only(Tensor, Tensor.detach, state)


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} […, {', '.join(map(str, tensor.shape[2:]))}] on {tensor.device}"


def _newest(tensors: Sequence[Tensor], count: int, time: int) -> list[Tensor]:
    return [t.narrow(time, t.shape[time] - count, count) for t in tensors]


def _last(outputs: Any, count: int, steps: int, time: int) -> Any:
    """The last of the outputs of so many steps."""
    values, structure = flatten(outputs, "outputs")
    for path, value in zip(paths(structure, "outputs"), values, strict=True):
        if value.dim() <= time or value.shape[time] != steps:
            raise InputError(
                what="an output of the module has no time dimension", where=path, got=f"shape {list(value.shape)}",
                expected=f"[B, {steps}, …]" if time else f"[{steps}, B, …]", mend="batch_first= says where time is",
            )  # fmt: skip
    return outputs if count == steps else fill(structure, _newest(values, count, time))


def _joined(parts: Sequence[Any], time: int) -> Any:
    """Outputs of stretches of time, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    each = [flatten(part, "outputs") for part in parts]
    return fill(
        each[0][1], [torch.cat(same, time) for same in zip(*(values for values, _ in each), strict=True)]
    )
