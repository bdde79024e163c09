"""Whether the random cells are worth testing with: what they reach, how few are useless, and that they shrink."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import hypothesis
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import eager
from tests.random_cells import RULES, Instruction, Next, Program, RandomCell
from tests.strategies import programs, random_cells
from tests.tensors import differentiable, tensors

Tensor = torch.Tensor
DRAWS = 300

# What was met in the loops of real cells, by the names that ATen has for it in eager mode. A reshape is a view there.
FORWARD = (
    "mm", "addmm", "bmm",
    "add", "mul", "tanh", "sigmoid", "sub", "relu", "rsqrt", "hardsigmoid", "maximum", "gt", "where", "clamp",
    "softplus",
    "native_layer_norm", "var_mean", "_softmax", "max",
    "slice", "view", "permute", "unsqueeze", "squeeze",
)  # fmt: skip
BACKWARD = (
    "mm", "bmm",
    "mul", "add", "tanh_backward", "sigmoid_backward", "neg", "where", "threshold_backward", "div", "sub",
    "hardsigmoid_backward", "softplus_backward",
    "sum", "cat", "expand", "view", "permute", "squeeze", "scatter",
)  # fmt: skip


class Counting(TorchDispatchMode):
    """Counts the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.met: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.met[func.overloadpacket.__name__.removesuffix("_")] += 1  # an operation in place is the same one
        return func(*args, **(kwargs or {}))


class Survey:
    """What seeded draws of random cells did in a step forward and backward: in how many each operation occurred."""

    def __init__(self) -> None:
        self.draws, self.rejected = 0, 0
        self.forward: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()
        self.programs: list[Program] = []

    def add(self, cell: RandomCell) -> None:
        self.draws += 1
        self.programs.append(cell.program)
        generator = torch.Generator().manual_seed(self.draws)
        state, xs = cell.start(3, generator), cell.sequence(1, 3, generator)
        x = None if xs is None else xs[0]
        leaves = [*differentiable(x, state), *cell.parameters()]
        try:
            with Counting() as forward:
                results = [r for r in tensors(eager.step(cell, x, state)) if r.requires_grad]
            with Counting() as backward:
                gradients = torch.autograd.grad([r.sum() for r in results], leaves, allow_unused=True)
        except (RuntimeError, TypeError, IndexError):
            self.rejected += 1
            return
        if not all(v.isfinite().all() for v in [*results, *gradients] if v is not None):
            self.rejected += 1
            return
        self.forward.update(set(forward.met))
        self.backward.update(set(backward.met))


@cache
def survey() -> Survey:
    made = Survey()

    @hypothesis.settings(
        max_examples=DRAWS, derandomize=True, database=None, phases=[hypothesis.Phase.generate]
    )
    @hypothesis.given(random_cells())
    def look(cell: RandomCell) -> None:
        made.add(cell)

    look()
    return made


@pytest.mark.conformance
@pytest.mark.parametrize("operation", FORWARD)
def test_forward_steps_reach(operation: str) -> None:
    assert survey().forward[operation] >= 3


@pytest.mark.conformance
@pytest.mark.parametrize("operation", BACKWARD)
def test_backward_steps_reach(operation: str) -> None:
    assert survey().backward[operation] >= 3


@pytest.mark.conformance
def test_few_draws_are_rejected() -> None:
    made = survey()
    assert made.draws >= DRAWS
    assert made.rejected < 0.2 * made.draws


@pytest.mark.conformance
def test_cells_of_every_kind_are_drawn() -> None:
    made = survey().programs
    used = Counter(line.rule for program in made for line in program.lines)
    assert [name for name, rule in RULES.items() if not used[name] and not rule.rich] == []
    kinds = {
        "without x": [p.inputs is None for p in made],
        "with noise": [p.noise for p in made],
        "one state": [len(p.states) == 1 for p in made],
        "three states": [len(p.states) == 3 for p in made],
        "a delay": [any(n.scale is None for n in p.nexts) for p in made],
        "the state alone": [p.output is None for p in made],
        "an output": [p.output is not None for p in made],
        "ten lines and more": [len(p.lines) >= 10 for p in made],
        "two lines at most": [len(p.lines) <= 2 for p in made],
    }
    assert [kind for kind, found in kinds.items() if sum(found) < 5] == []


@hypothesis.given(random_cells(noise=False), hypothesis.strategies.integers(0, 3))
def test_a_random_cell_runs_over_a_sequence(cell: RandomCell, seed: int) -> None:
    """Values stay finite and moderate, gradients too, and each row is a sequence of its own."""
    generator = torch.Generator().manual_seed(seed)
    T, B = 8, 3
    x, state = cell.sequence(T, B, generator), cell.start(B, generator)
    leaves = [*differentiable(x, state), *cell.parameters()]
    outputs, final = eager.unroll(cell, x, state, steps=cell.steps(T))
    results = tensors(outputs, final)
    assert all(r.abs().max() < 100 for r in results)
    loss = torch.stack([r.sum() for r in results]).sum()
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        assert all(g.isfinite().all() and g.abs().max() < 1e5 for g in gradients if g is not None)
    alone = eager.unroll(
        cell,
        None if x is None else x[:, :1],
        state[:1] if isinstance(state, Tensor) else tuple(s[:1] for s in state),
        steps=cell.steps(T),
    )
    for mine, ours in zip(tensors(alone[0]), tensors(outputs), strict=True):
        torch.testing.assert_close(mine, ours[:, :1], rtol=0, atol=1e-10)


@hypothesis.given(random_cells(detach=False, noise=False, autonomous=False))
def test_what_was_not_asked_for_is_not_drawn(cell: RandomCell) -> None:
    rules = {line.rule for line in cell.program.lines}
    assert not rules & {"detach", "straight_through"}
    assert not cell.program.noise
    assert cell.program.inputs is not None


@pytest.mark.conformance
def test_a_failing_example_shrinks_to_few_lines() -> None:
    smallest = hypothesis.find(
        programs(),
        lambda program: any(line.rule == "softmax" for line in program.lines),
        settings=hypothesis.settings(database=None, derandomize=True, max_examples=2000),
    )
    assert len(smallest.lines) <= 2
    assert len(smallest.states) == 1


def test_a_program_prints_as_the_code_that_it_is() -> None:
    program = Program(
        3, (2,), (Instruction("linear", (0,), 2), Instruction("add", (2, 1))), (Next(3, 0.25),), 3
    )
    assert repr(RandomCell(program)).splitlines() == [
        "RandomCell(seed=0)",
        "    v0 = x [3]",
        "    v1 = h0 [2]",
        "    v2 = linear(v0, 2) [2]",
        "    v3 = add(v2, v1) [2]",
        "    h0 = tanh(0.25 * v3)",
        "    return v3, (h0)",
    ]


def test_a_cell_is_the_same_at_every_call() -> None:
    program = Program(1, (1,), (Instruction("linear", (0,), 1),), (Next(2, 0.5),), None, seed=3)
    first, second = RandomCell(program), RandomCell(program)
    assert torch.equal(first.weights["v2_0"], second.weights["v2_0"])
