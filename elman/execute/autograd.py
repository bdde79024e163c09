"""Three ways to one executable: no gradient wanted, eager gradients, transforms of torch.func.

First derivatives run the plan that was cut for training: the forward pass keeps what a minimum cut says. When the
gradient itself is to be differentiated, the backward pass is built out of `apply` again: the sequences h(t-1) come
from the circuit with its states exposed, the gradient from the adjoint circuit, and both are differentiable. Forward
mode does the same with the tangent circuit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad

from elman.adjoint import cotangent_ports
from elman.circuit.form import Kind
from elman.engines import by_operations
from elman.errors import InputError
from elman.execute.examples import examples
from elman.execute.executable import Call
from elman.execute.laid import packed, unpacked
from elman.execute.operator import run_named
from elman.execute.program import Program
from elman.execute.segmented import SegmentedRun, Stored, run_of
from elman.execute.vmaps import by_rule, drawing_each, vmaps
from elman.trace.batches import of_a_batch, unbatched
from elman.trace.modes import has_no_memory, looks_at_operations

Tensor = torch.Tensor


def apply(program: Program, call: Call, tensors: Sequence[Tensor | None]) -> Sequence[Tensor]:
    """Run a circuit on tensors (in the order of `program.inputs`), differentiably.

    None stands for a starting state, or a sequence of cotangents, of zeros.
    """
    if call.owner is None and (looks_at_operations() or any(map(has_no_memory, tensors))):
        call = call._replace(engine=by_operations(call.engine))
    if peek_interpreter_stack() is not None:
        if call.level is None:
            call = call._replace(level=vmaps())
            tensors = drawing_each(tensors) if program.has_noise else tensors
        results = by_rule(partial(examples, apply, program, call), partial(apply, program, call), tensors)
        return _Transformed.apply(program, call, *tensors) if results is None else results
    tensors = _written(tensors)
    if forward_ad._current_level >= 0 and any(map(_is_dual, tensors)):
        return _dual(program, call, tensors)
    if call.memory is not None:
        return _under_budget(program, call, tensors)
    if call.owner is not None:
        return _Transformed.apply(program, call, *tensors)
    if wants_gradient(tensors):
        return _Eager.apply(program, call, *tensors)
    return program.run(call, tensors)


def ending(
    program: Program, call: Call, single: bool, gradients: bool
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What `apply` comes to where no transform, no tensor that has outlived one, no dual number and no budget is about:
    a function, and its arguments before the tensors. single: for a step, whose sequences are `[B, …]`. gradients:
    whether autograd records."""
    if gradients:
        return _recorded, (program, call)
    executable = program.single if single else program.executable(call)
    return executable.function(call.engine), (call.steps, call.batch, call.seed, call.first)


def apply_again(program: Program, call: Call, tensors: Sequence[Tensor | None]) -> Sequence[Tensor]:
    """The same, under the conditions of `ending`, for a call that is like none before in its sizes."""
    if torch.is_grad_enabled():
        return _recorded(program, call, *tensors)
    return program.run(call, tensors)


def _written(tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The same with memory of their own for zeros that autograd has not written down, which only PyTorch can read."""
    for one in tensors:
        if one is not None and one._is_zerotensor():
            return [t.clone() if t is not None and t._is_zerotensor() else t for t in tensors]
    return tensors


def _under_budget(program: Program, call: Call, tensors: Sequence[Tensor | None]) -> Sequence[Tensor]:
    """The same for a call with a budget, which may well fit as it is."""
    wants = None
    if wants_gradient(tensors):
        ports = zip(program.inputs, tensors, strict=True)
        wants = frozenset(p.name for p, t in ports if t is not None and t.requires_grad and p.differentiable)
    run = run_of(program, call, wants)
    if run.fits:
        return apply(program, call._replace(engine=run.call.engine, memory=None, layout=None), tensors)
    if not wants:
        return run.forward(tensors)[0]
    return _Segmented.apply(program, call, run, wants, *tensors)


def wants_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether autograd has to record what is computed from these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _derived(cotangents: Sequence[Tensor | None]) -> bool:
    """Whether a gradient is itself to be differentiated, carries a direction, or is a batch of them."""
    if torch.is_grad_enabled() or peek_interpreter_stack() is not None:
        return True
    for cotangent in cotangents:
        if cotangent is not None and is_legacy_batchedtensor(cotangent):
            return True
    return forward_ad._current_level >= 0 and any(map(_is_dual, cotangents))


def _is_dual(tensor: Tensor | None) -> bool:
    return tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None


def _dual(program: Program, call: Call, tensors: Sequence[Tensor | None]) -> Sequence[Tensor]:
    """The door of dual numbers, which is that of transforms; sequences that lie as users have them are packed first."""
    layout = call.layout
    if layout is None or layout.lead == layout.inner:
        return _Transformed.apply(program, call._replace(layout=None), *tensors)
    given = packed(layout, call.swaps, program.laid.inputs, tensors)
    outputs = _Transformed.apply(program, call._replace(layout=None), *given)
    return unpacked(layout, call.swaps, program.laid.outputs, outputs)


def _tangents(
    program: Program, call: Call, tensors: Sequence[Tensor | None], directions: Sequence[Tensor | None],
    exposed: Sequence[Tensor],
) -> list[Tensor | None]:  # fmt: skip
    """The directions of the outputs where the inputs change along `directions`; None for those that do not change.

    exposed: the outputs of the call, states exposed.
    """
    names = [port.name for port in program.inputs]
    changing = {name: d for name, d in zip(names, directions, strict=True) if d is not None}
    tangent = program.tangent(frozenset(changing))
    values = {**dict(zip(names, tensors, strict=True)), **_states_before(program, exposed)}
    given = [
        changing.get(port.tangent_of) if port.tangent_of is not None else values[port.name]
        for port in tangent.inputs
    ]
    ports = [str(out.tangent_of) for out in tangent.outputs]
    tangents = dict(zip(ports, apply(tangent, call, given), strict=True))
    return [tangents.get(out.name) for out in program.outputs]


def _states_before(program: Program, exposed: Sequence[Tensor]) -> dict[str, Tensor]:
    """State -> its sequence h(t-1), of the outputs of a call whose states are exposed."""
    return {
        out.state: value
        for out, value in zip(program.exposed.outputs, exposed, strict=True)
        if out.kind is Kind.SEQUENCE and out.state is not None
    }


class _Eager(torch.autograd.Function):
    """The door of ordinary training. Sequences that lie as users have them are packed behind it, and outputs put back:
    by moves of rows that autograd need not know of."""

    @staticmethod
    def forward(ctx: Any, program: Program, call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        training = program.training_for(ctx.needs_input_grad[2:]).serving(call)
        values = training.forwards.run(call, tensors)
        count = len(program.outputs)
        ctx.set_materialize_grads(False)
        ctx.program, ctx.call, ctx.training, ctx.packed = program, call, training, None
        outputs = values[:count]
        ctx.save_for_backward(*tensors, *values[count:])
        if _top_saved_tensors_default_hooks(False) is not None:
            outputs = _apart(outputs, values[count:])
            ctx.packed = [_form(t) for t in (*tensors, *values[count:])]
        if training.silent:
            ctx.mark_non_differentiable(*[outputs[place] for place in training.silent])
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        program, training = ctx.program, ctx.training
        try:
            saved = ctx.saved_tensors  # once: reading it unpacks, which checkpointing allows only once
        except RuntimeError:
            saved = None
        if ctx.packed is not None and saved is not None:
            _expect_unpacked(saved, ctx.packed)
        given = _arriving(program, cotangents)
        derived = given is not None and _derived(given)
        if saved is None:
            saved = _kept_again(ctx, derived)
        if given is None:
            return (None,) * (len(program.inputs) + 2)
        if derived:
            tensors = saved[: len(program.inputs)]

            def gradients_of(given: Sequence[Tensor | None]) -> list[Tensor | None]:
                return _differentiable_in_place(program, ctx.call, training.wants, tensors, given)

            return (None, None, *of_a_batch(gradients_of, given))
        values = (*saved, *given, None)
        gradients = (*training.backwards.run(ctx.call, [values[place] for place in training.feeds]), None)
        return (None, None, *[gradients[place] for place in training.gives])


# `_Eager.apply` without what it does first, in Python: it looks for transforms and for tensors that have outlived one.
_recorded: Callable[..., Any] = super(torch.autograd.Function, _Eager).apply  # type: ignore[misc]


def _arriving(program: Program, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None] | None:
    """The cotangents of outputs through which gradients flow; None if there are none."""
    given = _written(cotangents)
    if not program.carries_all:
        given = [c if flows else None for c, flows in zip(given, program.carrying, strict=True)]
    for cotangent in given:
        if cotangent is not None:
            return given
    return None


class _Segmented(torch.autograd.Function):
    """The door of training under a budget: a segment of time after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        program: Program,
        call: Call,
        run: SegmentedRun,
        wants: frozenset[str],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        outputs, stored = run.forward(tensors)
        ctx.set_materialize_grads(False)
        ctx.program, ctx.call, ctx.run, ctx.wants = program, call, run, wants
        ctx.places, ctx.kept = stored.places, {turn: len(kept) for turn, kept in stored.kept.items()}
        kept = [tensor for part in stored.kept.values() for tensor in part]
        ctx.save_for_backward(*tensors, *stored.states, *kept)
        silent = [o for o, flows in zip(outputs, program._carrying(wants), strict=True) if not flows]
        ctx.mark_non_differentiable(*silent)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        program, run = ctx.program, ctx.run
        saved, count = ctx.saved_tensors, len(program.inputs)
        tensors, rest = saved[:count], iter(saved[count:])
        given = _arriving(program, cotangents)
        if given is None:
            return (None,) * (count + 4)
        if _derived(given):

            def gradients_of(given: Sequence[Tensor | None]) -> list[Tensor | None]:
                return _differentiable_in_place(program, ctx.call, ctx.wants, tensors, given)

            return (*_NOT_TENSORS, *of_a_batch(gradients_of, given))
        states = [next(rest) for _ in run.states]
        kept = {turn: tuple(next(rest) for _ in range(size)) for turn, size in ctx.kept.items()}
        gradients = run.backward(tensors, Stored(states, ctx.places, kept), given)
        wanted = zip(program.inputs, gradients, strict=True)
        return (*_NOT_TENSORS, *(g if port.name in ctx.wants else None for port, g in wanted))


_NOT_TENSORS = (None,) * 4  # the first arguments of _Segmented


def _differentiable_in_place(
    program: Program, call: Call, wants: frozenset[str], tensors: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> list[Tensor | None]:  # fmt: skip
    """The gradient as a differentiable function where sequences lie as users have them: they are packed for it."""
    layout = call.layout
    if layout is not None and layout.lead == layout.inner:
        layout = None
    if layout is not None:
        tensors = packed(layout, call.swaps, program.laid.inputs, tensors)
        cotangents = packed(layout, call.swaps, program.laid.outputs, cotangents)
    by_port = _differentiable(program, call._replace(layout=None), wants, tensors, cotangents)
    gradients = [by_port.get(port.name) for port in program.inputs]
    return gradients if layout is None else unpacked(layout, call.swaps, program.laid.inputs, gradients)


def _kept_again(ctx: Any, derived: bool) -> tuple[Tensor | None, ...]:
    """The tensors of a call, and what it kept, where one was written into: only those that the backward pass reads, as
    eager autograd keeps no others. derived: its gradient is to be differentiated, for which all are read.

    What was kept in the memory of an output is computed again. An input that is read is autograd's error.
    """
    program, training = ctx.program, ctx.training
    count = len(program.inputs)
    own, kept = ctx._raw_saved_tensors[:count], ctx._raw_saved_tensors[count:]
    tensors = [saved.unpack() if derived or i in training.feeds else None for i, saved in enumerate(own)]
    if derived:
        return (*tensors, *(None for _ in kept))
    try:
        return (*tensors, *(saved.unpack() for saved in kept))
    except RuntimeError:
        tensors = [saved.unpack() for saved in own]
    with torch.no_grad():
        values = training.forwards.run(ctx.call, tensors)
    return (*tensors, *values[len(program.outputs) :])


def _form(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


def _expect_unpacked(saved: Sequence[Tensor | None], packed: Sequence[Any]) -> None:
    """Raise InputError where hooks have given back something else than they were given: an engine would read memory
    that is not there."""
    for got, expected in zip(map(_form, saved), packed, strict=True):
        if got != expected:
            raise InputError(
                what="a saved tensor came back as another one", where="torch.autograd.graph.saved_tensors_hooks",
                got=_said(got), expected=_said(expected),
                mend="give back, from the hook that unpacks, a tensor of the shape, dtype and device that was packed",
            )  # fmt: skip


def _said(form: Any) -> str:
    return "None" if form is None else f"{list(form[0])} {form[1]} on {form[2]}"


def _apart(outputs: tuple[Tensor, ...], kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs that share no memory with what is kept: hooks that pack it, as checkpointing and offloading do, do not
    notice that it is written into."""
    memory = {value.untyped_storage()._cdata for value in kept}
    return tuple([o.clone() if o.untyped_storage()._cdata in memory else o for o in outputs])


def _on_their_own(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Outputs of which none is a part of a larger tensor, or one row again and again: PyTorch gives no direction to
    these."""
    return tuple(
        [
            o.clone(memory_format=torch.contiguous_format) if o._is_view() or 0 in o.stride() else o
            for o in outputs
        ]
    )


def _differentiable(
    program: Program, call: Call, wants: frozenset[str], tensors: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> dict[str, Tensor]:  # fmt: skip
    """The gradient as a differentiable function of inputs and cotangents."""
    if call.level is None:
        call = call._replace(level=0)  # its seed was drawn outside of any vmap
    adjoint = program.adjoint(wants)
    values: dict[str, Tensor | None] = {
        port.name: tensor for port, tensor in zip(program.inputs, tensors, strict=True)
    }
    if any(port.kind is Kind.STATE for port in program.inputs):
        values |= _states_before(program, apply(program.exposed, call, tensors))
    ports_of = cotangent_ports(adjoint.circuit)
    values |= {
        ports_of[port.name]: c
        for port, c in zip(program.outputs, cotangents, strict=True)
        if port.name in ports_of
    }
    gradients = apply(adjoint, call, [values.get(port.name) for port in adjoint.inputs])
    return {str(port.gradient_of): value for port, value in zip(adjoint.outputs, gradients, strict=True)}


class _Transformed(torch.autograd.Function):
    """The door of dual numbers, and of torch.func: grad, vjp, jvp and vmap to any order."""

    @staticmethod
    def forward(program: Program, call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        with torch.no_grad():
            given = _written(tensors)
            if call.owner is not None:
                return run_named(program, call, given)
            if call.memory is None:
                return _on_their_own(program.run(call, given))
            return tuple(run_of(program, call, None).forward(given)[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        program, call, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.program, ctx.call = program, call
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        # Where nobody wants a gradient, what carries one is asked for in vain, and may want a trace.
        ctx.carrying = program.carrying if any(ctx.needs_input_grad) else (True,) * len(output)
        ctx.mark_non_differentiable(*[o for o, flows in zip(output, ctx.carrying, strict=True) if not flows])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        program, call, tensors = ctx.program, ctx.call, ctx.saved_tensors
        wants = frozenset(
            port.name for port, needed in zip(program.inputs, ctx.needs_input_grad[2:], strict=True)
            if needed and port.differentiable
        )  # fmt: skip
        given = [c if flows else None for c, flows in zip(cotangents, program.carrying, strict=True)]
        if all(c is None for c in given):
            return (None,) * (len(tensors) + 2)
        gradients = _differentiable(program, call, wants, tensors, given)
        return (None, None, *(gradients.get(port.name) for port in program.inputs))

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> Any:
        program, call, tensors = ctx.program, ctx.call, ctx.saved_tensors
        tensors = [None if t is None else forward_ad.unpack_dual(t).primal for t in tensors]
        if call.level is None:
            call = call._replace(level=0)  # its seed was drawn outside of any vmap
        with unbatched():
            exposed = apply(program.exposed, call, tensors)

        def tangents_of(directions: Sequence[Tensor | None]) -> list[Tensor | None]:
            return _tangents(program, call, tensors, directions, exposed)

        tangents = of_a_batch(tangents_of, directions[2:])
        # What does not change has a direction all the same, which functorch asks for; what is cut off must have none.
        given = []
        for tangent, o, flows in zip(tangents, exposed, ctx.carrying, strict=False):
            smooth = o.is_floating_point() or o.is_complex()
            given.append(
                torch.zeros(o.shape, dtype=o.dtype, device=o.device)
                if flows and tangent is None and smooth
                else tangent
                if flows
                else None
            )
        return tuple(given)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        program, call, *tensors = args
        return examples(apply, program, call, tensors, in_dims[2:], info.batch_size, info.randomness)
