"""What a program prepares once per call, by PyTorch's operations: the codes have their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from elman.engines.native.builder import Op
from elman.engines.native.values import Buffer, Unsupported, View

_OWN: dict[str, Callable[..., Tensor]] = {
    "fma": lambda a, b, c: a * b + c,
    "fnma": lambda a, b, c: c - a * b,
    "fms": lambda a, b, c: a * b - c,
    "lerp": torch.lerp,
    "clamp": torch.clamp,
    "floordiv": torch.floor_divide,
    **{f"copy{n}": lambda a: a for n in (1, 4, 8)},
    **{f"where{n}": torch.where for n in (1, 4, 8)},
    "bool_not": torch.logical_not, "bool_and": torch.logical_and, "bool_or": torch.logical_or,
    "bool_xor": torch.logical_xor, "bool_to_real": lambda a: a.float(), "int_to_real": lambda a: a.float(),
    "bool_to_int": lambda a: a.long(), "real_to_int": lambda a: a.long(), "real_to_bool": lambda a: a != 0,
    "int_to_bool": lambda a: a != 0,
}  # fmt: skip


def evaluated(prepare: Sequence[Op], constant: Callable[[Buffer], Tensor]) -> dict[Buffer, Tensor]:
    """The values of prepared memory, packed weights left out. constant: of what is handed in."""
    values: dict[Buffer, Tensor] = {}

    def read(view: View, strides: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        buffer, inner = view.buffer.root()
        flat = values[buffer] if buffer.kind == "prepared" else constant(buffer).contiguous().flatten()
        if any(stride < 0 for stride in strides):
            raise Unsupported("a constant that is turned round")
        return flat.as_strided(size, strides, inner + view.offset)

    for op in prepare:
        view = op.operands[0]
        if op.code == "product" or view is None:
            continue
        buffer, inner = view.buffer.root()
        if inner or view.offset or not view.contiguous:
            raise Unsupported("constants side by side")
        arguments = [
            read(v, s, op.size) for v, s in zip(op.operands[1:], op.strides[1:], strict=True) if v is not None
        ]
        if op.code in ("fill", "int_fill"):
            kind = torch.int64 if op.code == "int_fill" else torch.float32
            values[buffer] = torch.full(
                (buffer.width,), op.k if op.code == "int_fill" else op.number, dtype=kind
            )
            continue
        name = op.code.removeprefix("int_")
        function = _OWN.get(op.code) or getattr(torch, {"div": "true_divide"}.get(name, name), None)
        if function is None:
            raise Unsupported(f"{op.code} of what is the same at every step")
        values[buffer] = function(*arguments).contiguous().flatten()
    return values
