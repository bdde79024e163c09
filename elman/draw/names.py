"""The names that a user's code gives to values: `r` of `r = torch.sigmoid(…)`, found again in a circuit.

The step runs once on random numbers while Python's tracer notes what every local variable holds; the circuit's graph
runs on the same numbers; where the two hold the same numbers they mean the same value. That works for code written by
anybody, over as many lines as it likes, and whatever the circuit's normal form has made of it. In an adjoint the same
run tells, through hooks, what gradient reached which variable.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from elman import cells, nn, noise
from elman.circuit.form import ROWS, Circuit, Kind, results_of

Tensor = torch.Tensor
NABLA = "∇"
_BATCH = 17  # rows: enough that two values are alike in all of them only where they mean the same
_TORCH = str(Path(torch.__file__).parent)
_ELMAN = str(Path(cells.__file__).parent)
_ALL = {cells.__file__, nn.__file__}  # of elman's own files: what users would have written
_PYTHON = str(Path(contextlib.__file__).parent)  # the standard library
_RETURNED = "\0"  # what a step returns without giving it a name


@dataclass
class Note:
    """A local variable and what it held; depth: how many calls of the user's code lead to it."""

    depth: int
    name: str
    value: Tensor


@dataclass(frozen=True)
class Heard:
    """What one run of a step on random numbers has told: the numbers, and what each variable held.

    inputs: those of the circuit, and the values of its nodes by name, as stages of its plan take them in.
    """

    inputs: dict[str, Tensor]
    notes: tuple[Note, ...]
    word: str

    def names(self, graph: fx.Graph, inputs: Mapping[str, Tensor] | None = None) -> dict[fx.Node, str]:
        """Node of a graph that computes on these numbers -> the name of the variable that held its value."""
        if not self.notes:
            return {}
        results = set(results_of(graph).values())
        holds: dict[int, list[fx.Node]] = {}
        for node, value in values(graph, inputs or self.inputs).items():
            number = next((i for i, note in enumerate(self.notes) if _same(note.value, value)), None)
            if number is not None:
                holds.setdefault(number, []).append(node)
        named = {}
        for number, nodes in holds.items():
            last = [node for node in nodes if node in results]
            node = last[0] if last else nodes[0]  # of several that hold the same the one that is handed on
            named[node] = self.notes[number].name.replace(_RETURNED, self.word)
        return named


def listen(circuit: Circuit) -> Heard:
    """Run the step once on random numbers and note what its variables hold; nothing where it cannot run on them."""
    inputs = _random(circuit)
    notes: list[Note] = []
    try:
        drawn = [inputs[port.name] for port in circuit.inputs_of(Kind.NOISE)]
        with noise.Replay([value.detach() for value in drawn]), _noting(notes):
            circuit.recorded().step(dict(inputs))
    except Exception:  # whatever a user's code raises on numbers that mean nothing
        notes = []
    inputs = {name: value.detach() for name, value in inputs.items()}
    notes.sort(key=lambda note: note.depth)
    states = [inputs[port.name] for port in circuit.inputs if port.path.startswith("state")]
    held = [note.name for value in states[:1] for note in notes if _same(note.value, value)]
    return Heard(inputs, tuple(notes), held[0] if held else "h")


def names(circuit: Circuit) -> dict[fx.Node, str]:
    """Node of the circuit's graph -> the name of the variable that held it; `∇r` for the gradient of what r held."""
    return listen(circuit).names(circuit.graph)


def _random(circuit: Circuit) -> dict[str, Tensor]:
    """Numbers for every input of the step, at one time step."""
    signature = circuit.signature
    captured = signature.captured if signature is not None else {}
    generator = torch.Generator().manual_seed(5)
    inputs: dict[str, Tensor] = {}
    for port in circuit.inputs:
        size = (*([_BATCH] if port.rows else []), *port.shape)
        if port.name in captured:
            inputs[port.name] = captured[port.name]
        elif port.dtype.is_floating_point or port.dtype.is_complex:
            value = torch.rand(size, generator=generator, dtype=torch.float32)
            value = value if port.draw == "uniform" else 2 * value - 0.7
            if port.kind is Kind.CONSTANT and port.shape:
                value = value / port.shape[-1] ** 0.5  # so that no wide layer saturates
            inputs[port.name] = value.to(port.device, port.dtype).requires_grad_(port.differentiable)
        else:
            inputs[port.name] = torch.randint(0, 2, size, generator=generator).to(port.device, port.dtype)
    return inputs


@contextlib.contextmanager
def _noting(notes: list[Note]) -> Iterator[None]:
    """Note what the local variables of the user's code hold, while it runs."""
    depth = 0
    seen: set[tuple[str, int]] = set()

    def note(frame: FrameType) -> None:
        for name, value in frame.f_locals.items():
            if isinstance(value, Tensor):
                keep(name, value)

    def keep(name: str, value: Tensor) -> None:
        if (name, id(value)) in seen:
            return
        seen.add((name, id(value)))
        notes.append(Note(depth, name, value))  # kept, so that no other tensor gets its id
        if value.requires_grad:
            at = depth
            value.register_hook(lambda gradient: notes.append(Note(at, NABLA + name, gradient.detach())))

    def inside(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal depth
        note(frame)
        if event == "return":
            if isinstance(arg, Tensor) and depth == 1:
                keep(_RETURNED, arg)
            depth -= 1
        return inside

    def entered(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal depth
        file = frame.f_code.co_filename
        if event != "call" or (file not in _ALL and _foreign(file)):
            return None
        depth += 1
        note(frame)
        return inside

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        yield
    finally:
        sys.settrace(before)


def _foreign(file: str) -> bool:
    """Whether no user wrote a file: Python's own, torch's, elman's, or none at all."""
    library = file.startswith(_PYTHON) and not file.startswith(f"{_PYTHON}/site-packages")
    return library or file.startswith(("<", _TORCH, _ELMAN))


def values(graph: fx.Graph, inputs: Mapping[str, Any]) -> dict[fx.Node, Tensor]:
    """Every tensor of a step's graph on given numbers."""
    computed: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node.op == "placeholder":
                computed[node] = _BATCH if node.target == ROWS else inputs[str(node.target)]
            elif node.op == "call_function":
                args = map_arg(node.args, computed.__getitem__)
                computed[node] = node.target(*args, **map_arg(node.kwargs, computed.__getitem__))  # type: ignore[operator]
    return {node: value.detach() for node, value in computed.items() if isinstance(value, Tensor)}


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, and these say something."""
    if a.shape != b.shape or a.dtype != b.dtype or not a.numel():
        return False
    if not a.dtype.is_floating_point:
        return bool(torch.equal(a, b)) and a.numel() > 1
    a, size = a.detach(), float(b.abs().max())
    near = float((a - b).abs().max()) <= 1e-4 * size
    return near and (a.numel() == 1 or float((a - a.flatten()[0]).abs().max()) > 1e-3 * size)


__all__ = ["NABLA", "Heard", "listen", "names", "values"]
