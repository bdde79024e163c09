"""A module as a program of torch.export: PyTorch's own operations and its own loop, with T and B left open."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from elman.circuit.structure import Structure, fill, flatten, paths
from elman.export.calls import Given, ModuleCall, call_of
from elman.models.evaluating import evaluating


@dataclass(frozen=True)
class Exported:
    """The program, what goes in, leaf by leaf, and what comes out.

    module: whose parameters they are. inputs: the arguments. outputs: the user's words, one for each tensor.
    """

    program: torch.export.ExportedProgram
    module: torch.nn.Module
    inputs: tuple[Given, ...]
    outputs: tuple[str, ...]


def exported(module: torch.nn.Module, *, lengths: bool, state: bool) -> Exported:
    """Export a layer or a model. lengths, state: whether it takes them.

    What it takes and returns is nested as the module has it, in plain tuples, lists and dicts.
    """
    with evaluating(module), torch.no_grad():
        call = call_of(module, lengths=lengths, state=state)
        called = _Called(module, call)
        # Each of its own: one tensor in two places would be one argument to torch.export.
        arguments = tuple(fill(plain(one.structure), [t.clone() for t in one.tensors]) for one in call.given)
        sizes = tuple(fill(plain(one.structure), [_open(one)] * len(one.tensors)) for one in call.given)
        words: list[str] = []
        for name, result in zip(
            call.makes, call.run(*(fill(g.structure, g.tensors) for g in call.given)), strict=True
        ):
            words += paths(flatten(result, name)[1], name)
        program = torch.export.export(called, arguments, dynamic_shapes=sizes)
    return Exported(program, module, call.given, tuple(words))


def plain(structure: Structure) -> Structure:
    """The same nesting in what every Python has: tuples, lists and dicts."""
    kind = structure[0]
    if kind in ("tensor", "static"):
        return structure
    if kind == "dict":
        return ("dict", "dict", structure[2], *map(plain, structure[3:]))
    first = {"tuple": 1, "list": 1, "named": 2}.get(kind, 3)
    return ("list" if kind == "list" else "tuple", *map(plain, structure[first:]))


class _Called(torch.nn.Module):
    """A call with its arguments by name, and in plain nesting."""

    def __init__(self, module: torch.nn.Module, call: ModuleCall) -> None:
        super().__init__()
        self.module, self.call = module, call
        names = [one.name for one in call.given]
        kinds = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]

        def forward(*given: Any, **named: Any) -> tuple[Any, ...]:
            values = [*given, *(named[name] for name in names[len(given) :])]
            # No gradient passes: PyTorch's loop would make its own, without the cell's detach and custom backwards.
            nested = [
                fill(one.structure, [tensor.detach() for tensor in flatten(value, one.name)[0]])
                for one, value in zip(call.given, values, strict=True)
            ]
            return tuple([_plain(value) for value in call.run(*nested)])

        forward.__signature__ = inspect.Signature(kinds)  # type: ignore[attr-defined]
        self.forward = forward


def _plain(value: Any) -> Any:
    tensors, structure = flatten(value, "result")
    return fill(plain(structure), tensors)


def _open(one: Given) -> dict[int, Any]:
    """Which sizes of an argument's tensors stay open."""
    return {dim: torch.export.Dim.DYNAMIC for dim, axis in enumerate(one.axes) if axis is not None}
