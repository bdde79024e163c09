"""Who trains a model: one process or several, on which device and in which precision. Accelerate is underneath."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from elman.errors import InputError, NotSupported, StateError
from elman.precision import products_in

PRECISIONS = ("float32", "bfloat16")
_T = TypeVar("_T")


class Processes:
    """The processes that train a model together, seen from one of them; one alone, unless torchrun started several.

        torchrun --nproc-per-node 2 -m elman train lm book.txt

    Each holds the whole model and reads its part of every batch; the gradient is the mean over all, so that they take
    the steps which one would take with the same batch. The first alone writes files.

        with Processes() as processes:
            for step in Training(model, batches, steps=1000, processes=processes):
                …

    precision: "float32", or "bfloat16" for the factors of products; sums, states and weights stay as they are. On CPUs
        those of recurrences as well, where the processor gains by it (`torch.set_float32_matmul_precision`: "medium");
        on GPUs those outside of them, by autocast.
    device: "cpu", or "cuda" for one GPU per process. rank: of this process, from 0. count: of them.
    Raises NotSupported where Accelerate is needed and not installed.
    """

    def __init__(self, precision: str = "float32", device: str = "cpu") -> None:
        for name, value, among in (("precision", precision, PRECISIONS), ("device", device, ("cpu", "cuda"))):
            if value not in among:
                raise InputError(
                    what=f"unknown {name}", where=name, got=value, expected=" or ".join(among), mend="take one of them"
                )  # fmt: skip
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError(what="PyTorch sees no GPU here", where="device", got=device, mend="take cpu")
        self.precision, self.device = precision, torch.device(device)
        self.rank, self.count = 0, 1
        self._accelerator: Any = None
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._mixed = precision != "float32" and device != "cpu"
        if several or self._mixed:
            self._accelerator = _accelerator(self._mixed, device)
            self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes
            self.device = self._accelerator.device

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.count > 1 and kind is None:  # otherwise the others may wait for ever at the farewell
            self._accelerator.end_training()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside, on a GPU, a model runs in the precision."""
        return self._accelerator.autocast() if self._mixed else nullcontext()

    def products(self) -> AbstractContextManager[None]:
        """Inside, on a CPU, products have factors of the precision, forward and backward."""
        return nullcontext() if self._mixed or self.precision == "float32" else products_in("bf16")

    def share(self, parameters: Iterable[Tensor], *values: float) -> tuple[float, ...]:
        """Make each gradient the mean over all processes, and return the sums of some values besides.

        In one piece: what costs time is to meet at all. What no process has a gradient of has none afterwards either:
        AdamW, which lets decay whatever has one, then passes it over, as it does in one process.
        """
        if self.count == 1:
            return values
        parameters = list(parameters)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        used = [float(p.grad is not None) for p in parameters]
        told = torch.tensor([*values, *used], device=self.device)
        with self._together():
            flat = self._accelerator.reduce(torch.cat([*(part.flatten() for part in parts), told]), "sum")
        *means, sums, used = flat.split([*(p.numel() for p in parameters), len(values), len(parameters)])
        for p, mean, by in zip(parameters, means, used.tolist(), strict=True):
            p.grad = mean.view_as(p) / self.count if by else None
        return tuple(sums.tolist())

    def total(self, *values: float) -> tuple[float, ...]:
        """The sums over all processes, the same everywhere."""
        return self.share((), *values)

    def gathered(self, part: Tensor) -> Tensor:
        """The parts of all processes, one after the other along the first dimension."""
        if self.count == 1:
            return part
        with self._together():
            return self._accelerator.gather(part.to(self.device).contiguous())

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What goes wrong where all meet is the end of another one, as a rule, which says why by itself."""
        try:
            yield
        except RuntimeError as error:
            raise StateError(
                what="another process of those that train together has ended",
                where=f"process {self.rank} of {self.count}", got=str(error).partition("\n")[0][:200],
                mend="see what it said; --resume auto goes on from the last checkpoint",
            ) from error  # fmt: skip

    def part(self, whole: Tensor) -> Tensor:
        """Of what was `gathered`, this process's part."""
        return whole if self.count == 1 else whole.chunk(self.count)[self.rank]

    def first_does(self, work: Callable[[], _T]) -> _T | None:
        """The first process does something while the others wait; they get None, or end quietly if it failed."""
        result, failure = None, None
        if self.first:
            try:
                result = work()
            except Exception as error:
                failure = error
        (failures,) = self.total(float(failure is not None))
        if failure is not None:
            raise failure
        if failures:
            raise SystemExit(2)
        return result


def _accelerator(mixed: bool, device: str) -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise NotSupported(
            what="several processes, and bfloat16 on a GPU, need Accelerate, which is not installed",
            where="elman.training.Processes",
            mend="pip install 'elman[accelerate]'",
        ) from error
    return Accelerator(cpu=device == "cpu", mixed_precision="bf16" if mixed else "no")
