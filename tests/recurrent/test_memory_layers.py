"""Budgets of stacks, of both directions, of drop-ins, of language models: the numbers of calls without one."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import elman
from elman import Segments, cells
from elman.errors import InputError
from elman.models import LanguageModel
from elman.recurrent import set_memory
from tests.pairwise import with_more

Tensor = torch.Tensor
SAID = {
    "dense": {},
    "lengths": {"lengths": torch.tensor([7, 0, 3, 9])},
    "reset": {"reset": torch.rand(9, 4, generator=torch.Generator().manual_seed(0)) < 0.3},
}


class Learned(nn.Module):
    """It starts from what it has learnt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.h0 = cells.Elman(width, width), nn.Parameter(torch.ones(width))

    def initial_state(self, batch: int) -> Tensor:
        return self.h0.expand(batch, -1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.inner(x, h)


def stack(**options: Any) -> elman.Stack:
    layers = map(elman.Recurrent, (cells.LSTM(5, 5), Learned(5)))
    return elman.Stack(*layers, batch_first=False, **options).double()


LAYERS = {
    "stack": stack,
    "residual, norms": lambda: stack(residual=True, norms=[nn.LayerNorm(5)]),
    "both": lambda: elman.Bidirectional(cells.Elman(5, 5), cells.LSTM(5, 5), batch_first=False).double(),
    "both below": lambda: elman.Stack(
        elman.Bidirectional(cells.Elman(5, 5), cells.Elman(5, 5)), elman.Recurrent(cells.Elman(10, 5)),
        batch_first=False,
    ).double(),
    "nested": lambda: elman.Stack(
        elman.Stack(elman.Recurrent(cells.Elman(5, 5))), elman.nn.LSTM(5, 5), batch_first=False
    ).double(),
    "nn.RNN": lambda: elman.nn.RNN(5, 6, 2).double(),
    "nn.LSTM": lambda: elman.nn.LSTM(5, 6, 2, bidirectional=True).double(),
}  # fmt: skip


def run(layer: Any, memory: Any, seed: int = 1, **said: Any) -> list[Tensor]:
    """Outputs, states and gradients."""
    layer.memory = memory
    torch.manual_seed(seed)
    x = torch.randn(9, 4, 5, dtype=torch.float64, requires_grad=True)
    outputs, states = layer(x, **said)
    values = [outputs, *pytree.tree_leaves(states)]
    loss = sum((v * torch.randn_like(v)).sum() for v in values)
    return [*values, *torch.autograd.grad(loss, [x, *layer.parameters()])]


@pytest.mark.grid(1)
@pytest.mark.parametrize("memory", [Segments(2), "2 MB"], ids=str)
@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize(
    "name", with_more(["residual, norms", "both below", "nn.LSTM"], ["nested", "stack", "both", "nn.RNN"])
)
def test_layers(name: str, said: str, memory: Any) -> None:
    layer = LAYERS[name]()
    before = list(layer.state_dict())
    torch.testing.assert_close(
        run(layer, memory, **SAID[said]), run(layer, None, **SAID[said]), rtol=1e-10, atol=1e-10
    )
    assert list(layer.state_dict()) == before
    assert len([*layer.parameters()]) == len({*layer.parameters()})


@pytest.mark.parametrize("locked", with_more([True], [False]))
def test_dropout_does_not_depend_on_segments(locked: bool) -> None:
    layer = stack(dropout=0.5, locked=locked)
    torch.testing.assert_close(run(layer, Segments(2)), run(layer, Segments(100)), rtol=1e-10, atol=1e-10)
    assert not torch.equal(run(layer, Segments(2))[0], run(layer, Segments(2), seed=2)[0])
    layer.eval()
    torch.testing.assert_close(run(layer, Segments(2)), run(layer, None), rtol=1e-10, atol=1e-10)


def test_a_stack_follows_its_layers() -> None:
    """Another cell in a layer, another mode, a copy: what was joined before is not what runs."""
    layer = stack()
    run(layer, Segments(2))
    layer.layers[1] = elman.Recurrent(cells.LSTM(5, 5).double())
    torch.testing.assert_close(run(layer, Segments(2)), run(layer, None), rtol=1e-10, atol=1e-10)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with torch.no_grad():
            next(other.layers[0].parameters()).zero_()
        assert not torch.equal(run(other, Segments(2))[0], run(layer, Segments(2))[0])
        torch.testing.assert_close(run(other, Segments(2)), run(other, None), rtol=1e-10, atol=1e-10)


def test_what_layers_hand_on_counts() -> None:
    layer = LAYERS["both below"]()
    layer.memory = 5000
    with pytest.raises(InputError, match="hand on") as caught:
        layer(torch.zeros(100, 4, 5, dtype=torch.float64))
    assert caught.value.expected == "more than 32 kB"  # 100 · 4 · 10 numbers of 8 bytes


@pytest.mark.parametrize("name", with_more(["both below", "nested"], ["both"]))
def test_a_budget_leaves_nothing_behind(name: str) -> None:
    """What layers have of it, they have for the call; a budget of their own stays theirs."""
    layer = LAYERS[name]()
    parts = [
        p for p in layer.modules() if isinstance(p, (elman.Recurrent, elman.Stack, elman.Bidirectional))
    ][1:]
    parts[0].memory = Segments(5)
    before = [part.memory for part in parts]
    run(layer, "2 MB")
    run(layer, "2 MB", **SAID["lengths"])
    layer.memory = 1000
    with pytest.raises(InputError, match="too small"):
        layer(torch.zeros(100, 4, 5, dtype=torch.float64))
    assert [part.memory for part in parts] == before
    layer.memory = None
    layer(torch.zeros(3000, 4, 5, dtype=torch.float64))  # more than a share of 2 MB


def test_a_teacher_and_a_state() -> None:
    layer = elman.Stack(
        elman.Recurrent(cells.GRU(5, 5)), elman.Recurrent(cells.Jordan(5, 6, 3)), batch_first=False
    )
    layer.double()
    told = {"teacher": torch.randn(9, 4, 3, dtype=torch.float64)}
    x = torch.randn(9, 4, 5, dtype=torch.float64)
    states = layer(x)[1]
    found = []
    for layer.memory in (None, Segments(2)):
        outputs, finals = layer(x, states, **told)
        found.append((outputs, *pytree.tree_leaves(finals)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    with_more(
        [{"layers": 2, "norm": True, "condition": 3, "cutoffs": [10, 20]}],
        [{"layers": 2, "norm": True, "tie": True, "embedding": 16}, {"condition": 3, "cutoffs": [10, 20]}],
    ),
    ids=str,
)  # fmt: skip
def test_language_models(options: dict[str, Any]) -> None:
    model = LanguageModel(50, "elman", hidden=16, **options).double()
    x, y = torch.randint(50, (2, 30, 4), generator=torch.Generator().manual_seed(0))
    context = torch.ones(4, 3, dtype=torch.float64) if "condition" in options else None
    found = []
    for model.memory in (None, Segments(7), "600 kB"):
        model.zero_grad()
        loss, state = model.loss(x, y, context=context)
        loss.backward()
        again, _ = model.loss(x, y, state, context=context)
        found.append((loss, again, *pytree.tree_leaves(state), *(p.grad for p in model.parameters())))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layers", with_more([1], [2]))
def test_dropout_of_a_language_model(layers: int) -> None:
    model = LanguageModel(50, "elman", hidden=16, layers=layers, dropout=0.4)
    x, losses = torch.zeros(30, 4, dtype=torch.int64), []
    for seed, memory in ((1, Segments(4)), (1, Segments(30)), (2, Segments(4))):
        torch.manual_seed(seed)
        model.memory = memory
        losses.append(model.loss(x, x)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != losses[2]


def test_explanations_say_what_is_stored() -> None:
    layer = elman.Recurrent(cells.GRU(5, 5), memory="100 kB")
    layer(torch.zeros(1000, 2, 5))[0].sum().backward()
    said = str(layer.explain())
    assert "memory: 100 kB: " in said
    assert "of the forward pass is run again" in said
    layer.memory = "1 GB"
    layer(torch.zeros(1000, 2, 5))[0].sum().backward()
    assert "memory: 1 GB: all of the call fits" in str(layer.explain())
    other = elman.Recurrent(cells.GRU(5, 5), memory="100 kB")  # of the same program
    other(torch.zeros(900, 2, 5))[0].sum().backward()
    assert "memory: 1 GB: all of the call fits" in str(layer.explain())
    layer.memory = "100 kB"
    layer(torch.zeros(1000, 2, 5))[0].sum().backward()
    assert str(layer.explain()) == said
    deep = stack(memory=Segments(3))
    deep(torch.zeros(9, 4, 5, dtype=torch.float64))[0].sum().backward()
    assert "memory: segments: 3 segments of up to 3 steps" in " ".join(str(deep.explain()).split())


def test_budgets_of_the_recurrences_of_a_model() -> None:
    model = nn.ModuleDict(
        {"deep": stack(), "other": nn.Sequential(elman.Recurrent(cells.GRU(5, 5)), nn.Linear(5, 5))}
    )
    set_memory(model, "1 MB")
    assert model["deep"].memory == model["other"][0].memory == 10**6
    assert model["deep"].layers[0].memory is None
