"""Nodes of ONNX, written one after another: what an operation's rule calls, and what it needs to know of a graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch.fx import Node

from elman.errors import NotSupported

LAST = 2**63 - 1  # the end of a slice that goes to the end

_KINDS = {
    torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE, torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16, torch.int64: TensorProto.INT64, torch.int32: TensorProto.INT32,
    torch.int16: TensorProto.INT16, torch.int8: TensorProto.INT8, torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}  # fmt: skip


def kind_of(dtype: torch.dtype) -> int:
    """What ONNX calls a dtype."""
    if dtype not in _KINDS:
        raise NotSupported(what=f"ONNX has no numbers of {dtype}", where="export(…onnx)")
    return _KINDS[dtype]


class Nodes:
    """The nodes of a graph, or of the body of a loop in it.

    nodes: of this graph alone. weights: initializers, by name, of the outermost one, which all see. A tensor is known
    by its name; a size that is open is a tensor of one whole number, `[1]`, so that sizes can be put side by side.
    """

    def __init__(self, outer: Nodes | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {} if outer is None else outer.weights
        self.taken: set[str] = set() if outer is None else outer.taken
        self.known: dict[Any, str] = {} if outer is None else outer.known
        self.names: dict[Node, Any] = {}

    # --- making -----------------------------------------------------------------------------------------------------

    def name(self, wish: str) -> str:
        """A name that nothing has yet."""
        base, count = re.sub(r"\s", "_", wish), 1
        name = base
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name

    def add(self, kind: str, *inputs: str, wish: str | None = None, **attributes: Any) -> str:
        """A node of one result; "" is an input that is left out."""
        return self.several(kind, inputs, 1, wish, **attributes)[0]

    def several(
        self, kind: str, inputs: Sequence[str], count: int, wish: str | None = None, **attributes: Any
    ) -> list[str]:
        """A node of several results."""
        names = [self.name(wish or kind.lower()) for _ in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names

    def constant(self, value: Any, dtype: torch.dtype) -> str:
        """A constant of numbers, which is there once."""
        tensor = torch.as_tensor(value)
        if not isinstance(value, torch.Tensor) and tensor.is_floating_point():
            tensor = torch.as_tensor(value, dtype=torch.float64)  # PyTorch takes Python's numbers for float32
        tensor = tensor.to(dtype)
        array = bits(tensor)
        key = dtype, tuple(tensor.shape), array.tobytes()
        if key not in self.known:
            self.known[key] = self.weight(self.name("constant"), tensor)
        return self.known[key]

    def weight(self, name: str, tensor: torch.Tensor) -> str:
        """An initializer under its name."""
        initializer = helper.make_tensor(
            name, kind_of(tensor.dtype), list(tensor.shape), bits(tensor).tobytes(), raw=True
        )
        self.weights[name] = initializer
        return name

    def ints(self, *values: int) -> str:
        """Whole numbers `[n]`."""
        return self.constant(list(values), torch.int64)

    # --- reading ----------------------------------------------------------------------------------------------------

    def tensor(self, value: Any, dtype: torch.dtype) -> str:
        """The name of an operand, a node or a number, in a dtype."""
        if not isinstance(value, Node):
            return self.constant(value, dtype)
        if isinstance(value.meta["val"], (torch.SymInt, int)):
            return self.cast(self.add("Squeeze", self.names[value]), torch.int64, dtype)
        return self.cast(self.names[value], dtype_of(value), dtype)

    def cast(self, name: str, old: torch.dtype, new: torch.dtype) -> str:
        return name if old == new else self.add("Cast", name, to=kind_of(new))

    def sizes(self, values: Sequence[Any]) -> str:
        """Sizes `[n]`, of which some may be open."""
        if not any(isinstance(value, Node) for value in values):
            return self.ints(*map(int, values))
        pieces: list[str] = []
        run: list[int] = []
        for value in values:
            if isinstance(value, Node):
                pieces += [self.ints(*run)] if run else []
                run = []
                pieces.append(self.names[value])
            else:
                run.append(int(value))
        pieces += [self.ints(*run)] if run else []
        return pieces[0] if len(pieces) == 1 else self.add("Concat", *pieces, axis=0)

    def size(self, value: Node, dim: int) -> str:
        """One size of a tensor, `[1]`."""
        static = value.meta["val"].shape[dim]
        if isinstance(static, int):
            return self.ints(static)
        dim %= value.meta["val"].dim()
        return self.add("Shape", self.names[value], start=dim, end=dim + 1)

    def shape(self, value: Node) -> str:
        """All sizes of a tensor."""
        return self.add("Shape", self.names[value])


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The numbers as numpy has them; of bfloat16, which it lacks, their bits."""
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def dtype_of(node: Any) -> torch.dtype:
    """Of a node's tensor."""
    return node.meta["val"].dtype


def rank_of(node: Any) -> int:
    """How many dimensions a node's tensor has."""
    return node.meta["val"].dim()


def shape_of(node: Any) -> list[Any]:
    """The sizes of a node's tensor, whole numbers and symbols."""
    return list(node.meta["val"].shape)


def dims_of(dims: Any, rank: int) -> list[int]:
    """Dimensions, counted from the front; all of them where none is said."""
    if dims is None or dims == []:
        return list(range(rank))
    return [dim % rank if rank else 0 for dim in ([dims] if isinstance(dims, int) else dims)]


def arguments(node: Node) -> list[Any]:
    """What an operation of ATen is called with, in the order of its schema, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    return [given.get(argument.name, argument.default_value) for argument in schema]
