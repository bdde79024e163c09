"""Cells that can not be a circuit, each with the words that a good error must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.tensors import draw, floats
from tests.zoo import Base

Tensor = torch.Tensor
INPUT, HIDDEN, BATCH = 5, 8, 4
STATE = floats("H", scale=0.5)


@dataclass(frozen=True)
class Refused:
    """A cell that eager PyTorch runs at B = 4 and that is no circuit.

    says: what the error's text must contain, in any case of letters; of a tuple within it, one word is enough.
    line: a piece of the offending line of source, where the error can be expected to show it.
    """

    name: str
    build: Callable[[int, int], nn.Module]
    says: tuple[str | tuple[str, ...], ...]
    line: str | None = None
    states: Any = STATE

    def make(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.build(INPUT, HIDDEN)

    def x(self, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """One step's input [B, I]."""
        return draw(floats("I"), (BATCH,), generator, dtype, INPUT, HIDDEN)

    def state(self, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Any:
        return draw(self.states, (BATCH,), generator, dtype, INPUT, HIDDEN)

    def complaints(self, message: str) -> list[str]:
        """What a message lacks."""
        text = message.lower()
        groups = [(words,) if isinstance(words, str) else words for words in self.says]
        return [" or ".join(words) for words in groups if not any(word.lower() in text for word in words)]

    def __str__(self) -> str:
        return self.name


# --- decisions by the data --------------------------------------------------------------------------------------------


class BranchOnTheSum(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        if h.sum() > 0:
            return new
        return -new


class ReadsItsOwnNumber(Base):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)) * float(self.scale * 2)


class ChecksArguments(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        return new + 0.1 * torch.distributions.Normal(h, 1.0, validate_args=True).log_prob(new)


class ScaleByItem(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)) * h[0, 0].item()


class LoopUntilSmall(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        while new.abs().max() > 0.5:
            new = new * 0.9
        return new


class SelectByMask(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        return new * new[new > 0].sum()


# --- mutation ---------------------------------------------------------------------------------------------------------


class MutatedState(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)) + 0.1 * h.add_(1)


class MutatedInput(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        x.mul_(0.5)
        return torch.tanh(self.U(x) + self.W(h))


class MutatedParameter(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.W.weight.mul_(0.99)
        return torch.tanh(self.U(x) + self.W(h))


class WrittenResult(Base):
    """Autograd needs what tanh gave."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)).mul_(0.5)


class BatchNormalised(Base):
    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.norm = nn.BatchNorm1d(n_hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.U(x) + self.W(h)))


class CountingBuffer(Base):
    count: Tensor

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        self.count += 1
        return torch.tanh(self.U(x) + self.W(h)) / self.count


class ReplacedBuffer(CountingBuffer):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        self.count = self.count + 1
        return torch.tanh(self.U(x) + self.W(h)) / self.count


class StateInAttribute(Base):
    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.before: Tensor | None = None

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = torch.tanh(self.U(x) + self.W(h if self.before is None else self.before))
        self.before = h
        return h


class CountingAttribute(Base):
    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.count = 0

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        self.count += 1
        return torch.tanh(self.U(x) + self.W(h)) / self.count


class HistoryInList(Base):
    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.history: list[Tensor] = []

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        self.history.append(h)
        return torch.tanh(self.U(x) + self.W(sum(self.history[-2:], torch.zeros_like(h))))


# --- states that change -----------------------------------------------------------------------------------------------


class GrowingState(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.cat([torch.tanh(self.U(x) + self.W(h)), h], -1)


class ShrinkingState(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h))[:, :1]


class PromotedState(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        half = torch.full((1,), 0.5, dtype=torch.float64)
        return torch.tanh(self.U(x) + self.W(h)) * half


class RestructuredState(Base):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.tanh(self.U(x) + self.W(h))
        return h, h, h


# --- rows that meet ---------------------------------------------------------------------------------------------------


class MeanOverTheBatch(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)) - h.mean(0)


class SumOfEverything(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)) / (1 + h.square().sum())


class SoftmaxOverTheBatch(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.softmax(self.U(x) + self.W(h), 0)


class FlippedBatch(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)).flip(0)


class RolledBatch(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)) + h.roll(1, 0)


class CumsumAlongTheBatch(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)).cumsum(0) / 8


class RowsTimesRows(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        return torch.softmax(h @ h.t(), -1) @ new


class FirstRowForAll(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)) + h[0]


class TransposedBatch(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        return new.t().reshape(h.shape)


# --- the batch size ---------------------------------------------------------------------------------------------------


class BatchSizeAsFactor(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)) * h.shape[0] / 8


class BatchSizeAsDivisor(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)) / len(h)


class BatchSizeAsTensor(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)) * torch.full_like(h, h.shape[0]) / 8


class BranchOnOneRow(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        return new if h.shape[0] > 1 else 0.5 * new


class BranchOnManyRows(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        return new if h.shape[0] > 100 else 0.5 * new


class BatchInAView(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        return new.view(4, -1)


class BatchInZeros(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        return new + torch.zeros(4, 1)


# --- what comes from elsewhere ----------------------------------------------------------------------------------------


OUTSIDE = torch.nn.Parameter(torch.full((HIDDEN,), 0.5))


class Multinomial(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        return new * torch.multinomial(torch.softmax(h, -1), 1)


class CapturedGradient(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)) * OUTSIDE


ROWS_MEET = (("batch", "row"),)
DATA = ("data", ("torch.where", "mask"))

_TABLE = (
    Refused("branch_on_the_sum", BranchOnTheSum, ("data-dependent", "torch.where"), "if h.sum() > 0"),
    Refused("own_number", ReadsItsOwnNumber, ("own tensor scale", "attribute"), "float(self.scale * 2)"),
    Refused("distribution", ChecksArguments, ("validate_args=False",), "Normal("),
    Refused("scale_by_item", ScaleByItem, DATA, ".item()"),
    Refused("loop_until_small", LoopUntilSmall, DATA, "while new.abs()"),
    Refused("select_by_mask", SelectByMask, ("data", "shape"), "new[new > 0]"),
    Refused("mutated_state", MutatedState, ("mutat", "state"), "h.add_(1)"),
    Refused("mutated_input", MutatedInput, ("mutat", "input"), "x.mul_(0.5)"),
    Refused("mutated_parameter", MutatedParameter, ("mutat", "W.weight")),
    Refused("written_result", WrittenResult, ("autograd refuses", "[B, 8]", "v.clone()")),
    Refused("batch_norm", BatchNormalised, ("norm", ("BatchNorm", "buffer"), ".eval()")),
    Refused("mutated_buffer", CountingBuffer, ("count", "state")),
    Refused("replaced_buffer", ReplacedBuffer, ("count", "state")),
    Refused("state_in_attribute", StateInAttribute, ("attribute", "before", "state")),
    Refused("count_in_attribute", CountingAttribute, ("attribute", "count", "state")),
    Refused("history_in_list", HistoryInList, ("attribute", "history", "state")),
    Refused("growing_state", GrowingState, ("state", "shape")),
    Refused("shrinking_state", ShrinkingState, ("state", "shape")),
    Refused("promoted_state", PromotedState, ("state", "dtype", "float64")),
    Refused("restructured_state", RestructuredState, ("state", "returned")),
    Refused("mean_over_the_batch", MeanOverTheBatch, ROWS_MEET, "h.mean(0)"),
    Refused("sum_of_everything", SumOfEverything, ROWS_MEET, "h.square().sum()"),
    Refused("softmax_over_the_batch", SoftmaxOverTheBatch, ROWS_MEET, "torch.softmax("),
    Refused("flipped_batch", FlippedBatch, ROWS_MEET, ".flip(0)"),
    Refused("rolled_batch", RolledBatch, ROWS_MEET, "h.roll(1, 0)"),
    Refused("cumsum_along_the_batch", CumsumAlongTheBatch, ROWS_MEET, ".cumsum(0)"),
    Refused("rows_times_rows", RowsTimesRows, ROWS_MEET, "h @ h.t()"),
    Refused("first_row_for_all", FirstRowForAll, ROWS_MEET, "h[0]"),
    Refused("transposed_batch", TransposedBatch, ROWS_MEET, "new.t()"),
    Refused("batch_size_as_factor", BatchSizeAsFactor, ("batch",), "h.shape[0] / 8"),
    Refused("batch_size_as_divisor", BatchSizeAsDivisor, ("batch",), "/ len(h)"),
    Refused("batch_size_as_tensor", BatchSizeAsTensor, ("batch",), "torch.full_like(h, h.shape[0])"),
    Refused("branch_on_one_row", BranchOnOneRow, ("branch", "batch")),
    Refused("branch_on_many_rows", BranchOnManyRows, ("branch", "batch"), "h.shape[0] > 100"),
    Refused("batch_in_a_view", BatchInAView, ("batch",)),
    Refused("batch_in_zeros", BatchInZeros, ("batch",), "torch.zeros(4, 1)"),
    Refused("multinomial", Multinomial, ("random", "multinomial"), "torch.multinomial"),
    Refused("captured_gradient", CapturedGradient, ("gradient", "Parameter"), "* OUTSIDE"),
)  # fmt: skip

REFUSED: Mapping[str, Refused] = {entry.name: entry for entry in _TABLE}
assert len(REFUSED) == len(_TABLE), "two refused cells have one name"
