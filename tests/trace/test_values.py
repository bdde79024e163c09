"""What `known` says of an operation's result is what PyTorch's fake tensors say, or nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.utils import _pytree as pytree

from elman.trace import values
from elman.trace.fakes import Fakes

aten = torch.ops.aten
Tensor = torch.Tensor

# Ways in which a value [B, 3, 5] may lie in memory, or differ from the others; of some the result goes without saying.
KINDS: dict[str, Callable[[Any, torch.dtype], Tensor]] = {
    "whole": lambda B, dtype: torch.empty(B, 3, 5, dtype=dtype),
    "gaps": lambda B, dtype: torch.empty(B, 3, 7, dtype=dtype)[..., 1:6],
    "rows apart": lambda B, dtype: torch.empty(B, 4, 5, dtype=dtype)[:, 1:],
    "turned": lambda B, dtype: torch.empty(B, 5, 3, dtype=dtype).transpose(1, 2),
    "batch last": lambda B, dtype: torch.empty(3, 5, B, dtype=dtype).permute(2, 0, 1),
    "expanded": lambda B, dtype: torch.empty(B, 3, 1, dtype=dtype).expand(B, 3, 5),
    "one row": lambda B, dtype: torch.empty(1, 3, 5, dtype=dtype),
    "features": lambda B, dtype: torch.empty(5, dtype=dtype),
    "a number": lambda B, dtype: torch.empty((), dtype=dtype),
    "half": lambda B, dtype: torch.empty(B, 3, 5, dtype=torch.float16),
    "whole numbers": lambda B, dtype: torch.empty(B, 3, 5, dtype=torch.int64),
    "truth": lambda B, dtype: torch.empty(B, 3, 5, dtype=torch.bool),
}
ELEMENTWISE = [*values._ALIKE, *values._COMPARES, aten.mul.Tensor]


def described(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(map(described, value))
    if not isinstance(value, Tensor):
        return value
    return value.dtype, value.device, str(value.shape), str(value.stride()), value.storage_offset()


def compared(fakes: Fakes, func: Any, args: tuple[Any, ...]) -> bool:
    """Whether something is said; it has to be what PyTorch says, and nothing is decided by the batch."""
    with fakes.mode, enable_python_dispatcher(), torch.no_grad():
        ours = values.known(func, args, {})
        assert not fakes.env.guards
        if ours is not None:
            assert described(ours) == described(func(*args)), func
    return ours is not None


def arguments(func: Any, tensors: list[Tensor]) -> tuple[Any, ...]:
    """What an operation takes that has a default nowhere: tensors, and numbers beside them."""
    given, rest = iter(tensors), [a for a in func._schema.arguments if not a.kwarg_only]
    return tuple(next(given) if "Tensor" in str(a.type) else 0.5 for a in rest if not a.has_default_value())


@pytest.mark.parametrize("func", ELEMENTWISE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_element_by_element(func: Any, dtype: torch.dtype) -> None:
    said: set[str] = set()
    tensors = sum("Tensor" in str(a.type) for a in func._schema.arguments)
    for kinds in itertools.product(KINDS, repeat=tensors):
        if "whole" not in kinds and len({*kinds}) > 1:
            continue
        fakes = Fakes()
        with fakes.mode:
            args = arguments(func, [KINDS[kind](fakes.batch, dtype) for kind in kinds])
        if compared(fakes, func, args):
            said |= {*kinds}
    assert {"whole", "gaps", "rows apart"} <= said
    assert not said & {"turned", "batch last", "expanded", "half", "whole numbers"}


def operands(B: Any, dtype: torch.dtype, kind: str) -> dict[Any, tuple[Any, ...]]:
    """Arguments of all other operations, the first of them as `kind` says."""
    x, whole, mask = KINDS[kind](B, dtype), KINDS["whole"](B, dtype), KINDS["truth"](B, dtype)
    weight, bias = torch.empty(5, dtype=dtype), torch.empty(5, dtype=dtype)
    mean = torch.empty(B, 3, 1, dtype=dtype)
    flat, product, constant = (torch.empty(*size, dtype=dtype) for size in ((B, 4), (4, 6), (6,)))
    return {
        aten.where.self: (mask, x, whole),
        aten.addmm.default: (constant if kind == "whole" else x, flat, product),
        aten.native_layer_norm.default: (x, [5], weight, bias, 1e-5),
        aten.native_layer_norm_backward.default: (
            whole,
            x,
            [5],
            mean,
            mean,
            weight,
            bias,
            [True, True, False],
        ),
        aten.native_dropout.default: (x, 0.25, True),
        aten.native_dropout_backward.default: (x, mask, 2.0),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_others(kind: str) -> None:
    others = operands(2, torch.float32, "whole")
    assert {*others, *ELEMENTWISE} == set(values._RULES)
    for func, dtype in itertools.product(others, (torch.float32, torch.float64)):
        fakes = Fakes()
        with fakes.mode:
            args = operands(fakes.batch, dtype, kind)[func]
        assert compared(fakes, func, args) or kind != "whole"


def test_what_is_wrong_is_left_to_pytorch() -> None:
    fakes = Fakes()
    with fakes.mode:
        x, mask = KINDS["whole"](fakes.batch, torch.float32), KINDS["truth"](fakes.batch, torch.float32)
        narrow, wide = torch.empty(fakes.batch, 4), torch.empty(5, 6)
        assert values.known(aten.sub.Tensor, (x, mask), {}) is None
        assert values.known(aten.addmm.default, (torch.empty(6), narrow, wide), {}) is None
        assert values.known(aten.addmm.default, (torch.empty(6), narrow, wide.t()), {}) is None
        assert values.known(aten.native_layer_norm.default, (x, [4], None, None, 1e-5), {}) is None
        assert values.known(aten.native_layer_norm.default, (x, [5], torch.empty(4), None, 1e-5), {}) is None
        assert values.known(aten.native_dropout.default, (x, 0.5, False), {}) is None
        assert values.known(aten.add.Tensor, (x, x), {"alpha": 2}) is None
        assert values.known(aten.add.Tensor, (x, torch.empty(3, 5).to(torch.float64)), {}) is None
    assert not pytree.tree_leaves(fakes.env.guards)
