"""What can not be a circuit is refused in words that help, and the cell is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import elman
from elman.errors import TraceError
from tests.cases import REFUSED, Refused
from tests.pairwise import with_more

Tensor = torch.Tensor
every_refused = pytest.mark.parametrize("entry", REFUSED.values(), ids=str)


def contents(cell: torch.nn.Module) -> dict[str, Any]:
    """Everything that a cell's modules keep: (the thing itself, a copy of what is in it)."""
    return {
        f"{path}.{table}.{key}": (value, copy.deepcopy(value))
        for path, module in cell.named_modules()
        for table in ("_parameters", "_buffers", "__dict__")
        for key, value in (module.__dict__ if table == "__dict__" else module.__dict__[table]).items()
        if key not in ("_parameters", "_buffers", "_modules")
    }


def assert_untouched(cell: torch.nn.Module, before: dict[str, Any]) -> None:
    after = contents(cell)
    assert list(after) == list(before), "attributes came or went"
    for name, (value, content) in before.items():
        now, inside = after[name]
        assert now is value, f"{name} is another object"
        if isinstance(value, Tensor):
            assert torch.equal(inside, content), f"{name} was written to"
            assert now.requires_grad == content.requires_grad
            assert now.grad is None
        else:
            assert inside == content, f"{name} changed"


@every_refused
def test_eager_pytorch_runs_it(entry: Refused) -> None:
    """Otherwise the error would not be about being a circuit."""
    entry.make()(entry.x(), entry.state())


# Refused as others of the table are: rows that meet, in a sum, and in an order; and the batch size among numbers.
ALIKE = (
    "sum_of_everything", "softmax_over_the_batch", "flipped_batch", "rolled_batch", "transposed_batch",
    "batch_size_as_factor", "shrinking_state", "loop_until_small", "mutated_input", "count_in_attribute",
)  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    with_more([e for e in REFUSED.values() if e.name not in ALIKE], [REFUSED[name] for name in ALIKE]),
    ids=str,
)
def test_the_error_helps_and_the_cell_stays_as_it_was(entry: Refused) -> None:
    cell, x, state = entry.make(), entry.x(), entry.state()
    before = contents(cell)
    given = [leaf.clone() for leaf in pytree.tree_leaves((x, state))]
    generator = torch.get_rng_state()
    with pytest.raises(TraceError) as caught:
        elman.trace(cell, x, state)
    message = str(caught.value)
    assert entry.complaints(message) == [], message
    assert type(cell).__name__ in message
    assert "mend:" in message
    if entry.line is not None:
        assert entry.line in message, message
    assert_untouched(cell, before)
    assert torch.equal(generator, torch.get_rng_state()), "it took numbers out of the default generator"
    for tensor, old in zip(pytree.tree_leaves((x, state)), given, strict=True):
        assert torch.equal(tensor, old), "it wrote into the example"


@pytest.mark.parametrize(
    "name", with_more(["state_in_attribute", "branch_on_the_sum"], ["mean_over_the_batch", "batch_norm"])
)
def test_a_layer_refuses_it_at_every_call(name: str) -> None:
    entry = REFUSED[name]
    rnn = elman.Recurrent(entry.make())
    before = contents(rnn.cell)
    for _ in range(2):
        with pytest.raises(TraceError):
            rnn(entry.x().unsqueeze(0), entry.state())
    assert_untouched(rnn.cell, before)


def test_batch_norm_in_evaluation_is_a_circuit() -> None:
    entry = REFUSED["batch_norm"]
    elman.trace(entry.make().eval(), entry.x(), entry.state())


FIRST, ROW = torch.tensor([0]), torch.ones(1, 4)
ONE_ROW: dict[str, Callable[[Tensor], Tensor]] = {
    "index_fill": lambda h: h.index_fill(0, FIRST, 0.5),
    "index_copy": lambda h: h.index_copy(0, FIRST, ROW),
    "index_reduce": lambda h: h.index_reduce(0, FIRST, ROW, "amax"),
    "scatter_reduce": lambda h: h.scatter_reduce(0, torch.zeros(1, 4, dtype=torch.int64), ROW, "amax"),
    "put": lambda h: h.put(FIRST, torch.ones(1)),
    "take": lambda h: h + h.take(FIRST),
    "masked_scatter": lambda h: h.masked_scatter(h > 0, 2 * h),
    "logcumsumexp": lambda h: h.logcumsumexp(0),
    "tril": lambda h: h.tril(),
}


class Made(torch.nn.Module):
    """A step with an operation of one's own on the state."""

    hidden_size = 4

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.U, self.operation = torch.nn.Linear(3, 4), operation

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.operation(h))


@pytest.mark.filterwarnings("ignore:index_reduce|scatter_reduce:UserWarning")
@pytest.mark.parametrize("name", with_more(few := ["index_fill", "take"], sorted(ONE_ROW.keys() - few)))
def test_operations_without_a_rule_that_read_or_write_one_row_of_a_batch(name: str) -> None:
    """They agree with the loop on a whole batch; a ragged one, or another number of rows, would get other numbers."""
    with pytest.raises(TraceError, match=rf"mixes the rows of the batch: the (first|last) row .* {name}\b"):
        elman.Recurrent(Made(ONE_ROW[name]))(torch.randn(5, 3, 3))


FEATURES = torch.tensor([True, False, True, False])


def written_apart(h: Tensor) -> Tensor:
    v = h.clone()
    v[1:, FEATURES] = 1
    return v


@pytest.mark.parametrize(
    ("operation", "what", "mend"),
    [
        (
            lambda h: h @ h.T,
            "mixes the rows of the batch: the result has the batch in two dim",
            "along the features",
        ),
        (
            lambda h: (h[:, 0] * 1).resize_(3)[:, None],
            "autograd refuses to give a tensor another size",
            "reshape",
        ),
        (written_apart, "cuts the batch", "along the features only"),
    ],
)
def test_the_mend_is_of_what_went_wrong(operation: Callable[[Tensor], Tensor], what: str, mend: str) -> None:
    class Says(Made):
        def forward(self, x: Tensor, h: Tensor) -> Any:
            h = torch.tanh(self.U(x) + h)
            return operation(h), h

    with pytest.raises(TraceError, match=f"(?s){what}.*mend: .*{mend}"):
        elman.Recurrent(Says(operation))(torch.randn(5, 3, 3))


def test_operations_without_a_rule_along_the_features() -> None:
    cell, x = Made(lambda h: h.index_fill(1, FIRST, 0.5).logcumsumexp(-1)), torch.randn(5, 3, 3)
    outputs, _ = elman.Recurrent(cell)(x, lengths=torch.tensor([5, 2, 4]))
    alone, _ = elman.Recurrent(cell)(x[:2, 1:2])
    torch.testing.assert_close(outputs[:2, 1:2], alone)


@pytest.mark.parametrize("kind", with_more([torch.nn.LSTM], [torch.nn.RNN, torch.nn.GRU]))
def test_a_recurrent_layer_of_torchs_in_a_step_is_called_one(kind: Any) -> None:
    class Inner(torch.nn.Module):
        hidden_size = 4

        def __init__(self) -> None:
            super().__init__()
            self.inner = kind(4, 4, batch_first=True)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.inner(torch.stack([x, h], 1))[0][:, -1]

    with pytest.raises(TraceError, match="a recurrence itself"):
        elman.Recurrent(Inner())(torch.zeros(2, 3, 4))
