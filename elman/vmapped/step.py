"""One step run on several examples at once: the batching rules of its operations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from elman.circuit import graphs
from elman.circuit.graphs import aten
from elman.circuit.operations import RowRule, operation_of
from elman.circuit.rows import Mixed, rows_of

Tensor = torch.Tensor


class MappedStep:
    """One step, run on several examples: `several` are the nodes whose values have their dimension, at `_place`."""

    def __init__(self, size: int, several: set[fx.Node]) -> None:
        self.size, self.several = size, several
        self.values: dict[fx.Node, Any] = {}

    def run(self, graph: fx.Graph, inputs: dict[fx.Node, Any], added: Collection[str]) -> dict[str, Tensor]:
        self.values |= inputs
        for node in graph.nodes:
            if node.op == "call_function":
                self.values[node] = self.run_one(node)
        return {name: self._result(node, name in added) for name, node in graphs.results_of(graph).items()}

    def run_one(self, node: fx.Node) -> Any:
        """The value of an operation, whose operands are there."""
        target: Any = node.target
        sources = node.all_input_nodes
        if not any(source in self.several for source in sources):
            return target(*map_arg(node.args, self._get), **map_arg(node.kwargs, self._get))
        self.several.add(node)
        if target is operator.getitem:
            return target(*map_arg(node.args, self._get))
        rule = _rule(node)
        value = rule(self, node) if rule is not None else None
        if value is not None:
            return value

        return self.mapped(node)

    def mapped(self, node: fx.Node) -> Any:
        """What torch.vmap makes of an operation."""
        target: Any = _SIMPLER.get(node.target, node.target)
        sources = node.all_input_nodes

        def one(*values: Any) -> Any:
            of = dict(zip(sources, values, strict=True))
            result = target(*map_arg(node.args, of.__getitem__), **map_arg(node.kwargs, of.__getitem__))
            return [m for m in result if m is not None] if isinstance(result, (tuple, list)) else result

        value, places = node.meta["val"], _place(node)
        into = tuple(_place(source) if source in self.several else None for source in sources)
        result: Any = torch.vmap(one, into, places)(*map(self._get, sources))
        if not isinstance(value, (tuple, list)):
            return result
        parts = iter(result)
        return [None if part is None else next(parts) for part in value]

    def _get(self, node: fx.Node) -> Any:
        return self.values[node]

    def of_each(self, node: fx.Node) -> Tensor:
        """A value with the examples' dimension, whether it differs between them or not."""
        value, place = self.values[node], _place(node)
        if node in self.several:
            return value
        value = value.unsqueeze(place)
        return value.expand(*value.shape[:place], self.size, *value.shape[place + 1 :])

    def lined_up(self, node: Any, rank: int) -> Tensor:
        """A value that has no rows, of each example, to go with one of `rank` dimensions whose first are rows."""
        value = self.values[node]
        return value.reshape(self.size, *[1] * (rank - _rank(node) - 1), *value.shape[1:])

    def of_sizes(self, sizes: Any) -> list[Any]:
        """Sizes as they are in this trace."""
        return list(map_arg(sizes, self._get))

    def counted(self, numbers: Tensor) -> Tensor:
        """The number of each example, to stand beside indices `[…, V]`."""
        return torch.arange(self.size, device=numbers.device)

    def _result(self, node: fx.Node, added: bool) -> Tensor:
        if not added:
            return self.of_each(node)
        value = self.values[node]
        return value.sum(_place(node)) if node in self.several else value * self.size


def _place(node: fx.Node) -> Any:
    """Where the examples' dimension stands in a value: behind the rows, else in front; in each part of a tuple."""

    def of(value: Tensor) -> int:
        try:
            rows = rows_of(value)
        except Mixed:
            return 0
        return 0 if rows is None else rows.dim + 1

    value = node.meta["val"]
    return [of(v) for v in value if v is not None] if isinstance(value, (tuple, list)) else of(value)


# --- rules that keep the examples' dimension where it is; where one has no answer, torch.vmap turns it to the front --


def _elements(step: MappedStep, node: fx.Node) -> Tensor | None:
    """Element by element: operands line up from the right, the examples' dimension too."""
    value, sources = node.meta["val"], node.all_input_nodes
    if not isinstance(value, Tensor) or any(not isinstance(n.meta["val"], Tensor) for n in sources):
        return None
    behind = value.dim() - _place(node)
    operands: dict[fx.Node, Tensor] = {}
    for source in sources:
        operand, rank = step.values[source], _rank(source)
        if source in step.several:
            if rank - _place(source) != behind or (rank == 0 and operand.dtype != value.dtype):
                return None  # a tensor of no dimensions does not take part in promotion
        elif rank > behind:
            operand = operand.unsqueeze(rank - behind)
        operands[source] = operand
    target: Any = node.target
    return target(*map_arg(node.args, operands.__getitem__), **map_arg(node.kwargs, operands.__getitem__))


def _along(step: MappedStep, node: fx.Node) -> Any:
    """Along dimensions of the features, or over the rows."""
    first: Any = node.args[0]
    target: Any = node.target
    given = dict(zip((a.name for a in target._schema.arguments), node.args, strict=False)) | node.kwargs
    rank, place, dims = _rank(first), _place(first), given.get("dim")
    listed = dims if isinstance(dims, (list, tuple)) else [dims]
    if not listed or any(not isinstance(d, int) for d in listed) or rank == 0:
        return None
    if any((_rank(n), _place(n)) != (rank, place) for n in node.all_input_nodes):
        return None
    along: list[Any] = [*listed]
    listed = [d % rank for d in along]
    given["dim"] = [d + (d >= place) for d in listed]
    if not isinstance(dims, (list, tuple)):
        (given["dim"],) = given["dim"]
    result = target(**map_arg(given, step.of_each))
    value = node.meta["val"]
    if isinstance(value, (tuple, list)):
        return result if all(p == place for p in _place(node)) else None
    kept = value.dim() == rank
    return result.movedim(place if kept else place - sum(d < place for d in listed), _place(node))


def _reshape(step: MappedStep, node: fx.Node) -> Tensor | None:
    """Of the features alone: the rows stay in front, and the examples behind them."""
    source: Any = node.args[0]
    before, after = rows_of(source.meta["val"]), rows_of(node.meta["val"])
    if before != after or (before is not None and before.dim):
        return None
    value, place = step.values[source], _place(node)
    sizes = [int(size) for size in node.meta["val"].shape[place:]]
    return value.reshape([*([-1] * place), step.size, *sizes])


def _product(step: MappedStep, node: fx.Node) -> Tensor | None:
    """A product with a matrix that all examples share is one product of V times as many rows, or columns."""
    left, right = node.args
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    if (left in step.several) == (right in step.several):
        return None
    a, b = step.values[left], step.values[right]
    if left in step.several and _place(left) < 2:
        product = (a.reshape(-1, a.shape[-1]) @ b).reshape(*a.shape[:-1], b.shape[-1])
        return product.movedim(_place(left), _place(node))
    if right in step.several and _place(right) == 2:
        return (a @ b.reshape(b.shape[0], -1)).reshape(a.shape[0], *b.shape[1:])
    return None


def _products(step: MappedStep, node: fx.Node) -> Tensor | None:
    """A product for each row is one for each row of each example."""
    a, b = node.all_input_nodes if len(node.all_input_nodes) == 2 else (None, None)
    if a is None or b is None or _place(a) != 1 or _place(b) != 1:
        return None
    left, right = (step.of_each(n).flatten(0, 1) for n in node.args)  # type: ignore[arg-type]
    return torch.bmm(left, right).unflatten(0, (-1, step.size))


def _join(step: MappedStep, node: fx.Node) -> Tensor | None:
    """Side by side; torch.vmap's own rule asks how many rows there are."""
    parts: Any = node.args[0]
    along: Any = node.args[1] if len(node.args) > 1 else 0
    dim, place = along % _rank(node), _place(node)
    if any(_place(part) != place for part in parts) or dim == place - 1:
        return None
    return torch.cat([step.of_each(part) for part in parts], dim + (dim >= place))


def _layer_norm(step: MappedStep, node: fx.Node) -> Any:
    """Scale and shift apart where they are each example's own; torch.vmap's own rule asks how many rows there are."""
    args: Any = node.args
    x, shape, scale, shift, epsilon = args
    if _place(x) > _rank(x) - len(shape):  # type: ignore[arg-type]
        return None
    own = [step.lined_up(w, _rank(x)) if w in step.several else None for w in (scale, shift)]
    kept = [None if w is None or w in step.several else step.values[w] for w in (scale, shift)]
    if own[0] is not None:
        kept[1], own[1] = None, own[1] if own[1] is not None or shift is None else step.values[shift]
    out, mean, inverse = aten.native_layer_norm.default(step.of_each(x), shape, *kept, epsilon)
    out = out if own[0] is None else out * own[0]
    return out if own[1] is None else out + own[1], mean, inverse


def _layer_norm_backward(step: MappedStep, node: fx.Node) -> Any:
    gradient, x, shape, mean, inverse, scale, _, mask = node.args
    place, rank = _place(x), _rank(x)  # type: ignore[arg-type]
    if place > rank - len(shape):  # type: ignore[arg-type]
        return None
    operands: Any = (gradient, x, mean, inverse)
    g, x, mean, inverse = map(step.of_each, operands)
    if mask[0]:  # type: ignore[index]
        own = scale is not None and scale in step.several
        g = g * step.lined_up(scale, rank) if own else g
        kept = None if scale is None or own else step.values[scale]  # type: ignore[index]
        if all(operand in step.several for operand in operands):
            call = aten.native_layer_norm_backward.default
            return call(g, x, shape, mean, inverse, kept, None, [True, False, False])
        # PyTorch's reads a mean that is expanded as if it were not.
        g, z, along = g if kept is None else g * kept, (x - mean) * inverse, list(range(-len(shape), 0))  # type: ignore[arg-type]
        return inverse * (g - g.mean(along, True) - z * (g * z).mean(along, True)), None, None
    over = [d + (d >= place) for d in range(rank - len(shape))]  # type: ignore[arg-type]
    d_scale = (g * ((x - mean) * inverse)).sum(over) if mask[1] else None  # type: ignore[index]
    return None, d_scale, g.sum(over) if mask[2] else None  # type: ignore[index]


def _slice_backward(step: MappedStep, node: fx.Node) -> Tensor:
    """Of slice and select: zeros but for a part."""
    gradient, _, dim, *rest = node.args
    place = _place(node)
    dim = int(dim) % _rank(node)  # type: ignore[arg-type]
    if _place(gradient) - place != (0 if _rank(gradient) == _rank(node) or dim >= place else -1):  # type: ignore[arg-type]
        return step.mapped(node)
    g = step.of_each(gradient)  # type: ignore[arg-type]
    sizes = [*step.of_sizes(node.args[1])]
    sizes.insert(place, step.size)
    target: Any = node.target
    return target(g, sizes, dim + (dim >= place), *rest)


def _embedding(step: MappedStep, node: fx.Node) -> Tensor | None:
    table, index = node.args[:2]
    assert isinstance(table, fx.Node)
    assert isinstance(index, fx.Node)
    if table not in step.several:
        target: Any = node.target
        return target(step.values[table], step.values[index])
    number, numbers = table.meta["val"].shape[0], step.of_each(index)
    if _place(node) != 1 or _rank(index) != 1:
        return None
    numbers = torch.where(numbers < 0, number, numbers)  # is an error there, and the last place here
    return aten.index.Tensor(step.values[table], [step.counted(numbers), numbers])


def _embedding_backward(step: MappedStep, node: fx.Node) -> Tensor | None:
    args: Any = node.args
    gradient, index, number, padding, by_frequency = args
    if padding != -1 or by_frequency or _rank(index) != 1 or _place(index) != 1:  # type: ignore[arg-type]
        return None
    g, numbers = step.of_each(gradient), step.of_each(index)  # type: ignore[arg-type]
    zeros = torch.zeros((step.size, number, g.shape[-1]), dtype=g.dtype, device=g.device)
    return aten.index_put.default(zeros, [step.counted(numbers), numbers], g, True)


def _rank(node: fx.Node) -> int:
    return int(node.meta["val"].dim())


_RULES: dict[Any, Callable[[MappedStep, fx.Node], Any]] = {
    aten.mm.default: _product,
    aten.bmm.default: _products,
    aten.cat.default: _join,
    aten.slice_backward.default: _slice_backward,
    aten.select_backward.default: _slice_backward,
    aten.embedding.default: _embedding,
    aten.embedding_dense_backward.default: _embedding_backward,
    aten.reshape.default: _reshape,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
}
_RULES_OF_ROWS: dict[RowRule | None, Callable[[MappedStep, fx.Node], Any]] = {
    RowRule.ELEMENTS: _elements,
    RowRule.ALONG: _along,
    RowRule.SUM: _along,
    RowRule.GATHER: _along,
}
# What torch.vmap has no rule for, in terms of what it has rules for.
_SIMPLER: dict[Any, Callable[..., Any]] = {aten.fill.Scalar: torch.full_like}


def _rule(node: fx.Node) -> Callable[[MappedStep, fx.Node], Any] | None:
    target: Any = node.target
    if target in _RULES:
        return _RULES[target]
    if operation_of(node).counts or any("size" in a.name for a in target._schema.arguments):
        return None
    return _elements if torch.Tag.pointwise in target.tags else _RULES_OF_ROWS.get(operation_of(node).rows)
