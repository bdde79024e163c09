"""A plan written down as a function: in every form, and with every engine, it gives what the plan means."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from elman.circuit.form import Kind
from elman.engines.reference import Reference
from elman.execute.executable import Call, Executable, run
from elman.execute.program import Program
from elman.plan.stepwise import stepwise
from tests.cases import CASES, SELDOM
from tests.circuits import SEED, circuit_of, plan_of, problem
from tests.pairwise import with_more

Tensor = torch.Tensor
EXACT = {"rtol": 1e-12, "atol": 1e-12}
QUIET = [name for name, case in CASES.items() if not case.noise]
SOME = [name for name in CASES if name not in SELDOM][::3]
T, B = 3, 2


@functools.cache
def program_of(name: str) -> Program:
    return Program(circuit_of(name))


def inputs(name: str, steps: int) -> list[Tensor]:
    given = problem(name, steps, B).inputs
    return [given[port.name].detach() for port in program_of(name).inputs]


@pytest.mark.parametrize("name", CASES)
def test_one_step_is_one_step_in_every_form(name: str) -> None:
    """The plan, everything in the loop, and the same for sequences without a time dimension."""
    call, tensors, circuit = Call(1, B, SEED, "reference"), inputs(name, 1), circuit_of(name)
    with torch.no_grad():
        whole = Executable(plan_of(name)).run(call, tensors)
        inside = Executable(stepwise(circuit)).run(call, tensors)
        torch.testing.assert_close(inside, whole, **EXACT)
        if name not in QUIET:
            return
        ports = program_of(name).inputs
        rows = [t[0] if port.kind is Kind.SEQUENCE else t for t, port in zip(tensors, ports, strict=True)]
        alone = Executable(stepwise(circuit), single=True).run(call, rows)
    for out, got, right in zip(circuit.outputs, alone, whole, strict=True):
        torch.testing.assert_close(got, right[0] if out.kind is Kind.SEQUENCE else right, **EXACT)


@pytest.mark.parametrize("name", with_more(SOME, [name for name in CASES if name not in SOME]))
def test_layouts_of_what_comes_in_do_not_matter(name: str) -> None:
    """Strided sequences and states, as slices of something larger are."""
    call, tensors = Call(T, B, SEED, "auto"), inputs(name, T)
    strided = []
    for tensor, port in zip(tensors, program_of(name).inputs, strict=True):
        if port.kind is not Kind.CONSTANT:
            tensor = torch.stack([tensor, tensor], -1)[..., 0]
        strided.append(tensor)
    with torch.no_grad():
        for single in (T, 1):
            shorter = [
                t[:single] if p.kind is Kind.SEQUENCE else t
                for t, p in zip(tensors, program_of(name).inputs, strict=True)
            ]
            other = [
                t[:single] if p.kind is Kind.SEQUENCE else t
                for t, p in zip(strided, program_of(name).inputs, strict=True)
            ]
            at = call._replace(steps=single)
            torch.testing.assert_close(
                program_of(name).run(at, other), program_of(name).run(at, shorter), **EXACT
            )


@pytest.mark.parametrize("name", ["elman", "lstm", "jordan"])
@pytest.mark.parametrize("steps", [0, 1, T])
def test_nothing_stands_for_zeros(name: str, steps: int) -> None:
    tensors, ports = inputs(name, steps), program_of(name).inputs
    zeros = [torch.zeros_like(t) if p.kind is Kind.STATE else t for t, p in zip(tensors, ports, strict=True)]
    missing = [None if p.kind is Kind.STATE else t for t, p in zip(tensors, ports, strict=True)]
    with torch.no_grad():
        for engine in ("auto", "reference"):
            call = Call(steps, B, SEED, engine)
            torch.testing.assert_close(
                program_of(name).run(call, missing), program_of(name).run(call, zeros), **EXACT
            )


@pytest.mark.grid(1)
@pytest.mark.parametrize("name", QUIET)
@pytest.mark.parametrize("steps", [1, T])
def test_results_are_tensors_of_their_own(name: str, steps: int) -> None:
    """No views, and none in the memory of another or of an input, so that users may write into them."""
    tensors = inputs(name, steps)
    with torch.no_grad():
        made = program_of(name).run(Call(steps, B, SEED, "auto"), tensors)
    for result in made:
        assert not result._is_view()
    places = [t.untyped_storage().data_ptr() for t in (*made, *tensors) if t.numel()]
    assert len({*places[: len(made)]}) == len(made)
    assert not {*places[: len(made)]} & {*places[len(made) :]}


def test_names_and_places_agree() -> None:
    at = problem("lstm", T, B)
    named = run(plan_of("lstm"), at.call(), at.inputs)
    with torch.no_grad():
        listed = program_of("lstm").run(at.call(), inputs("lstm", T))
    torch.testing.assert_close(tuple(named[out.name] for out in program_of("lstm").outputs), listed, **EXACT)


class Counting(Reference):
    name = "counting"

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def run(self, *args: Any) -> Any:
        self.calls += 1
        return super().run(*args)


def test_an_engine_of_ones_own() -> None:
    program, call, tensors = Program(circuit_of("elman")), Call(1, B, SEED, "auto"), inputs("elman", 1)
    engine = Counting()
    with torch.no_grad():
        before = program.run(call, tensors)
        torch.testing.assert_close(program.run(call._replace(engine=engine), tensors), before, **EXACT)
    assert engine.calls == 1
    assert not program.steps_by_loop(engine), "what costs something to start"
    engine.cheap_to_start = True
    other = Program(circuit_of("elman"))
    assert other.steps_by_loop(engine)
    with torch.no_grad():
        torch.testing.assert_close(other.run(call._replace(engine=engine), tensors), before, **EXACT)
    assert engine.calls == 2
