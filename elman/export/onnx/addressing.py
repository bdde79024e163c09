"""Operations that say where numbers are, as nodes of ONNX."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from elman.errors import NotSupported
from elman.export.onnx.nodes import LAST, Nodes, dims_of, dtype_of, rank_of, shape_of


def reshaped(w: Nodes, node: Node, x: Any, sizes: Any) -> str:
    """One size that is open is left for ONNX to find out: in a loop that is cheaper than to say it."""
    is_open = [isinstance(size, Node) for size in sizes]
    if sum(is_open) == 1 and all(unknown or size > 0 for unknown, size in zip(is_open, sizes, strict=True)):
        sizes = [-1 if unknown else size for unknown, size in zip(is_open, sizes, strict=True)]
    return w.add("Reshape", w.names[x], w.sizes(sizes), allowzero=0)


def like_result(w: Nodes, node: Node, x: Any, *_: Any) -> str:
    """A reshape whose sizes can be read off the result: flatten, unflatten, squeeze."""
    sizes = shape_of(node)
    unknown = [dim for dim, size in enumerate(sizes) if not isinstance(size, int)]
    if len(unknown) <= 1:
        return w.add(
            "Reshape", w.names[x], w.ints(*(-1 if dim in unknown else s for dim, s in enumerate(sizes)))
        )
    raise NotSupported(what="a reshape of two open sizes has no form in ONNX", where=str(node.target))


def permuted(w: Nodes, node: Node, x: Any, dims: Any) -> str:
    return w.add("Transpose", w.names[x], perm=dims_of(dims, rank_of(x)))


def swapped(w: Nodes, node: Node, x: Any, one: int = -2, other: int = -1) -> str:
    dims = list(range(rank_of(x)))
    if len(dims) < 2:
        return w.names[x]
    dims[one], dims[other] = dims[other], dims[one]
    return w.add("Transpose", w.names[x], perm=dims)


def movedim(w: Nodes, node: Node, x: Any, source: Any, target: Any) -> str:
    rank = rank_of(x)
    a, b = dims_of(source, rank), dims_of(target, rank)
    order = [dim for dim in range(rank) if dim not in a]
    for place, dim in sorted(zip(b, a, strict=True)):
        order.insert(place, dim)
    return w.add("Transpose", w.names[x], perm=order)


def unsqueezed(w: Nodes, node: Node, x: Any, dim: int) -> str:
    return w.add("Unsqueeze", w.names[x], w.ints(dim % (rank_of(x) + 1)))


def squeezed(w: Nodes, node: Node, x: Any, dims: Any = None) -> str:
    axes = [d for d in dims_of(dims, rank_of(x)) if shape_of(x)[d] == 1 and isinstance(shape_of(x)[d], int)]
    return w.add("Squeeze", w.names[x], w.ints(*axes)) if axes else w.names[x]


def expanded(w: Nodes, node: Node, x: Any, sizes: Any, implicit: bool = False) -> str:
    return w.add("Expand", w.names[x], w.sizes([1 if size == -1 else size for size in sizes]))


def repeated(w: Nodes, node: Node, x: Any, times: Any) -> str:
    name = w.names[x]
    if more := len(times) - rank_of(x):
        name = w.add("Unsqueeze", name, w.ints(*range(more)))
    return w.add("Tile", name, w.sizes(times))


def sliced(
    w: Nodes, node: Node, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> str:
    end = LAST if end is None else end
    start = 0 if start is None else start
    if step == 1 and (start, end) == (0, LAST):
        return w.names[x]
    dim %= rank_of(x)
    return w.add("Slice", w.names[x], w.sizes([start]), w.sizes([end]), w.ints(dim), w.ints(step))


def diagonal(w: Nodes, node: Node, x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> str:
    """The two dimensions go to the end, as one, of which every so manieth is taken."""
    rank = rank_of(x)
    dims = [dim1 % rank, dim2 % rank]
    rows, columns = (shape_of(x)[dim] for dim in dims)
    count = shape_of(node)[-1]
    if not all(isinstance(size, int) for size in (rows, columns, count)):
        raise NotSupported(what="a diagonal of an open size has no form in ONNX", where="diagonal")
    turned = w.add("Transpose", w.names[x], perm=[*(d for d in range(rank) if d not in dims), *dims])
    flat = w.add("Reshape", turned, w.ints(*[0] * (rank - 2), rows * columns))
    first = offset if offset >= 0 else -offset * columns
    return w.add("Gather", flat, w.ints(*(first + i * (columns + 1) for i in range(count))), axis=rank - 2)


def windows(w: Nodes, node: Node, x: Any, dim: int, size: int, step: int) -> str:
    """unfold: each window is taken as a row of its own, which then goes to the end."""
    rank = rank_of(x)
    dim %= max(rank, 1)
    count = shape_of(node)[dim]
    if not rank or not isinstance(count, int):
        raise NotSupported(what="windows along an open size have no form in ONNX", where="unfold")
    where = torch.arange(count)[:, None] * step + torch.arange(size)
    taken = w.add("Gather", w.names[x], w.constant(where, torch.int64), axis=dim)
    others = [d for d in range(rank + 1) if d != dim + 1]
    return w.add("Transpose", taken, perm=[*others, dim + 1])


def part(w: Nodes, name: str, dim: int, start: int, end: int, step: int = 1) -> str:
    """x[start:end:step] along a dimension."""
    return w.add("Slice", name, w.ints(start), w.ints(end), w.ints(dim), w.ints(step))


def selected(w: Nodes, node: Node, x: Any, dim: int, index: Any) -> str:
    return w.add("Gather", w.names[x], w.tensor(index, torch.int64), axis=dim % rank_of(x))


def split(w: Nodes, node: Node, x: Any, sizes: Any, dim: int = 0) -> list[str]:
    parts = [value.shape[dim] for value in node.meta["val"]]
    if not all(isinstance(size, int) for size in parts):
        raise NotSupported(what="a split along an open size has no form in ONNX", where=str(node.target))
    return w.several("Split", (w.names[x], w.ints(*parts)), len(parts), axis=dim % rank_of(x))


def unbound(w: Nodes, node: Node, x: Any, dim: int = 0) -> list[str]:
    dim %= rank_of(x)
    return [
        w.add("Gather", w.names[x], w.constant(i, torch.int64), axis=dim)
        for i in range(len(node.meta["val"]))
    ]


def joined(w: Nodes, node: Node, parts: Any, dim: int = 0) -> str:
    dtype = dtype_of(node)
    parts = [part for part in parts if rank_of(part) == rank_of(node)]  # torch lets an empty [0] pass
    return w.add("Concat", *(w.tensor(part, dtype) for part in parts), axis=dim % rank_of(node))


def stacked(w: Nodes, node: Node, parts: Any, dim: int = 0) -> str:
    dim %= rank_of(node)
    raised = [w.add("Unsqueeze", w.tensor(part, dtype_of(node)), w.ints(dim)) for part in parts]
    return w.add("Concat", *raised, axis=dim)


def padded(w: Nodes, node: Node, x: Any, pads: Any, value: Any = 0) -> str:
    rank = rank_of(x)
    before, after = [0] * rank, [0] * rank
    for i in range(len(pads) // 2):
        before[rank - 1 - i], after[rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    return w.add("Pad", w.names[x], w.sizes([*before, *after]), w.constant(value, dtype_of(node)))


def put_slice(
    w: Nodes, node: Node, x: Any, src: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> str:
    """slice_scatter: what lies before, the new part, what lies behind."""
    dim, size = dim % rank_of(x), shape_of(x)[dim]
    if step != 1 or not isinstance(size, int) or isinstance(start, Node) or isinstance(end, Node):
        raise NotSupported(
            what="a slice with steps, or of an open size, is not written into", where="slice_scatter"
        )
    start, end, _ = slice(start, end).indices(size)
    name, new = w.names[x], w.tensor(src, dtype_of(node))
    pieces = [part(w, name, dim, 0, start)] if start else []
    pieces += [new, *([part(w, name, dim, end, LAST)] if end < size else [])]
    return w.add("Concat", *pieces, axis=dim) if len(pieces) > 1 else new


def put_place(w: Nodes, node: Node, x: Any, src: Any, dim: int, index: int) -> str:
    """select_scatter."""
    dim, size = dim % rank_of(x), shape_of(x)[dim]
    index %= size
    new = w.add("Unsqueeze", w.tensor(src, dtype_of(node)), w.ints(dim))
    pieces = [part(w, w.names[x], dim, 0, index)] if index else []
    pieces += [new, *([part(w, w.names[x], dim, index + 1, LAST)] if index + 1 < size else [])]
    return w.add("Concat", *pieces, axis=dim) if len(pieces) > 1 else new


def flipped(w: Nodes, node: Node, x: Any, dims: Any) -> str:
    axes = dims_of(dims, rank_of(x))
    if not axes:
        return w.names[x]
    many = len(axes)
    return w.add(
        "Slice",
        w.names[x],
        w.ints(*[-1] * many),
        w.ints(*[-LAST] * many),
        w.ints(*axes),
        w.ints(*[-1] * many),
    )


def rolled(w: Nodes, node: Node, x: Any, shifts: Any, dims: Any = ()) -> str:
    name = w.names[x]
    if not dims:
        raise NotSupported(what="a roll of all numbers has no form in ONNX", where="roll")
    for shift, dim in zip(shifts, dims_of(dims, rank_of(x)), strict=True):
        size = shape_of(x)[dim]
        if not isinstance(size, int):
            raise NotSupported(what="a roll along an open size has no form in ONNX", where="roll")
        if far := shift % size:
            name = w.add(
                "Concat", part(w, name, dim, size - far, LAST), part(w, name, dim, 0, size - far), axis=dim
            )
    return name


def triangle(upper: int) -> Any:
    def rule(w: Nodes, node: Node, x: Any, diagonal: int = 0) -> str:
        return w.add("Trilu", w.names[x], w.constant(diagonal, torch.int64), upper=upper)

    return rule


# --- what indices choose ---------------------------------------------------------------------------------------------


def embedded(w: Nodes, node: Node, weight: Any, index: Any, *_: Any) -> str:
    return w.add("Gather", w.names[weight], w.tensor(index, torch.int64), axis=0)


def index_selected(w: Nodes, node: Node, x: Any, dim: int, index: Any) -> str:
    return w.add("Gather", w.names[x], w.tensor(index, torch.int64), axis=dim % rank_of(x))


def gathered(w: Nodes, node: Node, x: Any, dim: int, index: Any, *_: Any) -> str:
    return w.add("GatherElements", w.names[x], w.tensor(index, torch.int64), axis=dim % rank_of(x))


def scattered(reduction: str) -> Any:
    def rule(w: Nodes, node: Node, x: Any, dim: int, index: Any, src: Any) -> str:
        where, dtype = w.tensor(index, torch.int64), dtype_of(node)
        new = w.tensor(src, dtype)
        if not isinstance(src, Node):
            new = w.add("Expand", new, w.add("Shape", where))
        elif shape_of(src) != shape_of(index):
            raise NotSupported(what="a scatter of a larger source has no form in ONNX", where="scatter")
        return w.add("ScatterElements", w.names[x], where, new, axis=dim % rank_of(x), reduction=reduction)

    return rule


def index_added(w: Nodes, node: Node, x: Any, dim: int, index: Any, src: Any, alpha: Any = 1) -> str:
    dim, dtype, new = dim % rank_of(x), dtype_of(node), w.tensor(src, dtype_of(node))
    if alpha != 1:
        new = w.add("Mul", new, w.constant(alpha, dtype))
    others = [d for d in range(rank_of(x)) if d != dim]
    where = w.tensor(index, torch.int64)
    where = w.add("Unsqueeze", where, w.ints(*others)) if others else where
    where = w.add("Expand", where, w.shape(src))
    return w.add("ScatterElements", w.names[x], where, new, axis=dim, reduction="add")


def _places(w: Nodes, x: Any, indices: Any) -> tuple[list[int], str, int]:
    """(dimensions that are indexed, `[…, n]` where, how many dimensions the indices have)."""
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    given = [indices[dim] for dim in dims]
    if any(dtype_of(index) == torch.bool for index in given):
        raise NotSupported(
            what="a mask as an index has no form in ONNX", where="index", mend="use torch.where"
        )
    names, rank = [w.tensor(index, torch.int64) for index in given], max(map(rank_of, given))
    if len(names) > 1:
        whole = names[0]
        for name in names[1:]:  # adding spreads them over each other
            whole = w.add("Add", whole, name)
        shape = w.add("Shape", whole)
        names = [w.add("Expand", name, shape) for name in names]
    return dims, w.add("Concat", *(w.add("Unsqueeze", n, w.ints(rank)) for n in names), axis=rank), rank


def indexed(w: Nodes, node: Node, x: Any, indices: Any) -> str:
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    if len(dims) == 1 and dtype_of(indices[dims[0]]) != torch.bool:
        return w.add("Gather", w.names[x], w.tensor(indices[dims[0]], torch.int64), axis=dims[0])
    dims, where, rank = _places(w, x, indices)
    rest = [dim for dim in range(rank_of(x)) if dim not in dims]
    values = w.add("GatherND", w.add("Transpose", w.names[x], perm=[*dims, *rest]), where)
    first = dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0
    if not first:
        return values
    order = [*range(rank, rank + first), *range(rank), *range(rank + first, rank + len(rest))]
    return w.add("Transpose", values, perm=order)


def index_put(w: Nodes, node: Node, x: Any, indices: Any, values: Any, accumulate: bool = False) -> str:
    dims, where, rank = _places(w, x, indices)
    rest = [dim for dim in range(rank_of(x)) if dim not in dims]
    if dims != list(range(len(dims))):
        raise NotSupported(
            what="writing to places of a later dimension has no form in ONNX", where="index_put"
        )
    shape = w.add("Shape", where, start=0, end=rank)
    if rest:
        shape = w.add("Concat", shape, w.add("Shape", w.names[x], start=len(dims)), axis=0)
    new = w.add("Expand", w.tensor(values, dtype_of(node)), shape)
    return w.add("ScatterND", w.names[x], where, new, reduction="add" if accumulate else "none")


# --- made out of nothing ---------------------------------------------------------------------------------------------


def filled(w: Nodes, sizes: Any, value: Any, dtype: torch.dtype) -> str:
    """Numbers that are all the same."""
    if isinstance(value, Node):
        return w.add("Expand", w.tensor(value, dtype), w.sizes(sizes))
    return w.add("Expand", w.constant(value, dtype), w.sizes(sizes)) if sizes else w.constant(value, dtype)


def full(place: int, value: Any = None) -> Any:
    """Of sizes that stand among the arguments at `place`; the value is a number, or stands behind them."""

    def rule(w: Nodes, node: Node, *given: Any) -> str:
        return filled(w, given[place], given[place + 1] if value is None else value, dtype_of(node))

    return rule


def full_like(value: Any = None) -> Any:
    """As large as the first operand; the value is a number, or the second."""

    def rule(w: Nodes, node: Node, x: Any, *given: Any) -> str:
        return w.add("Expand", w.tensor(given[0] if value is None else value, dtype_of(node)), w.shape(x))

    return rule


def scalar(w: Nodes, node: Node, value: Any, *_: Any) -> str:
    return w.tensor(value, dtype_of(node))


def eye(w: Nodes, node: Node, n: Any, m: Any = None, *_: Any) -> str:
    m = m if isinstance(m, int) else n
    return w.constant(torch.eye(n, m), dtype_of(node))


def counted(w: Nodes, node: Node, *given: Any) -> str:
    """arange."""
    name, dtype = str(node.target), dtype_of(node)
    start, end, step = (
        (0, given[0], 1) if ".default" in name else (*given[:2], given[2] if "step" in name else 1)
    )
    return w.add("Range", *(w.tensor(value, dtype) for value in (start, end, step)))
