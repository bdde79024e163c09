"""What a trace sees: the table of docs/write_a_cell.md, row by row.

Honoured: after an edit between two calls every way of a call equals the loop over the cell as it is now, although the
calls before were warm. What is refused: test_sees_refused.py.
"""

from __future__ import annotations

import collections
import functools
import os
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import elman
from tests import eager
from tests.pairwise import with_more

Tensor = torch.Tensor
T, B, H = 4, 3, 5
EXACT = {"rtol": 1e-10, "atol": 1e-10}

GAIN = 0.7
TENSOR = torch.tensor(0.7, dtype=torch.float64)
ONES = torch.ones(H, dtype=torch.float64)
TABLE = {"gain": [0.7]}
SETTINGS = types.ModuleType("settings")
SETTINGS.gain = 0.7  # type: ignore[attr-defined]


def helper() -> float:
    return GAIN


def other_helper() -> float:
    return 0.3


class Config:
    gain = 0.7


class Cell(nn.Module):
    """tanh(x + W h) · gain, where the gain comes from wherever `read` finds it."""

    gain = 0.7

    def __init__(self, read: Callable[[Any], Any], **kept: Any) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.linspace(-1, 1, H * H, dtype=torch.float64).view(H, H))
        self.read = read
        self.never = 0
        self.__dict__.update(kept)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + h @ self.W) * self.read(self)

    def scale(self) -> float:
        return 0.7

    @property
    def half(self) -> float:
        return Config.gain

    @staticmethod
    def fixed() -> float:
        return 0.7

    registry = {"gain": 0.7}  # noqa: RUF012


def ways(rnn: elman.Recurrent, x: Tensor, h: Tensor) -> None:
    """Outputs and gradients of every way of a call are those of the loop."""
    cell = rnn.cell
    wanted = [p for p in cell.parameters() if p.requires_grad]
    found = []
    for run in (rnn, lambda x, h: eager.unroll(cell, x, h)):
        o, final = run(x, h)
        found.append(
            (o, final, *torch.autograd.grad(o.square().sum() + final.sum(), wanted, allow_unused=True))
        )
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(rnn(x, h)[0], found[1][0], **EXACT)
        torch.testing.assert_close(rnn.step(x[0], h)[0], found[1][0][0], **EXACT)
        ragged = rnn(x, h, lengths=torch.tensor([T, 2, 1]))[0]
        torch.testing.assert_close(ragged[:, 0], found[1][0][:, 0], **EXACT)
        torch.testing.assert_close(ragged[:2, 1], found[1][0][:2, 1], **EXACT)
    torch.testing.assert_close(rnn.step(x[0], h)[0], found[1][0][0], **EXACT)


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(T, B, H, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)


Patch = pytest.MonkeyPatch
Edit = Callable[[Any, Patch], Any]
Row = tuple[Callable[[], Cell], Edit]


def own(read: Callable[[Any], Any], edit: Callable[[Any], Any], **kept: Any) -> Row:
    """A row whose edit belongs to the cell."""
    return lambda: Cell(read, **kept), lambda cell, patch: edit(cell)


def elsewhere(read: Callable[[Any], Any], edit: Callable[[Patch], Any]) -> Row:
    """A row whose edit belongs to something else, and is taken back after the test."""
    return lambda: Cell(read), lambda cell, patch: edit(patch)


def closures() -> tuple[Row, Row, Row]:
    kept, number = [0.7], 0.7

    def code() -> float:
        return 0.7

    def another() -> None:
        nonlocal number
        number = 0.3

    return (
        own(lambda cell: kept[0], lambda cell: kept.__setitem__(0, 0.3)),
        own(lambda cell: number, lambda cell: another()),
        own(lambda cell: code(), lambda cell: setattr(code, "__code__", (lambda: 0.3).__code__)),
    )


def over_the_cell() -> Row:
    def make() -> Cell:
        cell = Cell(lambda cell: cell.inner())
        cell.register_buffer("m", torch.full((H,), 0.7, dtype=torch.float64))
        cell.inner = lambda: cell.m + cell.W[0]
        return cell

    return make, lambda cell, patch: setattr(cell, "m", torch.full((H,), 0.3, dtype=torch.float64))


def forward_over_the_cell(cell: Cell) -> None:
    cell.forward = lambda x, h: torch.tanh(x + h @ cell.W) * 0.3


def target(edit: Callable[[nn.Linear], Any], keep: Callable[[nn.Module], Any], at: Any) -> Row:
    def make() -> Cell:
        return Cell(lambda cell: cell.kept[at](cell.W[0]), kept=keep(nn.Linear(H, H).double()))

    return make, lambda cell, patch: edit(cell.kept[at])


def drift(linear: nn.Linear) -> None:
    with torch.no_grad():
        linear.weight.lerp_(torch.ones_like(linear.weight), 0.3)


def imported(cell: Any) -> float:
    import tests.trace.test_sees as here

    return here.GAIN


def read_default(cell: Any, gain: float = 0.7) -> float:
    return gain


def hooked() -> Row:
    strength = [0.7]

    def make() -> Cell:
        cell = Cell(lambda cell: 1.0)
        cell.register_forward_hook(lambda module, given, made: made * strength[0])
        return cell

    return make, lambda cell, patch: strength.__setitem__(0, 0.3)


def renamed(register: Callable[[Cell, str], None]) -> Row:
    def make() -> Cell:
        cell = Cell(lambda cell: 0.7 if hasattr(cell, "one") else 0.3)
        register(cell, "one")
        return cell

    return make, lambda cell, patch: (delattr(cell, "one"), register(cell, "other"))


def buffered(edit: Callable[[Tensor], Tensor]) -> Row:
    def make() -> Cell:
        cell = Cell(lambda cell: cell.m)
        cell.register_buffer("m", torch.linspace(0.1, 1, H, dtype=torch.float64))
        return cell

    return make, lambda cell, patch: setattr(cell, "m", edit(cell.m / 3))


def weaker(self: Cell, x: Tensor, h: Tensor) -> Tensor:
    return torch.tanh(x + h @ self.W) * 0.3


HERE = globals()
HONOURED: dict[str, Row] = {
    "an attribute": own(lambda c: c.mine, lambda c: setattr(c, "mine", 0.3), mine=0.7),
    "the sign of zero": own(lambda c: float(np.copysign(1.0, c.mine)), lambda c: setattr(c, "mine", -0.0), mine=0.0),
    "a deque": own(lambda c: c.mine[0], lambda c: c.mine.__setitem__(0, 0.3), mine=collections.deque([0.7])),
    "an array in place": own(
        lambda c: torch.from_numpy(c.mine.copy()), lambda c: c.mine.fill(0.3), mine=np.full(H, 0.7)
    ),
    "another array": own(
        lambda c: torch.from_numpy(c.mine.copy()), lambda c: setattr(c, "mine", np.full(H, 0.3)), mine=np.full(H, 0.7)
    ),
    "an attribute over the class's": own(lambda c: c.gain, lambda c: setattr(c, "gain", 0.3)),
    "a method put on the instance": own(lambda c: c.scale(), lambda c: setattr(c, "scale", lambda: 0.3)),
    "a class attribute": elsewhere(lambda c: c.gain, lambda p: p.setattr(Cell, "gain", 0.3)),
    "a dict of the class": elsewhere(lambda c: c.registry["gain"], lambda p: p.setitem(Cell.registry, "gain", 0.3)),
    "a method": elsewhere(lambda c: c.scale(), lambda p: p.setattr(Cell, "scale", lambda self: 0.3)),
    "a static method": elsewhere(lambda c: c.fixed(), lambda p: p.setattr(Cell, "fixed", staticmethod(lambda: 0.3))),
    "what a property reads": elsewhere(lambda c: c.half, lambda p: p.setattr(Config, "gain", 0.3)),
    "forward": elsewhere(lambda c: 0.7, lambda p: p.setattr(Cell, "forward", weaker)),
    "forward of the instance, over the cell": own(lambda c: 0.7, forward_over_the_cell),
    "a function's default": elsewhere(read_default, lambda p: p.setattr(read_default, "__defaults__", (0.3,))),
    "a class that holds settings": own(
        lambda c: c.mine.gain, lambda c: setattr(c.mine, "gain", 0.3), mine=type("Settings", (), {"gain": 0.7})
    ),
    "the class of an object": elsewhere(lambda c: Config().gain, lambda p: p.setattr(Config, "gain", 0.3)),
    "a global number": elsewhere(lambda c: GAIN, lambda p: p.setitem(HERE, "GAIN", 0.3)),
    "a global number behind a function": elsewhere(lambda c: helper(), lambda p: p.setitem(HERE, "GAIN", 0.3)),
    "a global function": elsewhere(lambda c: helper(), lambda p: p.setitem(HERE, "helper", other_helper)),
    "a global dict": elsewhere(lambda c: TABLE["gain"][0], lambda p: p.setitem(TABLE, "gain", [0.3])),
    "a global tensor": elsewhere(lambda c: TENSOR, lambda p: p.setitem(HERE, "TENSOR", TENSOR * 0.5)),
    "a global tensor in place": elsewhere(lambda c: TENSOR, lambda p: TENSOR.mul_(0.5)),
    "a module's number": elsewhere(lambda c: SETTINGS.gain, lambda p: p.setattr(SETTINGS, "gain", 0.3)),
    "a module imported in the step": elsewhere(imported, lambda p: p.setitem(HERE, "GAIN", 0.3)),
    "a name that is made up": elsewhere(lambda c: getattr(c, "_gain"[1:]), lambda p: p.setattr(Cell, "gain", 0.3)),
    "a closure's list": closures()[0],
    "a closure's variable": closures()[1],
    "a function's code": closures()[2],
    "a buffer behind a lambda over the cell": over_the_cell(),
    "a partial": own(
        lambda c: c.mine(), lambda c: setattr(c, "mine", functools.partial(float, 0.3)),
        mine=functools.partial(float, 0.7),
    ),
    "the environment": elsewhere(
        lambda c: float(os.environ.get("GAIN", "0.7")), lambda p: p.setenv("GAIN", "0.3")
    ),
    "getenv": elsewhere(lambda c: float(os.getenv("GAIN", "0.7")), lambda p: p.setenv("GAIN", "0.3")),
    "weights of a module in a list": target(drift, lambda m: [m], 0),
    "data of a module in a dict": target(
        lambda m: setattr(m.weight, "data", torch.ones_like(m.weight)), lambda m: {"k": m}, "k"
    ),
    "another parameter of a module in a list": target(
        lambda m: setattr(m, "bias", nn.Parameter(torch.ones(H, dtype=torch.float64))), lambda m: [m], 0
    ),
    "what a hook reads": hooked(),
    "a name that was Python's": elsewhere(lambda c: abs(-0.7), lambda p: p.setitem(HERE, "abs", lambda v: 0.3)),
    "the name of a parameter that is none": renamed(lambda c, name: c.register_parameter(name, None)),
    "the name of a buffer": renamed(lambda c, name: c.register_buffer(name, ONES)),
    "a buffer's dtype": buffered(lambda m: m.float()),
    "a buffer's shape": buffered(lambda m: m[0]),
    "the name of a tensor": renamed(lambda c, name: setattr(c, name, ONES)),
    "the dtype of a tensor": own(
        lambda c: c.mine, lambda c: setattr(c.mine, "data", torch.tensor(1 / 3)), mine=TENSOR.clone()
    ),
    "the shape of a tensor in a list": own(
        lambda c: c.mine[0] * (1 + c.mine[0].dim()), lambda c: setattr(c.mine[0], "data", 0.3 * ONES),
        mine=[TENSOR.clone()],
    ),
    "the dtype of a tensor in a list": own(
        lambda c: c.mine[0], lambda c: setattr(c.mine[0], "data", torch.tensor(1 / 3)), mine=[TENSOR.clone()]
    ),
    "a first buffer": own(lambda c: 0.7 if not c._buffers else c.one, lambda c: c.register_buffer("one", 0.3 * ONES)),
    "a first module": own(
        lambda c: c.one(c.W[0]) if hasattr(c, "one") else 0.7, lambda c: c.register_module("one", nn.Tanh())
    ),
}  # fmt: skip


# Seen in the same way as another row, or as tests/recurrent/test_bound.py sees it.
ALIKE = (
    "an attribute", "a deque", "another array", "a static method", "the class of an object", "a global number",
    "a closure's list", "a class that holds settings", "a dict of the class",
    "another parameter of a module in a list",
)  # fmt: skip


@pytest.mark.parametrize("name", with_more([name for name in HONOURED if name not in ALIKE], ALIKE))
def test_honoured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HERE, "TENSOR", TENSOR.clone())
    make, edit = HONOURED[name]
    rnn, (x, h) = elman.Recurrent(make()), data()
    for _ in range(3):
        before = rnn(x, h)[0].detach()
    ways(rnn, x, h)
    edit(rnn.cell, monkeypatch)
    ways(rnn, x, h)
    ways(rnn, x, h)
    assert not torch.allclose(rnn(x, h)[0], before), "the edit makes a difference"


def test_a_tensor_in_a_list_begins_to_want_a_gradient() -> None:
    rnn, (x, h) = elman.Recurrent(Cell(lambda c: c.mine[0], mine=[TENSOR.clone()])), data()
    ways(rnn, x, h)
    rnn.cell.mine[0].requires_grad_()
    with pytest.raises(elman.errors.TraceError, match="requires a gradient"):
        rnn(x, h)
    rnn.cell.mine[0].requires_grad_(False)
    ways(rnn, x, h)


def test_gradients_of_a_module_in_a_list() -> None:
    make, _ = HONOURED["weights of a module in a list"]
    rnn, (x, h) = elman.Recurrent(make()), data()
    hidden = list(rnn.cell.kept[0].parameters())
    found = [
        torch.autograd.grad(run(x, h)[0].square().sum(), hidden)
        for run in (rnn, rnn, rnn, lambda x, h: eager.unroll(rnn.cell, x, h))
    ]
    for one in found[:-1]:
        torch.testing.assert_close(one, found[-1], **EXACT)


def test_a_module_in_a_list_under_compile() -> None:
    make, _ = HONOURED["weights of a module in a list"]
    rnn, (x, h) = elman.Recurrent(make()), data()
    torch._dynamo.reset()  # after many layers it compiles no more
    compiled = torch.compile(rnn, backend="eager", fullgraph=True)
    compiled(x, h)
    drift(rnn.cell.kept[0])
    torch.testing.assert_close(compiled(x, h), rnn(x, h), **EXACT)
