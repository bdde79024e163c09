"""Passes of the reference engine on a GPU, recorded as CUDA graphs and started whole.

On a GPU the reference engine waits for Python: to start one of the many small kernels of a step takes several times as
long as the kernel. So the pass of a plan (forward, backward, of either order) is recorded the second time that it
meets sizes, as what it starts on the device, and from then on that is started in one call: the same operations, in
the same order. A recording has inputs and outputs of its own, which are copied from and to those of the call.

Noise is drawn before, and copied in. Of rows of different lengths the loop is recorded, over rows of one length of
which some keep their states (elman/engines/masked.py). What cannot be recorded (operations that make the host wait,
and those of which that is not known) runs as it does in the reference engine, and `explain()` says why.
"""

from __future__ import annotations

import itertools
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx
from torch._C._functorch import peek_interpreter_stack

from elman.caches import Recent, listed, listed_in
from elman.engines.base import Bundle, Laid, LoopResult, PlanFunction
from elman.engines.masked import Rows, masked, padded
from elman.engines.reference import Reference
from elman.plan.form import Loop, Plan

Tensor = torch.Tensor

# Of the operations that neither look at memory differently nor compute element by element, those that start kernels
# and nothing else: they never wait for the device, and what they start does not depend on numbers.
_STARTS_KERNELS = {
    "mm", "bmm", "addmm", "baddbmm", "mv", "dot", "convolution", "convolution_backward", "sum", "mean", "amax",
    "amin", "prod", "argmax", "argmin", "max", "min", "var", "var_mean", "norm", "linalg_vector_norm",
    "logsumexp", "cumsum", "cumprod", "_softmax", "_softmax_backward_data", "_log_softmax",
    "_log_softmax_backward_data", "native_layer_norm", "native_layer_norm_backward", "_weight_norm_interface",
    "_weight_norm_interface_backward", "cat", "stack", "repeat", "flip", "roll", "constant_pad_nd", "clone",
    "embedding", "index_select", "gather", "scatter", "scatter_add", "slice_scatter", "select_scatter",
    "diagonal_scatter", "slice_backward", "select_backward", "diagonal_backward", "empty", "empty_like",
    "new_empty", "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like",
    "new_full", "scalar_tensor", "eye", "arange", "_to_copy", "fill", "index_add", "index_copy", "hardtanh_backward",
    "hardsigmoid_backward", "leaky_relu_backward", "elu_backward", "softplus_backward", "log_sigmoid_forward",
    "log_sigmoid_backward",
}  # fmt: skip
_PLAIN = (Tensor, torch.nn.Parameter)
KEPT = 64  # recordings
LONGEST = 100_000  # operations of the loop in a recording; each has some memory of the driver's, which nobody counts
SHARE = 4  # they have the fourth part of a device's memory, at most
AGAIN = 16  # calls before what had to make room is recorded once more

# (a function that starts kernels) -> what it gives, where its outputs lie, and what starts the kernels again.
Record = Callable[[Callable[[], Sequence[Tensor]]], tuple[Sequence[Tensor], Callable[[], None]]]


@dataclass
class Recording:
    """One pass at one size: copy into `inputs`, replay, copy out of `outputs`. used: when, by a clock that counts."""

    inputs: list[Tensor]
    outputs: Sequence[Tensor]
    replay: Callable[[], None]
    bytes: int
    used: int = 0


class _Met:
    """What a thread has met: sizes of passes -> how many more calls run by themselves before one is recorded."""

    def __init__(self) -> None:
        self.sizes = Recent(1024)
        _counted_met(self)


class _Thread(threading.local):
    """What the libraries behind PyTorch set up, they set up for every thread, and not while something is recorded: so
    a thread records what it has run."""

    def __init__(self) -> None:
        self.met = _Met()


class _Place(NamedTuple):
    """Where what runs on a stream is recorded: what is recorded in the same memory, or on the same stream (cuBLAS has a
    workspace for each), may only run one after the other."""

    pool: Any
    stream: torch.cuda.Stream


# Held from the first copy into a recording to the last copy out of it: what other threads start on the same stream then
# comes before or behind all of that. Nothing that waits for another lock happens meanwhile.
_LOCK = threading.Lock()
_PASSES: set[weakref.ref[Recorded]] = set()
_PLACES: dict[torch.cuda.Stream, _Place] = {}
_clock, _numbers = itertools.count(1), itertools.count()
_counted = listed_in("CUDA graphs", lambda one: len(one.recordings))
_counted_met = listed_in("sizes of passes that threads have met", lambda met: len(met.sizes), 1024)
_THREAD = _Thread()


class Cuda(Reference):
    """kind: the type of device that it is for. record: how; the defaults are CUDA's."""

    name = "cuda"
    by_operations = False
    has_passes = True
    holds_memory = True

    def __init__(self, kind: str = "cuda", record: Record | None = None) -> None:
        super().__init__()
        self.kind, self.record = kind, record or captured
        self._masked: weakref.WeakKeyDictionary[Loop, dict[bool, Recorded]] = weakref.WeakKeyDictionary()
        listed(f"loops of {self.name} over rows of different lengths", self._masked)

    def describe(self) -> str:
        return f"{self.name} (graphs)"

    def supports(self, loop: Loop, device: torch.device) -> str | None:
        if device.type != self.kind:
            return f"it runs on {self.kind}, not on {device.type}"
        return unrecordable([loop.graph], self.kind)

    def run(
        self, loop: Loop, values: Mapping[str, Tensor], batch_sizes: Sequence[int], reverse: bool,
        out: Mapping[str, Tensor],
    ) -> LoopResult:  # fmt: skip
        if loop.sums or not batch_sizes or batch_sizes[0] == batch_sizes[-1]:
            return super().run(loop, values, batch_sizes, reverse, out)
        ways = self._masked.setdefault(loop, {})
        if reverse not in ways:
            ways[reverse] = Recorded(masked(loop, reverse), len(loop.nodes()), self.kind, self.record)
        rows = Rows(batch_sizes, next(iter(values.values())).device)
        given = [
            padded(values[name], rows.batch) if name in loop.rowed else values[name]
            for name in loop.constants
        ]
        for name in loop.sequences:
            stepped = name in loop.stepped
            given.append(padded(values[name], rows.steps) if stepped else rows.spread(values[name]))
        given += [padded(values[state.name], rows.batch) for state in loop.states]
        made = ways[reverse](rows.steps, rows.batch, 0, 0, *given, rows.alive)
        for name, value in zip(loop.emits, made, strict=False):
            out[name].copy_(value[: rows.T] if name in loop.stepped else rows.packed(value))
        ends = made[len(loop.emits) :]
        finals = {state.name: end[: rows.B].clone() for state, end in zip(loop.states, ends, strict=True)}
        return LoopResult(finals, {})

    def passed(
        self, plan: Plan, ends: Sequence[str], single: bool, plain: PlanFunction, ragged: bool = False,
        laid: Laid | None = None, keeps: Bundle | None = None, reads: Bundle | None = None,
    ) -> PlanFunction | str:  # fmt: skip
        if ragged:
            return "where rows lie differs from batch to batch"
        if keeps is not None or reads is not None:
            return "what is kept is not worth a bundle"
        stages = [stage.graph for stage in (plan.once, plan.before, plan.after)]
        each = 0 if plan.loop is None else len(plan.loop.nodes())
        return unrecordable(stages, self.kind) or Recorded(plain, each, self.kind, self.record)


def unrecordable(graphs: Iterable[fx.Graph], kind: str | None) -> str | None:
    """What of some graphs cannot be recorded on a kind of device, as a reason; None where all can."""
    for node in (node for graph in graphs for node in graph.nodes):
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.device.type != kind:
            return f"a value lies on {value.device.type}"
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        if target._opname == "index" and all(_counts(index) for index in node.args[1]):  # type: ignore[union-attr]
            continue
        views = any(result.alias_info is not None for result in target._schema.returns)
        if target.namespace != "aten" or target._schema.is_mutable:
            return f"{target} may do more than to start kernels"
        if not (views or torch.Tag.pointwise in target.tags or target._opname in _STARTS_KERNELS):
            return f"{target} may have the host wait for the device"
    return None


def _counts(index: Any) -> bool:
    """Whether an index is of whole numbers: how many a mask takes, the host would have to be told."""
    return index is None or index.meta["val"].dtype in (torch.int64, torch.int32)


class Recorded:
    """A pass that runs by itself where a thread meets its sizes for the first time, and is recorded the second time.

    each: operations of a step.
    """

    def __init__(self, function: PlanFunction, each: int, kind: str | None, record: Record) -> None:
        self.function, self.each, self.kind, self.record = function, each, kind, record
        self.number = next(_numbers)
        self.recordings: dict[Any, Recording] = {}
        _PASSES.add(weakref.ref(self, _PASSES.discard))
        _counted(self)

    def __call__(self, steps: int, batch: int, seed: int, first: int, *tensors: Tensor | None) -> Any:
        device = next((t.device for t in tensors if t is not None), None)
        if device is None or not self._recordable(steps, batch, tensors, device):
            return self.function(steps, batch, seed, first, *tensors)
        key = (
            steps, batch, device, *_switches(device),
            *[None if t is None else (t.shape, t.stride(), t.dtype) for t in tensors],
        )  # fmt: skip
        met, mine = _THREAD.met.sizes, (self.number, key)
        waits = met.get(mine, 1)
        if key in self.recordings or waits == 0:
            with _LOCK, _current(device):
                recording = self.recordings.get(key) or self._recording(key, steps, batch, tensors, device)
                met.keep(mine, math.inf if recording is None else AGAIN)
                if recording is not None:
                    return _run(recording, tensors)
        else:
            met.keep(mine, waits - 1)
        return self.function(steps, batch, seed, first, *tensors)

    def _recordable(
        self, steps: int, batch: int, tensors: Sequence[Tensor | None], device: torch.device
    ) -> bool:
        if not (steps and batch) or steps * self.each > LONGEST:
            return False
        if device.type != self.kind or peek_interpreter_stack() is not None or _is_recorded(device):
            return False
        return all(t is None or (t.device == device and type(t) in _PLAIN) for t in tensors)

    def _recording(
        self, key: Any, steps: int, batch: int, tensors: Sequence[Tensor | None], device: torch.device
    ) -> Recording | None:
        """The pass at these sizes, recorded; None where there is no room for it, or where it fails, with a warning."""
        room, needed = _room(device), sum(t.nbytes for t in tensors if t is not None)
        if needed > room:
            return None
        before, function = _reserved(device), self.function  # a recording does not keep the pass
        try:
            with torch.inference_mode(False), torch.no_grad():  # what is recorded here may run elsewhere
                # Memory of its own for every input, also where those of the call share some.
                copies = [None if t is None else torch.empty_like(t).copy_(t) for t in tensors]
                outputs, replay = self.record(lambda: function(steps, batch, 0, 0, *copies))
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            warnings.warn(
                f"a pass could not be recorded as a CUDA graph, and runs operation by operation: {error}",
                RuntimeWarning, stacklevel=2,
            )  # fmt: skip
            return None
        inputs = [copy for copy in copies if copy is not None]
        taken = max(needed + sum(value.nbytes for value in outputs), _reserved(device) - before)
        if taken > room:
            return None
        self.recordings[key] = recording = Recording(inputs, outputs, replay, taken, next(_clock))
        _make_room(room)
        return recording


def _run(recording: Recording, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    recording.used = next(_clock)
    torch._foreach_copy_(recording.inputs, [t for t in tensors if t is not None])
    recording.replay()
    return tuple([value.clone() for value in recording.outputs])


def _make_room(room: int) -> None:
    """Recordings that were not used for longest go until there are not too many, and not too large ones."""
    passes = [one for one in [ref() for ref in _PASSES.copy()] if one is not None]
    kept = [(found.used, key, one) for one in passes for key, found in one.recordings.items()]
    kept.sort(key=lambda entry: entry[0], reverse=True)
    held = list(itertools.accumulate(one.recordings[key].bytes for _, key, one in kept))
    for number, (_, key, one) in enumerate(kept):
        if number and (number >= KEPT or held[number] > room):
            del one.recordings[key]


def captured(run: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
    """Record what a function starts on the current device, without running it. Other threads may use the device."""
    stream = torch.cuda.current_stream()
    if stream not in _PLACES:
        _PLACES[stream] = _Place(torch.cuda.graph_pool_handle(), torch.cuda.Stream(stream.device))
    place, graph = _PLACES[stream], torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, place.pool, place.stream, capture_error_mode="thread_local"):
            outputs = run()
    except BaseException:
        _clean_up(stream)
        raise
    return outputs, graph.replay


def _clean_up(stream: torch.cuda.Stream) -> None:
    """After a recording that failed: its pool stays open, and the device's generator believes that it is recorded,
    until it was in one that went well."""
    place = _PLACES.pop(stream)
    with suppress(RuntimeError):  # it is closed where the recording itself went well
        torch._C._cuda_endAllocateToPool(stream.device_index, place.pool)
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
        torch.zeros(1, device=stream.device)


def _switches(device: torch.device) -> tuple[Any, ...]:
    """What chooses kernels beside the tensors, and the stream that they are started on."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    cublas, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        stream, cublas.fp32_precision, cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        cublas.allow_fp16_reduced_precision_reduction, cublas.allow_bf16_reduced_precision_reduction,
        cublas.allow_fp16_accumulation, cudnn.enabled, cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


def _current(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _is_recorded(device: torch.device) -> bool:
    """Whether somebody else records what is started now."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _room(device: torch.device) -> int:
    """Bytes that recordings may have."""
    if device.type != "cuda":
        return 1 << 30
    return torch.cuda.get_device_properties(device).total_memory // SHARE


def _reserved(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
