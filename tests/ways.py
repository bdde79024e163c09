"""The ways in which `make fuzz` runs a cell, each against the plain loop over it.

This file stands by itself: a failing cell is printed with the text of it behind, so that it runs wherever elman is.
A new way is a line in WAYS.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils import _pytree as pytree

import elman
from elman import noise
from elman.circuit.form import Kind
from elman.segments import Layout
from elman.verify import loop
from tests.turns import taking_turns

Tensor = torch.Tensor
NAMES = ("x", "state", "context")

# What is read before it is written, or behind where it ends, is NaN.
with contextlib.suppress(ImportError):
    from elman import _native

    _native.poison(True)


def leaves_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def stacked(trees: list[Any]) -> Any:
    return pytree.tree_map(
        lambda *each: torch.stack(each) if isinstance(each[0], Tensor) else each[0], *trees
    )


class Call:
    """One call of a layer, and what the loop makes of the same arguments.

    example: (T, B, generator) -> (x, state, context). said: of "lengths", "mask", "reset". wrap: layer -> what is
    called.
    """

    def __init__(
        self, cell: torch.nn.Module, example: Callable[..., Any], T: int, B: int, *, said: tuple[str, ...] = (),
        reverse: bool = False, wrap: Callable[[Any], Any] = lambda layer: layer, seeded: bool = True, seed: int = 0,
        **options: Any,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        self.cell, self.T, self.B, self.reverse, self.seed = cell, T, B, reverse, seed
        self.x, self.state, self.context = example(T, B, generator)
        lengths = torch.randint(1, T + 1, (B,), generator=generator)
        mask, reset = (torch.rand(T, B, generator=generator) < p for p in (0.7, 0.3))
        lengths[-1], mask[0, -1] = T, True  # a step at least
        every = {"lengths": lengths, "mask": mask, "reset": reset}
        self.said = loop.Said(**{name: every[name] for name in said})
        if said:  # what stands where nothing happens is never looked at
            nowhere = ~self.said.happens(T, B)
            for leaf in leaves_of(self.x):
                leaf[nowhere] = float("nan")
        own: Any = torch.Generator() if seeded else None  # which a compiled call does not take
        self.layer = elman.Recurrent(cell, reverse=reverse, generator=own, **options)
        self.run = wrap(self.layer)
        differentiable = [
            leaf for leaf in leaves_of((self.x, self.state, self.context)) if leaf.is_floating_point()
        ]
        self.leaves = [*(leaf.requires_grad_() for leaf in differentiable), *cell.parameters()]

    def ours(self) -> Any:
        if self.layer.generator is not None:
            self.layer.generator.manual_seed(self.seed)
        steps = None if leaves_of(self.x) else self.T
        return self.run(self.x, self.state, steps=steps, context=self.context, **self.said.given())

    def theirs(self) -> Any:
        """The loop, with the random numbers of `ours`, which has run before."""
        return loop.sequences(
            self.cell, self.x, self.state, self.context, (self.T, self.B), self.said, self.reverse,
            lambda: self.cell.initial_state(1), self._replay(),
        )  # fmt: skip

    def _replay(self) -> Any:
        if self.layer.generator is None:
            return None
        ports = self.layer.circuit.inputs_of(Kind.NOISE)
        seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(self.seed)).item())
        layout = Layout.of(self.T, self.B, torch.device("cpu"), **self.said.given())
        drawn = []
        for i, port in enumerate(ports):
            if layout.packing is None:
                rows = noise.draw(port, i, seed, 0, layout.steps, layout.pieces)
            else:
                rows = noise.draw_rows(port, i, seed, 0, layout.packing.rows)
            drawn.append(layout.unpack(rows))
        if not drawn:
            return None
        return lambda t, b: noise.Replay([v[t] if b is None else v[t, b : b + 1] for v in drawn])

    def gradients(self, results: Any, create_graph: bool = False) -> list[Tensor]:
        """Of a random projection of all results; no gradient is zeros."""
        generator, total = torch.Generator().manual_seed(7), None
        for value in leaves_of(results):
            weight = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if value.requires_grad:
                total = (value * weight).sum() + (0 if total is None else total)
        if total is None:
            return [torch.zeros_like(leaf) for leaf in self.leaves]
        found = torch.autograd.grad(
            total, self.leaves, allow_unused=True, retain_graph=True, create_graph=create_graph
        )
        return [
            torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, self.leaves, strict=True)
        ]

    def check(self, second: bool = False) -> None:
        """AssertionError where layer and loop differ, in results or gradients; second: of second order, too."""
        got = self.ours()
        expected = self.theirs()
        agree("result", leaves_of(got), leaves_of(expected), 1e-9)
        first = [self.gradients(results, create_graph=second) for results in (got, expected)]
        agree("gradient", *first, 1e-8)
        # And of one result alone: nothing flows back from the others.
        reaching = [i for i, v in enumerate(leaves_of(expected)) if v.requires_grad]
        if reaching:
            one = reaching[self.T * self.B % len(reaching)]
            agree("gradient of a part", *(self.gradients(leaves_of(v)[one]) for v in (got, expected)), 1e-8)
        if second:
            try:
                theirs = self.gradients(first[1])
            except RuntimeError as error:  # elman has the second derivative of more operations than PyTorch
                raise elman.errors.NotSupported(
                    what=f"the loop has no second derivative: {error}", where="loop"
                ) from error
            agree("second derivative", self.gradients(first[0]), theirs, 1e-7)


def agree(what: str, got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(got) == len(expected), f"{len(got)} {what}s for {len(expected)}"
    for i, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        same = ours.shape == theirs.shape and ours.dtype == theirs.dtype
        same = same and torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
        assert same, (
            f"{what} {i}: {ours.flatten()[:4].tolist()}, the loop has {theirs.flatten()[:4].tolist()}"
        )


def threads(cell: torch.nn.Module, example: Callable[..., Any]) -> None:
    """Two threads run one layer at the same time, each its own batch, from its first call on."""
    first = Call(cell, example, 5, 3, seed=1)
    second = Call(cell, example, 4, 2, seed=2)
    second.layer = second.run = first.layer
    start = threading.Barrier(2)

    def work(call: Call) -> None:
        start.wait()
        for _ in range(3):
            got = call.ours()
            expected = call.theirs()
            agree("result", leaves_of(got), leaves_of(expected), 1e-9)
            agree("gradient", call.gradients(got), call.gradients(expected), 1e-8)

    with taking_turns(lambda: work(first), lambda: work(second)):
        pass


def compiled(cell: torch.nn.Module, example: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    try:
        said = ("lengths", "reset")
        wrap = lambda layer: torch.compile(layer, backend="aot_eager", fullgraph=True)  # noqa: E731
        Call(cell, example, 4, 3, wrap=wrap, seeded=False).check()
        Call(cell, example, 4, 3, wrap=wrap, seeded=False, said=said, seed=1).check()
    finally:
        torch._dynamo.reset()


def at(tree: Any, t: int) -> Any:
    return pytree.tree_map(lambda leaf: leaf[t] if isinstance(leaf, Tensor) else leaf, tree)


def steps(cell: torch.nn.Module, example: Callable[..., Any]) -> None:
    """One step after the other: with their gradients, and as a stream."""
    call = Call(cell, example, 4, 3, seeded=False)
    state, outputs = call.state, []
    for t in range(call.T):
        output, state = call.layer.step(at(call.x, t), state, context=call.context)
        outputs.append(output)
    got = stacked(outputs), state
    expected = call.theirs()
    agree("result", leaves_of(got), leaves_of(expected), 1e-9)
    agree("gradient", call.gradients(got), call.gradients(expected), 1e-8)
    with torch.no_grad():
        stream = call.layer.stream(3, call.state)
        streamed = stacked([stream.step(at(call.x, t), context=call.context) for t in range(call.T)])
        agree("stream", leaves_of((streamed, stream.state)), leaves_of(expected), 1e-9)


def online(cell: torch.nn.Module, example: Callable[..., Any]) -> None:
    """The gradient of the weights carried forward, and that of the loop over all steps."""
    call = Call(cell, example, 4, 2, seeded=False)
    weights = [*cell.parameters()]

    def loss(output: Any, _: Any = None) -> Tensor:
        parts = [v.square().sum() for v in leaves_of(output) if v.is_floating_point()]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    outputs, _ = call.theirs()
    total = torch.stack([loss(at(outputs, t)) for t in range(call.T)]).sum()
    expected = [torch.zeros_like(w) for w in weights]
    if weights and total.requires_grad:
        found = torch.autograd.grad(total, weights, allow_unused=True)
        expected = [zeros if g is None else g for g, zeros in zip(found, expected, strict=True)]
    learner = elman.Online(call.layer, state=pytree.tree_map(torch.Tensor.detach, call.state))
    with torch.no_grad():
        for t in range(call.T):
            learner.step(at(call.x, t), None, loss, context=call.context)
    agree("online", [torch.zeros_like(w) if w.grad is None else w.grad for w in weights], expected, 1e-8)


def forward(cell: torch.nn.Module, example: Callable[..., Any]) -> None:
    """Directions, of everything that is a real number: whole, and ragged and reversed."""
    directions(Call(cell, example, 4, 2))
    directions(Call(cell, example, 5, 3, said=("lengths", "mask", "reset"), reverse=True))


def directions(call: Call) -> None:
    cell, generator = call.cell, torch.Generator().manual_seed(3)
    call.ours()  # of random numbers the loop takes those that a call has drawn

    def dual(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return forward_ad.make_dual(leaf.detach(), torch.randn(leaf.shape, generator=generator).to(leaf))

    def tangents(results: Any) -> list[Tensor]:
        pairs = [forward_ad.unpack_dual(v) for v in leaves_of(results)]
        return [torch.zeros_like(v) if tangent is None else tangent for v, tangent in pairs]

    with torch.no_grad(), forward_ad.dual_level():
        call.x, call.state, call.context = (
            pytree.tree_map(dual, v) for v in (call.x, call.state, call.context)
        )
        weights = {name: dual(p) for name, p in cell.named_parameters()}
        with _reparametrize_module(cell, weights):
            try:
                expected = call.theirs()
            except RuntimeError as error:
                raise elman.errors.NotSupported(
                    what=f"the loop has no direction: {error}", where="loop"
                ) from error
            got = call.ours()
        agree("direction", tangents(got), tangents(expected), 1e-8)


def examples(cell: torch.nn.Module, example: Callable[..., Any]) -> None:
    """Three batches at once by vmap, and the gradients of all."""
    calls = [Call(cell, example, 4, 2, seed=seed, seeded=False) for seed in range(3)]
    first = calls[0]
    given = [stacked([getattr(call, name) for call in calls]) for name in NAMES]
    dims = tuple(0 if leaves_of(tree) else None for tree in given)
    length = None if leaves_of(first.x) else first.T
    got = torch.func.vmap(
        lambda x, state, context: first.layer(x, state, steps=length, context=context), dims
    )(*given)
    expected = stacked([call.theirs() for call in calls])
    agree("result", leaves_of(got), leaves_of(expected), 1e-9)
    first.leaves = [
        *(leaf for c in calls for leaf in c.leaves[: -len([*cell.parameters()]) or None]),
        *cell.parameters(),
    ]
    agree("gradient", first.gradients(got), first.gradients(expected), 1e-8)


def way(T: int, B: int, second: bool = False, **options: Any) -> Callable[..., None]:
    return lambda cell, example: Call(cell, example, T, B, **options).check(second)


# name -> how; every cell runs all of them but those of `SHARES`, one cell in so many.
WAYS: dict[str, Callable[..., None]] = {
    "whole": way(6, 3),
    "one step, one row": way(1, 1),
    "reversed": way(6, 2, reverse=True),
    "lengths": way(6, 4, said=("lengths",)),
    "mask": way(5, 4, said=("mask",)),
    "reset": way(6, 3, said=("reset",)),
    "all, reversed": way(6, 4, said=("lengths", "mask", "reset"), reverse=True),
    "reference": way(18, 2, engine="reference"),
    "segments": way(7, 3, memory=elman.Segments(2)),
    "segments, ragged and reversed": way(
        6, 4, said=("lengths", "mask", "reset"), reverse=True, memory=elman.Segments(2)
    ),
    "second derivatives": way(3, 2, second=True),
    "steps": steps,
    "online": online,
    "forward mode": forward,
    "vmap": examples,
    "two threads": threads,
    "compiled": compiled,
}
SHARES = {
    "second derivatives": 3,
    "online": 3,
    "forward mode": 3,
    "vmap": 3,
    "two threads": 2,
    "compiled": 10,
}
QUIET = (
    "steps",
    "online",
    "vmap",
    "two threads",
    "compiled",
)  # not of cells that draw: the numbers would be others
