"""A call that has come before, told apart and handed on by one native object (native/again.hpp).

Most calls are one of the latest again, on other numbers. Comparing takes a microsecond or two there, and what the call
comes to is called at once. Whatever differs in anything, it answers None, and the call goes the way of all calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch._C import _is_any_autocast_enabled
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack

from elman.circuit.structure import NOTHING, TENSOR, Structure
from elman.execute import ending
from elman.recurrent.budget import GRANTED
from elman.trace.initial import own_state
from elman.trace.modes import has_no_memory

try:
    from elman import _native
except ImportError:  # no compiler was there when elman was installed
    _native: Any = None

Tensor = torch.Tensor
NO_LEVEL = -1  # forward_ad's, where there are no dual numbers


def never(x: Any, state: Any) -> None:
    """The `repeat` of a call that has to go the way of all calls."""


def repeat(layer: Any, bound: Any, noted: Any, args: Any, single: bool, any_length: bool) -> Any:
    """`(x, state) -> results or None` for calls like this one, while gradients are recorded, or not, as they are now.

    noted: the call, as bound, a BoundCall, has Noted it, outside of transforms and levels of dual numbers. args: its
    Arguments, as users gave them. single: whether it is a step. any_length: for calls of any T, of which not all steps
    need happen: `(x, state) -> the program's inputs or None`, without a state that the cell says itself.
    """
    binding, layout, call, names = bound.binding, noted.layout, noted.call, vars(layer)
    whole = single == (layout is None)
    plain = not (args.taught or args.contexts or args.packed) and args.weight is None
    if _native is None or binding is None or not (whole and plain) or bound.has_noise:
        return never
    of_x, of_state = args.structures[:2]
    if any(map(has_no_memory, binding.fixed(bound.cell))):
        return never
    if call.memory is not None or not (_is_flat(of_x) and _is_flat(of_state)):
        return never
    gradients = torch.is_grad_enabled()
    target, head = (_together, ()) if any_length else ending(binding.program, call, single, gradients)
    answers = [
        (_is_any_autocast_enabled, False), (peek_interpreter_stack, None), (torch._C._len_torch_dispatch_stack, 0),
        (torch._C._is_tracing, False), (GRANTED.get, None),
        (torch._C._len_torch_function_stack, len(modes := _get_current_function_mode_stack())),
        *((partial(torch._C._get_function_stack_at, i), mode) for i, mode in enumerate(modes)),
    ]  # fmt: skip
    same = [
        (names, "reverse", bound.reverse), (names, "engine", bound.engine), (names, "_memory", None),
        (layer._modules, "cell", bound.cell), (vars(forward_ad), "_current_level", NO_LEVEL),
    ]  # fmt: skip
    start = None
    if bound.from_cell and any_length:  # it is asked for when it is sure that this is such a call
        args, of_state = args._replace(states=[]), NOTHING
    elif bound.from_cell:
        start = partial(own_state, bound.cell, call.batch if layout is None else layout.batch)
    arguments = _value(of_x, args.xs), _value(of_state, args.states)
    try:
        return _native.Again(
            [bound.unchanged], answers, same, target, head, bound.numbered(args), arguments, start,
            int(any_length), gradients,
        )  # fmt: skip
    except ValueError:  # a tensor that cannot be described, or is of a class of its own
        return never


def _together(*tensors: Any) -> tuple[Any, ...]:
    return tensors


def _is_flat(structure: Structure) -> bool:
    return structure in (TENSOR, NOTHING) or (structure[0] == "tuple" and {*structure[1:]} == {TENSOR})


def _value(structure: Structure, tensors: Sequence[Tensor]) -> Any:
    return tuple(tensors) if structure[0] == "tuple" else tensors[0] if tensors else None
