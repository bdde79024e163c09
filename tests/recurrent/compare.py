"""One call of `elman.Recurrent` and the eager loop over the same cell, ready to be compared."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import elman
from elman import noise
from elman.circuit.form import Kind
from tests import eager
from tests.cases import Case

Tensor = torch.Tensor
Named = dict[str, Tensor | None]


@dataclass
class Inputs:
    """The arguments of one call; every float tensor is a leaf that wants a gradient."""

    T: int
    B: int
    x: Any
    state: Any
    context: Any
    steps: int | None

    @classmethod
    def of(
        cls, case: Case, T: int, B: int, dtype: torch.dtype = torch.float64, seed: int = 0, **sizes: int
    ) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        trees = [case.x(T, B, generator, dtype, **sizes)]
        trees += [draw(B, generator, dtype, **sizes) for draw in (case.state, case.context)]
        pytree.tree_map(_want, trees)
        return cls(T, B, *trees, case.steps(T))

    def leaves(self) -> dict[str, Tensor]:
        named = {"x": self.x, "state": self.state, "context": self.context}
        return {
            name + pytree.keystr(path): leaf
            for name, tree in named.items()
            for path, leaf in pytree.tree_flatten_with_path(tree)[0]
            if isinstance(leaf, Tensor) and leaf.requires_grad
        }


def _want(leaf: Any) -> Any:
    return leaf.requires_grad_() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


@dataclass
class Result:
    """What a call returned, and the gradients of a random projection of it."""

    values: Named
    gradients: Named


def ours(rnn: elman.Recurrent, inputs: Inputs, *, seed: int = 5, teacher: Any = None) -> tuple[Any, Any]:
    """The call itself, with torch's default generator seeded right before it."""
    torch.manual_seed(seed)
    return rnn(inputs.x, inputs.state, steps=inputs.steps, context=inputs.context, teacher=teacher)


def theirs(rnn: elman.Recurrent, inputs: Inputs, *, seed: int = 5, teacher: Any = None) -> tuple[Any, Any]:
    """The eager loop over the same cell; noise is that of `ours`, which must have run before."""
    return eager.unroll(
        rnn.cell, inputs.x, inputs.state, context=inputs.context, steps=inputs.steps, reverse=rnn.reverse,
        teacher=teacher, replay=replay_of(rnn, inputs, seed),
    )  # fmt: skip


def replay_of(rnn: elman.Recurrent, inputs: Inputs, seed: int) -> eager.Replay | None:
    """The random numbers that `ours` drew, to be fed to the eager cell."""
    ports = rnn.circuit.inputs_of(Kind.NOISE)
    if not ports:
        return None
    torch.manual_seed(seed)
    drawn = int(torch.randint(2**62, ()).item())
    numbers = [noise.draw(port, i, drawn, 0, inputs.T, inputs.B) for i, port in enumerate(ports)]
    return lambda t: noise.Replay([values[t] for values in numbers])


def flat(outputs: Any, final: Any) -> Named:
    """The tensors of a call's results by name."""
    return {
        name + pytree.keystr(path): leaf
        for name, tree in (("outputs", outputs), ("final", final))
        for path, leaf in pytree.tree_flatten_with_path(tree)[0]
        if isinstance(leaf, Tensor)
    }


def projection(values: Named, seed: int = 7) -> Tensor | None:
    """A random projection of everything that carries a gradient; the same numbers for every dtype."""
    total = None
    for number, value in enumerate(values.values()):
        if value is None or not value.requires_grad:
            continue
        generator = torch.Generator().manual_seed(seed + 1000 * number)
        weight = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        part = (value * weight).sum()
        total = part if total is None else total + part
    return total


def gradients(values: Named, wanted: dict[str, Tensor], *, create_graph: bool = False) -> Named:
    total = projection(values)
    if total is None or not wanted:
        return dict.fromkeys(wanted)
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True, create_graph=create_graph)
    return dict(zip(wanted, found, strict=True))


def wanted_of(rnn: elman.Recurrent, inputs: Inputs) -> dict[str, Tensor]:
    """Everything that wants a gradient: parameters and inputs."""
    return {**dict(rnn.cell.named_parameters()), **inputs.leaves()}


def each_alone(rnn: elman.Recurrent, inputs: Inputs) -> tuple[dict[str, Named], dict[str, Named]]:
    """(ours, theirs): by result, the gradients where nothing flows back but what comes from it alone."""
    wanted, made = wanted_of(rnn, inputs), []
    for run in (ours, theirs):
        results = {name: value for name, value in flat(*run(rnn, inputs)).items() if value is not None}
        reaching = {name: value for name, value in results.items() if value.requires_grad}
        made.append({name: _of_one(value, wanted) for name, value in reaching.items()})
    return made[0], made[1]


def _of_one(value: Tensor, wanted: dict[str, Tensor]) -> Named:
    found = torch.autograd.grad(
        value.square().sum(), list(wanted.values()), allow_unused=True, retain_graph=True
    )
    return dict(zip(wanted, found, strict=True))


def both(rnn: elman.Recurrent, inputs: Inputs, *, teacher: Any = None) -> tuple[Result, Result]:
    """(ours, theirs), with the gradients of parameters, inputs and teacher."""
    wanted = wanted_of(rnn, inputs)
    wanted |= {"teacher": teacher} if isinstance(teacher, Tensor) and teacher.requires_grad else {}
    made = []
    for run in (ours, theirs):
        values = flat(*run(rnn, inputs, teacher=teacher))
        made.append(Result(values, gradients(values, wanted)))
    return made[0], made[1]


def assert_equal(got: Named, expected: Named, tolerance: float = 1e-10) -> None:
    """The same names and, up to rounding, the same numbers; no gradient is the same as zeros."""
    assert list(got) == list(expected)
    for name, value in got.items():
        other = expected[name]
        if value is None or other is None:
            present = other if value is None else value
            assert present is None or not present.any(), f"{name}: {value} against {other}"
            continue
        assert value.shape == other.shape, f"{name}: {list(value.shape)} against {list(other.shape)}"
        assert value.dtype == other.dtype, f"{name}: {value.dtype} against {other.dtype}"
        torch.testing.assert_close(
            value, other, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def distances(got: Named, expected: Named) -> dict[str, float]:
    """By name, the largest distance in units of the largest expected number."""
    found = {}
    for name, value in got.items():
        other = expected[name]
        if value is not None and other is not None and value.is_floating_point() and value.numel():
            scale = max(float(other.detach().abs().max()), 1e-3)
            found[name] = float((value.detach().double() - other.detach().double()).abs().max()) / scale
    return found


def through_what_is_written(run: Any, x: Tensor, wanted: list[Tensor], way: str, apart: bool) -> Any:
    """Gradients of a loss of outputs and final states that are written into, by one of the ways in which autograd keeps
    what a call needs. run: x -> (outputs, final state)."""
    with torch.autograd.graph.save_on_cpu() if way == "kept by hooks" else contextlib.nullcontext():
        if way == "checkpointed":
            value: Any = checkpoint(_written, run, x, apart, use_reentrant=False)
        else:
            value = _written(run, x, apart)
    gradients = torch.autograd.grad(value, wanted, create_graph=way == "differentiated twice")
    if way != "differentiated twice":
        return gradients
    return torch.autograd.grad(torch.stack([g.pow(2).sum() for g in gradients]).sum(), wanted)


def _written(run: Any, x: Tensor, apart: bool) -> Tensor:
    """A loss of outputs and final states that are written into; `apart`: of copies of them."""
    outputs, final = run(x)
    ends = pytree.tree_leaves(final)
    if apart:
        outputs, ends = outputs.clone(), [end.clone() for end in ends]
    outputs *= (torch.arange(outputs.shape[1]) % 2 == 0).to(x.dtype)[:, None]
    outputs[:, 0, 1:] = 2.0
    outputs.exp_()
    for end in ends:
        end.mul_(3)
    return torch.stack([value.pow(3).sum() for value in (outputs, *ends)]).sum()
