"""The normal form of a traced step: few operations, each saying plainly what it does to features and to rows.

`PASSES` is the whole list, in order. After it there are no detach, clone or alias; views are reshape, permute,
unsqueeze, expand, slice, select and cat; addmm is a product and a sum; the backwards of layer norm and convolution
are apart in what stays per row and what is summed over rows; nothing is computed twice and nothing is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.graphs import aten, insert, instead
from elman.circuit.operations import operation_of
from elman.circuit.rows import factor

Handler = Callable[[fx.Graph, fx.Node], Any]


def _val(node: Any) -> Any:
    return node.meta["val"]


def _rank(node: Any) -> int:
    return int(_val(node).dim())


def _same(graph: fx.Graph, node: fx.Node) -> Any:
    return node.args[0]


def _to_copy(graph: fx.Graph, node: fx.Node) -> Any:
    source = node.args[0]
    before, after = _val(source), _val(node)
    return source if before.dtype == after.dtype and before.device == after.device else None


def _copy(graph: fx.Graph, node: fx.Node) -> Any:
    """What is written over all of a value is the value; aten.copy itself has no derivative."""
    source = node.args[1]
    before, after = _val(source), _val(node)
    if before.dtype != after.dtype or before.device != after.device:
        source = insert(
            graph, aten._to_copy.default, source, dtype=after.dtype, device=after.device, like=node
        )
    if tuple(before.shape) == tuple(after.shape):
        return source
    if any(factor(size) for size in after.shape) and not any(factor(size) for size in before.shape):
        return None  # the rows come from the value that is written over
    return instead(graph, node, aten.expand.default, source, _shape_of(node))


def _shape_of(node: fx.Node) -> list[Any]:
    """The result's shape as arguments: the batch is -1 (there is at most one), so that no size has to be passed."""
    sizes = list(_val(node).shape)
    moving = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
    if len(moving) > 1:
        return []
    return [-1 if i in moving else int(size) for i, size in enumerate(sizes)]


_NUMBERS: dict[Any, Any] = {
    aten.new_zeros.default: 0, aten.new_ones.default: 1, aten.zeros_like.default: 0, aten.ones_like.default: 1,
}  # fmt: skip


def _new(graph: fx.Graph, node: fx.Node) -> Any:
    """Numbers that take no more than their dtype from a value with rows, and have no rows, are a constant."""
    value = _val(node)
    number = _NUMBERS.get(node.target, node.args[-1])
    if isinstance(number, fx.Node) or any(factor(size) for size in value.shape):
        return None
    sizes = [int(size) for size in value.shape]
    more = {"dtype": value.dtype, "device": value.device}
    return insert(graph, aten.full.default, sizes, number, like=node, val=value, **more)


def _reshape(graph: fx.Graph, node: fx.Node) -> Any:
    shape = _shape_of(node)
    if not shape and _rank(node):
        return None
    source = node.args[0]
    if 0 in shape and -1 in shape:
        return None  # -1 is ambiguous beside an empty dimension
    if tuple(_val(source).shape) == tuple(_val(node).shape):
        return source
    return instead(graph, node, aten.reshape.default, source, shape)


def _permute(order: Callable[[fx.Node], list[int]]) -> Handler:
    def handler(graph: fx.Graph, node: fx.Node) -> Any:
        source, dims = node.args[0], order(node)
        assert isinstance(source, fx.Node)
        if source.target is aten.permute.default:
            inner = source.args[1]
            dims = [inner[d] for d in dims]  # type: ignore[index]
            source = source.args[0]
        if dims == list(range(len(dims))):
            return source
        return instead(graph, node, aten.permute.default, source, dims)

    return handler


def _swap(rank: int, a: int, b: int) -> list[int]:
    order = list(range(rank))
    if rank:
        order[a % rank], order[b % rank] = order[b % rank], order[a % rank]
    return order


def _squeeze(graph: fx.Graph, node: fx.Node) -> Any:
    return (
        _reshape(graph, node) if tuple(_val(node).shape) != tuple(_val(node.args[0]).shape) else node.args[0]
    )


def _unsqueeze(graph: fx.Graph, node: fx.Node) -> Any:
    return _reshape(graph, node)


def _addmm(graph: fx.Graph, node: fx.Node) -> Any:
    bias, a, b = node.args[:3]
    product = instead(graph, node, aten.mm.default, a, b)
    return _scaled_sum(graph, node, bias, product)


def _baddbmm(graph: fx.Graph, node: fx.Node) -> Any:
    bias, a, b = node.args[:3]
    product = instead(graph, node, aten.bmm.default, a, b)
    return _scaled_sum(graph, node, bias, product)


def _scaled_sum(graph: fx.Graph, node: fx.Node, bias: Any, product: fx.Node) -> fx.Node:
    beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
    if alpha != 1:
        product = instead(graph, node, aten.mul.Tensor, product, alpha)
    if beta == 0:
        return product
    if beta != 1:
        bias = insert(graph, aten.mul.Tensor, bias, beta, like=node)
    return instead(graph, node, aten.add.Tensor, product, bias)


def _add(graph: fx.Graph, node: fx.Node) -> Any:
    """a + alpha·b is a product and a sum; a sum with a zero of the same shape and dtype is nothing."""
    if node.kwargs.get("alpha", 1) == 1 or not isinstance(node.args[1], fx.Node):
        return None
    scaled = insert(graph, aten.mul.Tensor, node.args[1], node.kwargs["alpha"], like=node)
    return instead(graph, node, node.target, node.args[0], scaled)  # type: ignore[arg-type]


def _split(graph: fx.Graph, node: fx.Node) -> Any:
    """split and unbind give tuples; every part that is read becomes a slice or a select of its own."""
    source = node.args[0]
    unbind = node.target is aten.unbind.int
    dim = (
        node.args[1]
        if unbind and len(node.args) > 1
        else node.args[2]
        if len(node.args) > 2 and not unbind
        else 0
    )
    dim = int(node.kwargs.get("dim", dim)) % _rank(source)  # type: ignore[arg-type]
    starts, at = [], 0
    for part in _val(node):
        starts.append(at)
        at += 1 if unbind else part.shape[dim]
    for read in list(node.users):
        position = int(read.args[1])  # type: ignore[arg-type]
        with graph.inserting_before(read):
            if unbind:
                part = insert(graph, aten.select.int, source, dim, position, like=node, val=_val(read))
            else:
                stop = starts[position] + _val(node)[position].shape[dim]
                part = insert(
                    graph, aten.slice.Tensor, source, dim, starts[position], stop, like=node, val=_val(read)
                )
        read.replace_all_uses_with(part)
        graph.erase_node(read)
    graph.erase_node(node)
    return _DONE


def _slice(graph: fx.Graph, node: fx.Node) -> Any:
    """A slice of everything is nothing; a slice of a slice is one slice; bounds are explicit and not negative."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if tuple(_val(source).shape) == tuple(_val(node).shape):
        return source
    dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % _rank(source)  # type: ignore[arg-type]
    size = _val(source).shape[dim]
    if not isinstance(size, int):
        return None
    start = node.args[2] if len(node.args) > 2 else node.kwargs.get("start")
    stop = node.args[3] if len(node.args) > 3 else node.kwargs.get("end")
    step = node.args[4] if len(node.args) > 4 else node.kwargs.get("step", 1)
    if not all(isinstance(v, (int, type(None))) for v in (start, stop, step)):
        return None
    low, high, step = slice(start, stop, step).indices(size)  # type: ignore[misc]
    if step == 1 and source.target is aten.slice.Tensor and source.args[1] == dim and len(source.args) == 4:
        low, high, source = low + int(source.args[2]), high + int(source.args[2]), source.args[0]  # type: ignore[arg-type, assignment]
    args = (source, dim, low, high) if step == 1 else (source, dim, low, high, step)
    return None if args == node.args else instead(graph, node, aten.slice.Tensor, *args)


def _scatter(graph: fx.Graph, node: fx.Node) -> Any:
    """Writing over everything, and the gradient of a slice of everything, are what is written."""
    whole, part = (node.args[:2]) if node.target is aten.slice_scatter.default else (node, node.args[0])
    return part if tuple(_val(whole).shape) == tuple(_val(part).shape) else None


def _stack(graph: fx.Graph, node: fx.Node) -> Any:
    dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))  # type: ignore[arg-type]
    rank = _rank(node)
    parts = []
    for part in node.args[0]:  # type: ignore[union-attr]
        shape = [-1 if not isinstance(s, int) else s for s in _val(part).shape]
        shape.insert(dim % rank, 1)
        parts.append(insert(graph, aten.reshape.default, part, shape, like=node))
    return instead(graph, node, aten.cat.default, parts, dim % rank)


def _cat(graph: fx.Graph, node: fx.Node) -> Any:
    return node.args[0][0] if len(node.args[0]) == 1 else None  # type: ignore[arg-type, index]


def _expand(graph: fx.Graph, node: fx.Node) -> Any:
    """An expansion that changes nothing goes; one that only feeds operations which broadcast by themselves goes too."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if tuple(_val(source).shape) == tuple(_val(node).shape):
        return source
    for user in list(node.users):
        if not _broadcasts(user):
            continue
        operands = [source if arg is node else arg for arg in user.args]
        shapes = [_val(arg).shape if isinstance(arg, fx.Node) else torch.Size() for arg in operands]
        # A number in a tensor of no dimensions does not take part in promotion, an expanded one does.
        if _rank(source) == 0 and _val(source).dtype != _val(user).dtype:
            continue
        if tuple(torch.broadcast_shapes(*map(_as_ints, shapes))) == _as_ints(_val(user).shape):
            user.args = tuple(operands)
    return None


def _as_ints(shape: Any) -> tuple[int, ...]:
    """A shape with a number for the batch, to ask how it broadcasts."""
    return tuple(size if isinstance(size, int) else 1187 * factor(size) for size in shape)


def _broadcasts(node: fx.Node) -> bool:
    return operation_of(node).broadcasts and all(
        not isinstance(arg, fx.Node) or isinstance(_val(arg), torch.Tensor) for arg in node.args
    )


def _parameters_apart(graph: fx.Graph, node: fx.Node) -> Any:
    """dx stays with the row, gradients of parameters are sums over rows: two calls, so that they can be run apart."""
    *arguments, mask = node.args
    if not (mask[0] and any(mask[1:])):  # type: ignore[index]
        return None
    reads = {int(read.args[1]): read for read in node.users}  # type: ignore[arg-type]
    first, *rest = _val(node)
    own, sums = (
        insert(graph, node.target, *arguments, wanted, like=node, val=values)  # type: ignore[arg-type]
        for wanted, values in (
            ([True, False, False], (first, None, None)),
            ([False, bool(mask[1]), bool(mask[2])], (None, *rest)),  # type: ignore[index]
        )
    )
    for position, read in reads.items():
        read.args = (own if position == 0 else sums, position)
    graph.erase_node(node)
    return _DONE


def _slice_backward_sum(graph: fx.Graph, node: fx.Node) -> Any:
    """Gradients of neighbouring slices, each padded with zeros and added up, are one concatenation."""
    if any(user.target is aten.add.Tensor and not user.kwargs for user in node.users):
        return None  # look at the last sum only
    parts = _summands(node)
    if len(parts) < 2 or any(part.target is not aten.slice_backward.default for part in parts):
        return None
    if any(part.args[2] != parts[0].args[2] or part.args[5] != 1 for part in parts):
        return None
    dim = int(parts[0].args[2]) % _rank(node)  # type: ignore[arg-type]
    size = _val(node).shape[dim]
    if not isinstance(size, int):
        return None
    parts.sort(key=lambda part: int(part.args[3]))  # type: ignore[arg-type]
    bounds = [slice(part.args[3], part.args[4]).indices(size)[:2] for part in parts]
    if (
        bounds[0][0] != 0
        or bounds[-1][1] != size
        or any(a[1] != b[0] for a, b in zip(bounds, bounds[1:], strict=False))
    ):
        return None
    return instead(graph, node, aten.cat.default, [part.args[0] for part in parts], dim)


def _summands(node: fx.Node) -> list[fx.Node]:
    if node.target is aten.add.Tensor and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args):
        left, right = node.args
        inner = [a for a in (left, right) if a.target is not aten.add.Tensor or len(a.users) == 1]  # type: ignore[union-attr]
        if len(inner) == 2:
            return [*_summands(left), *_summands(right)]  # type: ignore[arg-type]
    return [node]


def _conj(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """The numbers themselves: a tensor that only says that it is conjugated cannot be looked at as real numbers."""
    (source,) = node.args
    if isinstance(source, complex):  # a number of the step's own, `1j * …`, that its derivative conjugates
        value, number = _val(node), source.conjugate()
        more = {"dtype": value.dtype, "device": value.device}
        return insert(graph, aten.full.default, [], number, like=node, val=value, **more)
    return instead(graph, node, aten._conj_physical.default, source)


def _view_as_complex(graph: fx.Graph, node: fx.Node) -> Any:
    """A view asks for strides, and where a value lies is not said any more: of two numbers a complex one is made."""
    (pairs,) = node.args
    each = [insert(graph, aten.slice.Tensor, pairs, -1, i, i + 1, like=node) for i in (0, 1)]
    real, imaginary = (insert(graph, aten.squeeze.dim, one, -1, like=node) for one in each)
    return instead(graph, node, aten.complex.default, real, imaginary)


_DONE = object()

_HANDLERS: dict[Any, Handler] = {
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten.clone.default: _same,
    aten.lift_fresh.default: _same,
    aten.lift_fresh_copy.default: _same,
    aten.contiguous.default: _same,
    aten._to_copy.default: _to_copy,
    aten.copy.default: _copy,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.squeeze.default: _squeeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.unsqueeze.default: _unsqueeze,
    aten.t.default: _permute(lambda node: _swap(_rank(node), 0, -1)),
    aten.transpose.int: _permute(lambda node: _swap(_rank(node), int(node.args[1]), int(node.args[2]))),  # type: ignore[arg-type]
    aten.permute.default: _permute(lambda node: [int(d) % _rank(node) for d in node.args[1]]),  # type: ignore[union-attr, arg-type]
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _baddbmm,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _add,
    aten.split.Tensor: _split,
    aten.unsafe_split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.unsafe_split_with_sizes.default: _split,
    aten.unbind.int: _split,
    aten.slice.Tensor: _slice,
    aten.slice_scatter.default: _scatter,
    aten.slice_backward.default: _scatter,
    aten.stack.default: _stack,
    aten.cat.default: _cat,
    aten.expand.default: _expand,
    aten.native_layer_norm_backward.default: _parameters_apart,
    aten.convolution_backward.default: _parameters_apart,
    aten.view_as_complex.default: _view_as_complex,
    aten._conj.default: _conj,
    aten.new_zeros.default: _new,
    aten.new_ones.default: _new,
    aten.new_full.default: _new,
    # What a gradient starts from that is taken within the step: of an energy of all rows only the shape is left.
    aten.ones_like.default: _new,
    aten.zeros_like.default: _new,
}


def _rewrite(graph: fx.Graph, handlers: dict[Any, Handler]) -> None:
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in handlers:
            continue
        with graph.inserting_before(node):
            replacement = handlers[node.target](graph, node)
        if replacement is None or replacement is _DONE or replacement is node:
            continue
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)


def simplify(graph: fx.Graph) -> None:
    _rewrite(graph, _HANDLERS)


def assemble_slices(graph: fx.Graph) -> None:
    _rewrite(graph, {aten.add.Tensor: _slice_backward_sum})


PASSES: tuple[Callable[[fx.Graph], None], ...] = (
    simplify,
    graphs.drop_dead,
    assemble_slices,
    graphs.merge_equal,
    simplify,
    graphs.merge_equal,
    graphs.drop_dead,
)


def normalise(graph: fx.Graph) -> None:
    """Bring a traced graph into normal form, in place."""
    for one in PASSES:
        one(graph)
    graph.lint()
