"""What a small call keeps for its backward pass goes in few tensors: the same numbers, and as safe as one for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import elman
from elman.execute import training_plans
from tests.cases import CASES
from tests.pairwise import with_more
from tests.tensors import tensors

Tensor = torch.Tensor
native = pytest.importorskip("elman._native", reason="the compiled part is missing")
CELLS = with_more(
    ["elman", "gru", "lstm", "spiking_rnn"],
    [name for name, case in CASES.items() if case.starts and not case.contexts],
)


def trained(name: str, reverse: bool, dtype: torch.dtype, T: int = 5, B: int = 3) -> list[Tensor]:
    """Outputs, final states and all gradients of one call."""
    rnn = elman.Recurrent(CASES[name].make().to(dtype), reverse=reverse)
    x = CASES[name].x(T, B, torch.Generator().manual_seed(1), dtype)
    torch.manual_seed(0)
    results = tensors(rnn(x) if x is not None else rnn(None, steps=T))
    loss = sum(r.square().sum() for r in results if r.requires_grad)
    if isinstance(loss, Tensor):
        loss.backward()
    return [*results, *(p.grad for p in rnn.parameters() if p.grad is not None)]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", CELLS)
def test_the_bits_are_those_of_a_tensor_for_each(
    name: str, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype in (torch.float32, torch.float64):
        together = trained(name, reverse, dtype)
        with monkeypatch.context() as patch:
            patch.setattr(training_plans, "SMALL", 0)
            apart = trained(name, reverse, dtype)
        assert len(together) == len(apart) > 1
        for one, other in zip(together, apart, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def saved(o: Tensor) -> int:
    """How many tensors the call that o came out of has saved."""
    node: Any = o.grad_fn
    return len(node.saved_tensors)


@pytest.mark.parametrize(("name", "kept"), [("elman", 1), ("gru", 2), ("lstm", 2)])
def test_few_tensors_are_saved(name: str, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs, the memory that the output lies in, and one for everything else; of a large call, one for each."""
    rnn = elman.Recurrent(CASES[name].make())
    x = torch.randn(4, 2, 5)
    o, h = rnn(x)
    inputs = 1 + len([*rnn.parameters()]) + len(tensors(h))
    assert saved(o) == inputs + kept
    monkeypatch.setattr(training_plans, "SMALL", 100)
    o, _ = rnn(x)
    assert saved(o) > inputs + kept


class Latch(torch.nn.Module):
    """Two gates, and a bool in the state: more than one real number is kept, and a bool."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U, self.V = (torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, latched = state
        z = torch.sigmoid(self.V(h) + x)
        h = torch.where(latched, h, z * torch.tanh(self.U(x) + self.W(h)) + (1 - z) * h)
        return 2 * h, (h, latched | (h > 0.3))


def test_bools_are_kept_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, x, found = Latch(), torch.randn(6, 3, 4), []
    for small in (1 << 20, 0):
        monkeypatch.setattr(training_plans, "SMALL", small)
        o, _ = elman.Recurrent(cell)(x, (torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.bool)))
        node: Any = o.grad_fn
        kept = node.saved_tensors[3 + 6 :]
        found.append((kept, torch.autograd.grad(o.sum(), [*cell.parameters()])))
    (few, one), (many, other) = found
    assert len(few) < len(many)
    assert [t.dtype for t in few].count(torch.bool) == [t.dtype for t in many].count(torch.bool) == 1
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_an_output_that_is_written_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """What shares memory with it is computed again, as with a tensor for each."""
    found = []
    for small in (1 << 20, 0):
        monkeypatch.setattr(training_plans, "SMALL", small)
        rnn = elman.Recurrent(CASES["gru"].make())
        o, _ = rnn(torch.ones(4, 2, 5))
        o.mul_(3)
        found.append(torch.autograd.grad(o.sum(), [*rnn.parameters()]))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_hooks_pack_a_bundle_as_any_tensor() -> None:
    rnn = elman.Recurrent(CASES["lstm"].make())
    x = torch.randn(4, 2, 5)
    expected = torch.autograd.grad(rnn(x)[0].sum(), [*rnn.parameters()])
    # What comes back does not lie in order, and is of a class that keeps nothing of the place.
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t.shape, t.flatten().tolist(), t.dtype),
        lambda kept: torch.tensor(kept[1], dtype=kept[2]).repeat_interleave(2)[::2].view(-1).reshape(kept[0]),
    ):
        o, _ = rnn(x)
    for a, b in zip(torch.autograd.grad(o.sum(), [*rnn.parameters()]), expected, strict=True):
        assert torch.equal(a, b)


OTHERS: dict[str, Any] = {
    "half": (torch.Tensor.half, lambda t: t),
    "double": (lambda t: t, torch.Tensor.double),
    "turned": (lambda t: t, lambda t: t.transpose(0, -1) if t.dim() > 1 else t[None]),
    "shorter": (lambda t: t, lambda t: t[1:]),
}


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("name", OTHERS)
def test_hooks_that_give_back_something_else(name: str, engine: str) -> None:
    """Its memory would be read as that of what was packed, past its end."""
    rnn = elman.Recurrent(CASES["gru"].make(), engine=engine)
    with torch.autograd.graph.saved_tensors_hooks(*OTHERS[name]):
        o, _ = rnn(torch.randn(4, 2, 5, requires_grad=True))
    with pytest.raises(elman.errors.InputError, match="came back as another one"):
        o.sum().backward()


def test_a_hook_on_one_tensor_that_gives_back_something_else() -> None:
    rnn = elman.Recurrent(CASES["gru"].make())
    o, _ = rnn(torch.randn(4, 2, 5))
    node: Any = o.grad_fn
    node._raw_saved_tensors[-1].register_hooks(torch.Tensor.half, lambda t: t)
    with pytest.raises(ValueError, match="another size or type"):
        o.sum().backward()


def test_calls_of_other_sizes_by_the_same_pass() -> None:
    """Where a value lies in a bundle depends on T and B."""
    rnn, loop = (
        elman.Recurrent(CASES["lstm"].make()),
        elman.Recurrent(CASES["lstm"].make(), engine="reference"),
    )
    for T, B in ((3, 2), (1, 5), (7, 1), (3, 2)):
        x = torch.randn(T, B, 5)
        ours = torch.autograd.grad(rnn(x)[0].square().sum(), [*rnn.parameters()])
        theirs = torch.autograd.grad(loop(x)[0].square().sum(), [*loop.parameters()])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
