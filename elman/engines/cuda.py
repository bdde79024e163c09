"""Passes of the reference engine on a GPU, recorded as CUDA graphs and started whole.

On a GPU the reference engine waits for Python: to start one of the many small kernels of a step takes several times as
long as the kernel. So the pass of a plan (forward, backward, of either order) is recorded the second time that it
meets sizes, as what it starts on the device, and from then on that is started in one call: the same kernels, in the
same order, on the same kinds of numbers, hence the same bits. A recording has inputs and outputs of its own, which
are copied from and to those of the call.

What cannot be recorded runs as it does in the reference engine, and `explain()` says why: rows of different lengths,
operations that make the host wait, and those of which that is not known. Noise is drawn before, and copied in.
"""

from __future__ import annotations

import itertools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple

import torch
from torch import fx
from torch._C._functorch import peek_interpreter_stack

from elman.caches import Recent, listed, listed_in
from elman.engines.base import Bundle, Laid, PlanFunction
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
    "new_full", "scalar_tensor", "eye", "arange", "_to_copy",
}  # fmt: skip
_PLAIN = (Tensor, torch.nn.Parameter)
KEPT = 64  # recordings
SHARE = 4  # they have the fourth part of a device's memory, at most
_ONCE, _NEVER = "once", "often, and it cannot be recorded"
_numbers = itertools.count()

# (a function that starts kernels) -> what it gives, where its outputs lie, and what starts the kernels again.
Record = Callable[[Callable[[], Sequence[Tensor]]], tuple[Sequence[Tensor], Callable[[], None]]]


class Recording(NamedTuple):
    """One pass at one size: copy into `inputs`, replay, copy out of `outputs`."""

    inputs: list[Tensor]
    outputs: Sequence[Tensor]
    replay: Callable[[], None]
    bytes: int


# (number of the pass, stream, sizes …) -> its recording. The lock is held from the first copy in to the last copy out:
# on one stream what other threads start then comes before or behind all of it.
_RECORDINGS, _LOCK = Recent(KEPT), threading.RLock()


class _Met:
    """What a thread has met: number of a pass and sizes -> how often."""

    def __init__(self) -> None:
        self.sizes = Recent(256)
        _counted(self)


class _Thread(threading.local):
    """What the libraries behind PyTorch set up, they set up for every thread, and not while something is recorded: so
    a thread records what it has run."""

    def __init__(self) -> None:
        self.met = _Met()


_counted = listed_in("sizes of passes that threads have met", lambda met: len(met.sizes), 256)
_THREAD = _Thread()


class _Place(NamedTuple):
    """Where what runs on a stream is recorded: what is recorded in the same memory, or on the same stream (cuBLAS has a
    workspace for each), may only run one after the other."""

    pool: Any
    stream: torch.cuda.Stream


_PLACES: dict[torch.cuda.Stream, _Place] = {}
listed("CUDA graphs", _RECORDINGS, KEPT)


class Cuda(Reference):
    """on: the type of device that it is for. record: how; the defaults are CUDA's."""

    name = "cuda"
    by_operations = False
    has_passes = True
    holds_memory = True

    def __init__(self, on: str = "cuda", record: Record | None = None) -> None:
        super().__init__()
        self.kind = self.on = on
        self.record = record or captured

    def describe(self) -> str:
        return f"{self.name} (graphs)"

    def supports(self, loop: Loop, device: torch.device) -> str | None:
        if device.type != self.on:
            return f"it runs on {self.on}, not on {device.type}"
        return unrecordable([loop.graph], self.on)

    def passed(
        self, plan: Plan, ends: Sequence[str], single: bool, plain: PlanFunction, ragged: bool = False,
        laid: Laid | None = None, keeps: Bundle | None = None, reads: Bundle | None = None,
    ) -> PlanFunction | str:  # fmt: skip
        if ragged:
            return "the rows of a step differ in number from batch to batch"
        if keeps is not None or reads is not None:
            return "what is kept is not worth a bundle"
        stages = [stage.graph for stage in (plan.once, plan.before, plan.after)]
        return unrecordable(stages, self.on) or Recorded(plain, self.on, self.record)


def unrecordable(graphs: Iterable[fx.Graph], kind: str) -> str | None:
    """What of some graphs cannot be recorded on a kind of device, as a reason; None where all can."""
    for node in (node for graph in graphs for node in graph.nodes):
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.device.type != kind:
            return f"a value lies on {value.device.type}"
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        views = any(result.alias_info is not None for result in target._schema.returns)
        if target.namespace != "aten" or target._schema.is_mutable:
            return f"{target} may do more than to start kernels"
        if not (views or torch.Tag.pointwise in target.tags or target._opname in _STARTS_KERNELS):
            return f"{target} may have the host wait for the device"
    return None


class Recorded:
    """A pass that runs by itself where it meets sizes for the first time, and is recorded the second time."""

    def __init__(self, function: PlanFunction, kind: str, record: Record) -> None:
        self.function, self.kind, self.record = function, kind, record
        self.number = next(_numbers)
        weakref.finalize(self, _forget, self.number)

    def __call__(self, steps: int, batch: int, seed: int, first: int, *tensors: Tensor | None) -> Any:
        device = next((t.device for t in tensors if t is not None), None)
        if device is None or not (steps and batch) or not self._recordable(tensors, device):
            return self.function(steps, batch, seed, first, *tensors)
        with _LOCK, _current(device):
            return self._run(steps, batch, tensors, device)

    def _run(self, steps: int, batch: int, tensors: Sequence[Tensor | None], device: torch.device) -> Any:
        given = [t for t in tensors if t is not None]
        key = (
            self.number, device, steps, batch, *_switches(),
            *[None if t is None else (t.shape, t.stride(), t.dtype) for t in tensors],
        )  # fmt: skip
        recording, met = _RECORDINGS.get(key), _THREAD.met.sizes
        if recording is None and met.get(key) == _ONCE:
            recording = self._recording(steps, batch, tensors, device)
        if recording is None:
            met.keep(key, _NEVER if key in met else _ONCE)
            return self.function(steps, batch, 0, 0, *tensors)
        _keep(key, recording, device)
        torch._foreach_copy_(recording.inputs, given)
        recording.replay()
        return tuple([value.clone() for value in recording.outputs])

    def _recordable(self, tensors: Sequence[Tensor | None], device: torch.device) -> bool:
        if device.type != self.kind or peek_interpreter_stack() is not None or _is_recorded(device):
            return False
        return all(t is None or (t.device == device and type(t) in _PLAIN) for t in tensors)

    def _recording(
        self, steps: int, batch: int, tensors: Sequence[Tensor | None], device: torch.device
    ) -> Recording | None:
        """The pass at these sizes; None where there is no room for it."""
        room = _room(device)
        needed = sum(t.nbytes for t in tensors if t is not None)
        if needed > room:
            return None
        before, function = _reserved(device), self.function  # a recording does not keep the pass
        try:
            with torch.inference_mode(False), torch.no_grad():  # what is recorded here may run elsewhere
                # Memory of its own for every input, also where those of the call share some.
                copies = [None if t is None else torch.empty_like(t) for t in tensors]
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
        taken = needed + sum(value.nbytes for value in outputs)
        recording = Recording(inputs, outputs, replay, max(taken, _reserved(device) - before))
        return recording if recording.bytes <= room else None


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


def _switches() -> tuple[Any, ...]:
    """What chooses kernels beside the tensors, and the stream that they are started on."""
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
    cublas, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        stream, cublas.fp32_precision, cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        cublas.allow_fp16_reduced_precision_reduction, cublas.allow_bf16_reduced_precision_reduction,
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


def _keep(key: Any, recording: Recording, device: torch.device) -> None:
    """The oldest recordings go for it."""
    _RECORDINGS.keep(key, recording)
    room = _room(device)
    while sum(one.bytes for one in _RECORDINGS.values()) > room and len(_RECORDINGS) > 1:
        _RECORDINGS.popitem(last=False)


def _forget(number: int) -> None:
    """Of a pass that is gone."""
    for key in [key for key in list(_RECORDINGS) if key[0] == number]:
        _RECORDINGS.pop(key, None)
