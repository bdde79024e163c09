"""One value written into many places: by an index, by a mask; and what is made of the same derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import elman
from elman.errors import TraceError
from elman.trace.filling import set_item
from tests import eager, pairwise

Tensor = torch.Tensor
Write = Callable[["Filling", Tensor], Tensor]


def put(key: Callable[[Filling, Tensor], object], value: Callable[[Filling], object]) -> Write:
    def write(cell: Filling, z: Tensor) -> Tensor:
        z[key(cell, z)] = value(cell)  # type: ignore[index]
        return z

    return write


def put_rows(value: Callable[[Tensor], Tensor]) -> Write:
    def write(cell: Filling, z: Tensor) -> Tensor:
        made = z.clone()
        made[:, cell.mask] = value(z)
        return made

    return write


WAYS: dict[str, Write] = {
    "trace": lambda cell, z: z * torch.trace(cell.W.weight) + z * cell.W.weight.trace().square(),
    "fill": lambda cell, z: z.index_fill(1, cell.index, cell.p[0]),
    "fill by name": lambda cell, z: torch.index_fill(z, dim=-1, index=cell.index, value=cell.p[1]),
    "fill in place": lambda cell, z: z.index_fill_(1, cell.index, cell.p[0]) * z,
    "fill with a number": lambda cell, z: z.index_fill_(1, cell.index, 0.5),
    "columns by a mask, a number": put(lambda cell, z: (slice(None), cell.mask), lambda cell: 1),
    "columns by a mask": put(lambda cell, z: (slice(None), cell.mask), lambda cell: cell.p[0]),
    "the last by a mask": put(lambda cell, z: (..., cell.mask), lambda cell: cell.p[1]),
    "columns by a list": put(lambda cell, z: (slice(None), [True, False, False, True]), lambda cell: 1),
    "columns by a mask, one of several": put(
        lambda cell, z: (slice(None), cell.mask), lambda cell: cell.p[:1]
    ),
    "columns by a mask, one for each row": put_rows(lambda z: z.square().sum(-1, keepdim=True)),
    "columns by indices": put(lambda cell, z: (slice(None), cell.index), lambda cell: cell.p),
    "one for all columns": put(lambda cell, z: (slice(None), cell.index), lambda cell: cell.p[0]),
    "entries": put(lambda cell, z: z > 0, lambda cell: cell.p[0]),
    "entries, a number": put(lambda cell, z: z > 0, lambda cell: -1.0),
    "rows": put(lambda cell, z: z[:, 0] > 0, lambda cell: cell.p[0]),
}


class Filling(nn.Module):
    mask: Tensor
    index: Tensor
    columns: Tensor

    def __init__(self, ways: dict[str, Write]) -> None:
        super().__init__()
        self.W, self.U, self.p, self.ways = (
            nn.Linear(4, 4),
            nn.Linear(3, 4),
            nn.Parameter(torch.randn(2)),
            ways,
        )
        self.register_buffer("mask", torch.tensor([True, False, True, False]))
        self.register_buffer("index", torch.tensor([0, 3]))

    def forward(self, x: Tensor, h: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        z = self.W(h) + self.U(x)
        made = {name: way(self, z * 1.5) for name, way in self.ways.items()}
        return made, torch.tanh(z + 0.1 * sum(made.values()))


def test_values_and_derivatives_are_those_of_the_loop() -> None:
    """`make conformance`: by the reference, too."""
    cell, x, h = Filling(WAYS).double(), torch.randn(3, 3, 3).double(), torch.randn(3, 4).double()
    chosen = ("auto", "reference") if pairwise.exhaustive else ("auto",)
    rnns = {engine: elman.Recurrent(cell, engine=engine) for engine in chosen}
    wants = list(cell.parameters())
    for mask in ([True, False, True, False], [False, True, True, True]):
        cell.mask.copy_(torch.tensor(mask))
        expected, found = eager.unroll(cell, x, h), {}
        for engine, made in {engine: rnn(x, h) for engine, rnn in rnns.items()}.items():
            torch.testing.assert_close(made, expected, msg=lambda m, engine=engine: f"{engine}: {m}")
            found[engine] = both_derivatives(made, wants)
        right = both_derivatives(expected, wants)
        for engine, ours in found.items():
            torch.testing.assert_close(ours, right, msg=lambda m, engine=engine: f"{engine}: {m}")


def both_derivatives(made: tuple[dict[str, Tensor], Tensor], wants: list[Tensor]) -> list[tuple[Tensor, ...]]:
    outputs, final = made
    total = sum(weight * outputs[name].sin().sum() for weight, name in enumerate(WAYS, 1)) + final.sum()
    first = torch.autograd.grad(total, wants, create_graph=True)
    again = sum((g * torch.linspace(-1, 1, g.numel()).double().view_as(g)).sum() for g in first)
    return [first, torch.autograd.grad(again, wants)]


def test_rows_of_different_lengths_are_each_as_alone() -> None:
    cell, x = Filling(WAYS).double(), torch.randn(4, 3, 3).double()
    rnn, lengths = elman.Recurrent(cell), [4, 1, 3]
    outputs, _ = rnn(x, torch.zeros(3, 4).double(), lengths=lengths)
    for row, length in enumerate(lengths):
        alone, _ = eager.unroll(cell, x[:length, row : row + 1], torch.zeros(1, 4).double())
        for name in WAYS:
            torch.testing.assert_close(outputs[name][:length, row : row + 1], alone[name])


@pytest.mark.parametrize(
    ("way", "words"),
    [
        (lambda cell, z: z.index_fill(0, cell.index * 0, cell.p[0]), "mixes the rows"),
        (
            put(lambda cell, z: (cell.index * 0, cell.index), lambda cell: cell.p[0]),
            "it writes along the batch",
        ),
        (put(lambda cell, z: (slice(None), cell.mask), lambda cell: cell.p), "shape depends on the data"),
    ],
)
def test_what_mixes_rows_or_counts_ones_is_refused(way: Write, words: str) -> None:
    with pytest.raises(elman.ElmanError, match=words):
        elman.Recurrent(Filling({"way": way}))(torch.randn(2, 3, 3), torch.zeros(3, 4))


MASKED: dict[str, Callable[[Filling, Tensor], Tensor]] = {
    "weights": lambda cell, z: cell.p,
    "of the row": lambda cell, z: 2 * z[:, :2],
}


@pytest.mark.parametrize("way", MASKED)
def test_several_values_by_a_mask_are_refused_with_a_mend_that_works(way: str) -> None:
    def by_mask(cell: Filling, z: Tensor) -> Tensor:
        made = z.clone()
        made[:, cell.mask] = MASKED[way](cell, z)
        return made

    def by_columns(cell: Filling, z: Tensor) -> Tensor:
        made = z.clone()
        made[:, cell.columns] = MASKED[way](cell, z)
        return made

    def cells(write: Write) -> Filling:
        torch.manual_seed(0)
        cell = Filling({"way": write}).double()
        cell.register_buffer("columns", cell.mask.nonzero().flatten())
        return cell

    x, h = torch.randn(3, 3, 3).double(), torch.randn(3, 4).double()
    with pytest.raises(TraceError, match=r"columns = mask.nonzero\(\).flatten\(\) is a buffer") as caught:
        elman.Recurrent(cells(by_mask))(x, h)
    assert "made[:, cell.mask]" in str(caught.value.where)
    loop, cell = cells(by_mask), cells(by_columns)
    found = []
    for (outputs, final), one in ((eager.unroll(loop, x, h), loop), (elman.Recurrent(cell)(x, h), cell)):
        total = outputs["way"].sin().sum() + final.sum()
        found.append((outputs, final, torch.autograd.grad(total, list(one.parameters()), allow_unused=True)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("value", [0.5, 2, torch.tensor(1.5)])
@pytest.mark.parametrize(
    "key", [0, (0, 1), slice(1), [0, 2], (slice(None), 1), (0, torch.tensor([True, False])), None]
)
def test_other_keys_are_written_as_ever(key: object, value: object) -> None:
    for made in (torch.zeros(3, 2), torch.zeros(3, 2).long()):
        if isinstance(value, Tensor) and isinstance(key, list) and not made.is_floating_point():
            continue  # PyTorch refuses another dtype there
        expected = made.clone()
        expected[key] = value  # type: ignore[index]
        set_item(made, key, value)
        assert made.equal(expected)
