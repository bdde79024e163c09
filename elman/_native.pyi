"""The compiled part of the native engine: native/bind.cpp."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

# What native/program.hpp says: names and numbers of operations and of kinds of buffers, and sizes.
CODES: dict[str, int]
KINDS: dict[str, int]
DIMENSIONS: int
OPERANDS: int
MOST_BUFFERS: int
MOST_STATES: int
LINE: int
# What native/pass.hpp says.
ROWS: dict[str, int]
ORDERS: dict[str, int]
PLACES: dict[str, int]
PIECES: dict[str, int]

def instruction_sets() -> list[str]:
    """What this machine can run, the best first."""

def panels(name: str) -> tuple[int, int]:
    """Columns of a packed panel, in float32 and float64."""

def describes(tensor: Tensor) -> bool:
    """Whether a tensor can be read without its methods: by PyTorch's table for DLPack."""

def team() -> str:
    """Which threads are used: "openmp" or "own"."""

def keep_memory(begins: bool) -> None:
    """From here on passes of this thread hand memory to each other, or, as often, no longer."""

def tiles(bytes: int, rows: int) -> tuple[int, int]:
    """How much a pass computes at a time, from here on (for tests). Gives what it was."""

def poison(on: bool) -> None:
    """Fill scratch memory with NaN before every call (for tests)."""

def draw(
    kind: str,
    to: Tensor,
    wide: bool,
    seed: int,
    first: int,
    steps: int,
    count: int,
    threads: int,
    isa: str = "",
) -> None:
    """Fill a contiguous tensor with `count` numbers for each step from `first`: "uniform" in [0, 1), the same for every
    isa, or standard "normal"."""

def drop(
    x: Tensor, to: Tensor, wide: bool, seed: int, count: int, p: float, threads: int, isa: str = ""
) -> None:
    """to = x m / (1 - p), contiguous, of `count` numbers: m = 0 with probability p. The same for every isa."""

def multiply_adds(rounds: int, wide: bool = False, isa: str = "") -> int:
    """As many multiply-adds as a core can do in so many rounds: the operations that were, to be timed."""

class Pieces:
    """A batch cut into pieces: elman.segments.pieces.Pieces, whose arrays are made when they are asked for."""

    owner: np.ndarray
    fresh: np.ndarray
    first: np.ndarray
    last: np.ndarray
    sizes: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    in_order: bool
    alone: bool

    def __init__(
        self, steps: int, batch: int, lengths: Tensor | None, happens: Tensor | None, resets: Tensor | None
    ) -> None: ...

def are_lengths(tensor: Tensor, steps: int, batch: int) -> bool:
    """Whether a tensor is int64 `[B]` on the CPU, in order, and each of its numbers in 0 … T."""

def move(source: Tensor, index: np.ndarray, to: Tensor, lead: int) -> bool:
    """Rows in another order, written into `to`, zeros where there is no such row. False, and nothing done, for what
    PyTorch has to do. lead: the dimensions of `source` that stand for its rows, one or two."""

class Interpreter:
    """A program that can run: a loop."""

    def __init__(
        self, isa: str, wide: bool, prepare: list[list[int]], prepare_numbers: list[float], ops: list[list[int]],
        numbers: list[float], buffers: list[list[int]], states: list[list[int]], scratch_bytes: int,
        prepared_bytes: int, work: int, widest: int, constants: int, sequences: int, emits: int,
        widths: Sequence[int], /,
    ) -> None: ...  # fmt: skip
    def run(
        self,
        steps: int,
        batch: int,
        sizes: list[int] | None,
        reverse: bool,
        values: tuple[Tensor, ...],
        strides: Sequence[int] | None,
        out: tuple[Tensor, ...],
        finals: list[Tensor],
        threads: int,
    ) -> tuple[int, int, bool] | bool | None:
        """None; False if strides are None and values do not lie in order; else see elman.engines.lookups.failed."""

    def stream(
        self, weights: str, inputs: list[Any], outputs: list[Any], threads: Callable[[], int],
        failed: Callable[[int, int, bool], Exception], empty_strided: Callable[..., Tensor],
    ) -> Stream:  # fmt: skip
        """The same, to be run one step at a time.

        weights: "", "bfloat16" or "int8". inputs, outputs: of each sequence and emit, (dtype, NumPy's dtype, letters of
        its format, sizes of a row, whether each row has one). threads: how many there may be. failed: makes an error.
        empty_strided: memory for a tensor.
        """

class Stream:
    """A program whose constants are packed once and whose states are kept: see elman.engines.base.Stepper."""

    def load(
        self, constants: tuple[Tensor, ...], strides: Sequence[int], sources: list[tuple[Any, ...]],
        unchanged: Callable[[], bool] | None,
    ) -> None: ...  # fmt: skip
    def fresh(self) -> bool: ...
    def rows(self) -> int: ...
    def resize(self, rows: int) -> None: ...
    def read(self, state: int, first: int, count: int, to: Tensor) -> None: ...
    def write(self, state: int, first: int, count: int, source: Tensor) -> None: ...
    def drop(self, rows: Sequence[int]) -> None: ...
    def step(self, xs: Any, out: Any) -> Any:
        """The emits; False, and nothing was done, where something is not of its form."""

class Pass:
    """All that a plan computes, in one call: native/pass.hpp."""

    def __init__(
        self, isa: str, wide: bool, places: list[list[int]], given: list[int],
        made: Sequence[tuple[Any, Sequence[int]]], pieces: list[list[Any]],
        outcomes: list[list[int]], tiles: list[Any] | None, failed: Any, threads: Any, empty: Any,
        empty_strided: Callable[..., Tensor], uint8: Any,
    ) -> None: ...  # fmt: skip
    def __call__(
        self, steps: int, batch: int, seed: int, first: int, *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        """What comes out; inputs that are None are zeros. `empty` is called where there is no step or no row."""
    def packed(self, sizes: list[int], *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """The same of a pass on packed rows. sizes: the rows of each step, never growing."""
    def laid(self, pieces: Pieces, swaps: bool, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """The same of a pass that packs sequences and puts them back. swaps: whether states change places with their
        rows; if not, they are those of pieces."""
    def bytes(self, steps: int, batch: int, rows: int) -> int:
        """What a call with so many packed rows needs at once, if its inputs lie in order."""
    def tile(self, steps: int, batch: int) -> int:
        """How many steps a call computes at a time."""

class Multiplier:
    """Products of matrices outside the loop."""

    def __init__(self, isa: str, wide: bool, /) -> None: ...
    def __call__(
        self, products: tuple[tuple[Tensor | None, Tensor, Tensor | None, Tensor], ...], threads: int, /
    ) -> None:
        """Compute out = start + a b for each (a, b, start, out), or out = the sum of b's rows where a is None."""

class Carrier:
    """A step of what learning forward in time carries along: M = J M + D, in place (native/carry.hpp).

    at, of: int64; of each row, D is D[of[i]] at place at[i] and zero elsewhere; of None: i itself. sizes: rows, blocks,
    units, columns, and numbers of a row of D.
    """

    def __init__(self, isa: str, wide: bool, at: Tensor, of: Tensor | None, sizes: list[int]) -> None: ...
    def __call__(self, influence: Tensor, jacobian: Tensor, added: Tensor, threads: int, /) -> None:
        """influence: [rows, blocks, units, columns]; jacobian: [rows, blocks, units, units]; all lie in order."""

class Watch:
    """Whether objects are as they were: their classes, and what holds what, by identity; and what tensors are like."""

    def __init__(
        self,
        objects: list[Any],
        empty: list[Any],
        dicts: list[Any],
        classes: list[Any],
        lists: list[Any],
        names: list[Any],
        cells: list[Any],
        functions: list[Any],
        others: list[Any],
        tensors: list[Tensor],
        flowing: list[Tensor],
        asked: list[tuple[Callable[[], Any], Any]],
        /,
    ) -> None: ...
    def unchanged(self) -> bool: ...
    def same(self) -> bool:
        """The same but for tensors, and what is asked."""

class Again:
    """A call that is like the latest one, handed on: native/again.hpp."""

    def __init__(
        self, checks: list[Callable[[], bool]], answers: list[tuple[Callable[[], Any], Any]],
        names: list[tuple[dict[str, Any], str, Any]], target: Callable[..., tuple[Tensor, ...]],
        head: tuple[Any, ...], tensors: list[Tensor | int | None], arguments: tuple[Any, Any],
        start: Callable[[], Any] | None, free: int, wants: bool,
    ) -> None: ...  # fmt: skip
    def __call__(self, x: Any, state: Any) -> tuple[Tensor, ...] | None:
        """What the target gives; None where the call is another one, and nothing was done."""
