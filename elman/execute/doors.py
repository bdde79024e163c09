"""Three doors to one body: no gradient wanted, eager gradients, transforms of torch.func.

First derivatives run the plan that was cut for training: the forward pass keeps what a minimum cut says. When the
gradient itself is to be differentiated, the backward pass is built out of `apply` again: the sequences h(t-1) come
from the circuit with its states exposed, the gradient from the adjoint circuit, and both are differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad

from elman.adjoint import cotangent_of
from elman.circuit.form import Kind
from elman.errors import NotSupported
from elman.execute.body import Call, run
from elman.execute.program import Program, Training

Tensor = torch.Tensor


def apply(program: Program, call: Call, tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Run a circuit on tensors (in the order of `program.inputs`), differentiably.

    None stands for a starting state, or a sequence of cotangents, of zeros.
    """
    if peek_interpreter_stack() is not None:
        return list(_Transformed.apply(program, call, *tensors))
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise _no_forward_mode()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return list(_Eager.apply(program, call, *tensors))
    return list(_own(program, program.run(call, list(tensors))))


class _Eager(torch.autograd.Function):
    """The door of ordinary training."""

    @staticmethod
    def forward(ctx: Any, program: Program, call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        wants = frozenset(
            port.name for port, needed in zip(program.inputs, ctx.needs_input_grad[2:], strict=True)
            if needed and port.differentiable
        )  # fmt: skip
        training = program.training(wants)
        made = run(training.forward, call, program.named(list(tensors)))
        ctx.set_materialize_grads(False)
        ctx.program, ctx.call, ctx.wants = program, call, wants
        kept = [made[port] for port in training.pair.kept]
        ctx.save_for_backward(*tensors, *kept)
        outputs = _own(program, [made[port.name] for port in program.outputs])
        ctx.mark_non_differentiable(
            *[o for o, flows in zip(outputs, program.carrying, strict=True) if not flows]
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        program, call, wants = ctx.program, ctx.call, ctx.wants
        count = len(program.inputs)
        saved = ctx.saved_tensors  # once: reading it unpacks, which checkpointing allows only once
        tensors, kept = saved[:count], saved[count:]
        given = [c if flows else None for c, flows in zip(cotangents, program.carrying, strict=True)]
        if all(c is None for c in given):
            return (None,) * (count + 2)
        if any(c is not None and is_legacy_batchedtensor(c) for c in given):
            raise NotSupported(
                what="a batch of gradients at once (is_grads_batched=True, jacobian(vectorize=True)) is not available",
                where="elman.Recurrent",
                mend="use torch.func.jacrev, or leave vectorize=False",
            )
        if torch.is_grad_enabled() or peek_interpreter_stack() is not None:
            gradients = _differentiable(program, call, wants, tensors, given)
        else:
            training = program.training(wants)
            values: dict[str, Tensor | None] = dict(zip(training.pair.kept.values(), kept, strict=True))
            gradients = _gradients(training, call, program, tensors, given, values)
        return (None, None, *(gradients.get(port.name) for port in program.inputs))


def _own(program: Program, made: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Outputs as tensors of their own rather than views, so that users may write into them where autograd can tell."""
    return tuple(
        value.clone() if shared else value.detach()
        for value, shared in zip(made, program.sharing, strict=True)
    )


def _gradients(
    training: Training, call: Call, program: Program, tensors: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None], values: dict[str, Tensor | None],
) -> dict[str, Tensor]:  # fmt: skip
    """Run a backward plan: values of the forward pass and cotangents in, input port -> gradient out."""
    known = dict(program.named(list(tensors))) | values
    known |= {
        cotangent_of(program.circuit, port.name): c
        for port, c in zip(program.outputs, cotangents, strict=True)
    }
    inputs = {p.name: known.get(p.name) for p in training.backward.circuit.inputs if p.kind is not Kind.NOISE}
    made = run(training.backward, call, inputs)
    return {
        name.removeprefix("d_"): value.clone() if name in training.shared else value
        for name, value in made.items()
    }


def _differentiable(
    program: Program, call: Call, wants: frozenset[str], tensors: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> dict[str, Tensor]:  # fmt: skip
    """The gradient as a differentiable function of inputs and cotangents."""
    adjoint = program.adjoint(wants)
    known: dict[str, Tensor | None] = dict(program.named(list(tensors)))
    states = [port.name for port in program.inputs if port.kind is Kind.STATE]
    if states:
        exposed = program.exposed
        for port, value in zip(exposed.outputs, apply(exposed, call, tensors), strict=True):
            if port.name.endswith("_before") and port.wire in states and port.kind is Kind.SEQUENCE:
                known[port.wire] = value
    known |= {
        cotangent_of(program.circuit, port.name): c
        for port, c in zip(program.outputs, cotangents, strict=True)
    }
    made = apply(adjoint, call, [known.get(port.name) for port in adjoint.inputs])
    return {port.name.removeprefix("d_"): value for port, value in zip(adjoint.outputs, made, strict=True)}


class _Transformed(torch.autograd.Function):
    """The door of torch.func: grad and vjp to any order; vmap one example at a time; no forward mode."""

    @staticmethod
    def forward(program: Program, call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return _own(program, program.run(call, list(tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        program, call, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.program, ctx.call = program, call
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(
            *[o for o, flows in zip(output, program.carrying, strict=True) if not flows]
        )

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
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _no_forward_mode()

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        program, call, *tensors = args
        if program.has_noise and info.randomness == "error":
            raise NotSupported(
                what="this cell draws random numbers inside torch.func.vmap", where=program.circuit.name,
                mend='say vmap(…, randomness="different") or "same"',
            )  # fmt: skip
        results = []
        for i in range(info.batch_size):
            one = [
                t if t is None or dim is None else t.select(dim, i)
                for t, dim in zip(tensors, in_dims[2:], strict=True)
            ]
            seed = call.seed + (i if info.randomness == "different" else 0)
            results.append(apply(program, replace(call, seed=seed), one))
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)


def _no_forward_mode() -> NotSupported:
    return NotSupported(
        what="forward-mode derivatives (torch.func.jvp, jacfwd, dual tensors) are not available yet",
        where="elman.Recurrent",
        mend="use reverse mode: torch.func.grad, vjp, jacrev, or loss.backward()",
    )
