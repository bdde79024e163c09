"""What an operation does to the rows of a batch, node by node; elman/circuit/operations.py says by which rule.

- ROWWISE: row i of the result depends on row i of the operands only. Then the operation can run on the rows
  of all time steps at once.
- SUMMED: the operation adds up its rows (dW = gᵀ h, db = Σ g). Run on the rows of all time steps, it sums over
  time as well. Values that came from such a sum may pass through homogeneous linear operations only.
- MIXING, BATCH_SIZE, UNKNOWN: rows meet, the number of rows is computed with, or nobody knows; with the reason, a
  sentence. In a cell's forward pass that is an error; in a backward pass the operation stays in the loop and is
  added up there step by step.
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.fx.node import map_arg

from elman.circuit.linear import is_zero
from elman.circuit.operations import RowRule, operation_of
from elman.circuit.rows import Mixed, Rows, carries, rows_of


class Does(enum.Enum):
    """What an operation does to the rows of a batch."""

    ROWWISE = "keeps rows apart"
    SUMMED = "adds up the rows"
    MIXING = "lets rows meet"
    BATCH_SIZE = "computes with the number of rows"
    UNKNOWN = "elman has no rule for it"


class Verdict(NamedTuple):
    """reason: a sentence, unless `does` says it all."""

    does: Does
    reason: str = ""


ROWWISE, SUMMED = Verdict(Does.ROWWISE), Verdict(Does.SUMMED)


def verdict(node: fx.Node) -> Verdict:
    """What an operation does to the rows of its operands, and why it is not row by row."""
    try:
        if node.target is operator.getitem:
            return ROWWISE  # what there is to say, the operation says that has several results
        parts = node.meta["val"] if isinstance(node.meta["val"], (tuple, list)) else (node.meta["val"],)
        for part in parts:
            rows_of(part)
    except Mixed as mixed:
        return _mixing(str(mixed))
    if batch_as_value(node):
        return Verdict(Does.BATCH_SIZE, "the batch size is used as a value")
    rule = operation_of(node).rows
    if not any(carries(source.meta["val"]) for source in node.all_input_nodes):
        if rule in (RowRule.ALONG_RESULT, RowRule.PAD) and carries(parts[0]):
            return RULES[rule](node)  # one of the rows that come out may differ from the others
        return ROWWISE  # no rows go in: a constant, or a shape of rows filled with one value
    if (
        rule is None
        and isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.pointwise in node.target.tags
    ):
        rule = RowRule.ELEMENTS
    if rule is not None:
        return RULES[rule](node)
    return Verdict(Does.UNKNOWN, f"elman has no rule for what {node.target} does to the rows of a batch")


_SIZE_ARITHMETIC = {
    operator.mul,
    operator.add,
    operator.sub,
    operator.floordiv,
    operator.mod,
    operator.getitem,
}


def _mixing(reason: str) -> Verdict:
    return Verdict(Does.MIXING, reason)


def batch_as_value(node: fx.Node) -> bool:
    """Whether the batch size enters where a number is computed with, rather than a shape."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target not in _SIZE_ARITHMETIC and any(_is_size(n) for n in node.all_input_nodes)
    if operation_of(node).counts and any(_is_size(n) for n in node.all_input_nodes):
        return True
    arguments = {a.name: a.type for a in node.target._schema.arguments}
    given = dict(zip(arguments, node.args, strict=False)) | node.kwargs
    for name, value in given.items():
        if (
            any(_is_size(n) for n in _nodes(value))
            and "Int" not in str(arguments[name])
            and "int" not in str(arguments[name])
        ):
            return True
    return False


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat))


def _nodes(value: Any) -> list[fx.Node]:
    nodes: list[fx.Node] = []
    map_arg(value, nodes.append)
    return nodes


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of an ATen call by its schema name; its default where it is not given, None if it takes none such."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, argument.default_value)
    return None


def _value(node: Any) -> Any:
    return node.meta["val"]


def _rank(node: Any) -> int:
    return int(_value(node).dim())


def _dims(dims: Any, rank: int) -> set[int]:
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return set(range(rank))
    listed: Iterable[int] = dims if isinstance(dims, (list, tuple)) else (dims,)
    return {int(d) % max(rank, 1) for d in listed}


# --- the rules ----------------------------------------------------------------------------------------------------


RULES: dict[RowRule, Callable[[fx.Node], Verdict]] = {}


def _rule(which: RowRule) -> Callable[[Callable[[fx.Node], Verdict]], Callable[[fx.Node], Verdict]]:
    def enter(function: Callable[[fx.Node], Verdict]) -> Callable[[fx.Node], Verdict]:
        RULES[which] = function
        return function

    return enter


@_rule(RowRule.ELEMENTS)
def _pointwise(node: fx.Node) -> Verdict:
    """Operands line up from the right; every one that carries rows must carry them where the result does."""
    value = _value(node)
    out = value if isinstance(value, torch.Tensor) else value[0]
    mine = rows_of(out)
    for source in node.all_input_nodes:
        if not isinstance(_value(source), torch.Tensor):
            continue
        theirs = rows_of(_value(source))
        if theirs is None:
            continue
        if mine is None or (theirs.dim - _rank(source), theirs.factor) != (mine.dim - out.dim(), mine.factor):
            return _mixing("its operands carry the batch in different dimensions")
    return ROWWISE


def _along(argument: str) -> Callable[[fx.Node], Verdict]:
    """Operations along one dimension or several: row-wise unless the batch is among them."""

    def rule(node: fx.Node) -> Verdict:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        mine = rows_of(_value(source))
        if mine is not None and mine.dim in _dims(_argument(node, argument), _rank(source)):
            return _mixing(f"{operation_of(node).name} runs along the batch")
        return ROWWISE

    return rule


RULES[RowRule.ALONG], RULES[RowRule.ALONG_SEVERAL] = _along("dim"), _along("dims")


@_rule(RowRule.ALONG_RESULT)
def _backward_along(node: fx.Node) -> Verdict:
    """slice_backward, select_backward: the result has the dimension that the operand may lack."""
    mine = rows_of(_value(node))
    if mine is None or mine.dim == int(_argument(node, "dim")) % _rank(node):
        return _mixing(f"{operation_of(node).name} runs along the batch")
    return ROWWISE


@_rule(RowRule.SUM)
def _sum(node: fx.Node) -> Verdict:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    mine = rows_of(_value(source))
    return (
        SUMMED if mine is not None and mine.dim in _dims(_argument(node, "dim"), _rank(source)) else ROWWISE
    )


@_rule(RowRule.PRODUCT)
def _product(node: fx.Node) -> Verdict:
    """mm, bmm: rows in the free or batch dimension stay, rows in the contracted one are summed."""
    return _product_of(_value(node.args[0]), _value(node.args[1]))


def _product_of(a: Any, b: Any) -> Verdict:
    ra, rb = rows_of(a), rows_of(b)
    batched = a.dim() == 3
    if batched and ra is not None and rb is not None and ra.dim == 0 and rb.dim == 0:
        return ROWWISE
    contracted_a, contracted_b = a.dim() - 1, b.dim() - 2
    if ra is not None and rb is not None:
        if ra.dim == contracted_a and rb.dim == contracted_b:
            return SUMMED
        return _mixing("the product pairs every row with every other")
    if (ra is not None and ra.dim == contracted_a) or (rb is not None and rb.dim == contracted_b):
        return _mixing("the product contracts the batch with something that has no batch")
    return ROWWISE


@_rule(RowRule.STARTED_PRODUCT)
def _addmm(node: fx.Node) -> Verdict:
    """A product that starts from something: which must carry rows where the product does."""
    bias, out = _value(node.args[0]), _value(node)
    product = _product_of(_value(node.args[1]), _value(node.args[2]))
    if product != ROWWISE:
        return (
            _mixing("the product contracts the batch, and starts from something")
            if product == SUMMED
            else product
        )
    mine, theirs = rows_of(out), rows_of(bias)
    if theirs is None or (mine is not None and theirs.dim - bias.dim() == mine.dim - out.dim()):
        return ROWWISE
    return _mixing("its operands carry the batch in different dimensions")


@_rule(RowRule.RESHAPE)
def _reshape(node: fx.Node) -> Verdict:
    before, after = _value(node.args[0]), _value(node)
    mine, theirs = rows_of(before), rows_of(after)
    assert mine is not None
    if theirs is None or math.prod(before.shape[: mine.dim]) != math.prod(after.shape[: theirs.dim]):
        return _mixing("the reshape moves the batch into another dimension")
    return ROWWISE


@_rule(RowRule.TURNS)
def _moves(node: fx.Node) -> Verdict:
    return ROWWISE  # transpositions, expansions: rows_of finds the batch where it went, and whether it is there twice


@_rule(RowRule.MADE)
def _made(node: fx.Node) -> Verdict:
    return ROWWISE  # the operand says dtype and device alone


@_rule(RowRule.REPEAT)
def _repeat(node: fx.Node) -> Verdict:
    before, after = rows_of(_value(node.args[0])), rows_of(_value(node))
    assert before is not None
    assert after is not None
    return ROWWISE if after.factor == before.factor else _mixing("it repeats the batch")


@_rule(RowRule.JOIN)
def _cat(node: fx.Node) -> Verdict:
    parts, out = node.args[0], _value(node)
    mine = rows_of(out)
    dim = int(_argument(node, "dim") or 0) % out.dim()
    if mine is not None and mine.dim == dim:
        return _mixing("the concatenation runs along the batch")
    for part in parts:  # type: ignore[union-attr]
        theirs = rows_of(_value(part))
        if theirs is not None and theirs != mine:
            return _mixing("its operands carry the batch in different dimensions")
    return ROWWISE


@_rule(RowRule.PAD)
def _pad(node: fx.Node) -> Verdict:
    mine, padding = rows_of(_value(node)), node.args[1]
    assert isinstance(padding, (list, tuple))
    padded = {_rank(node) - 1 - i // 2 for i, width in enumerate(padding) if width}
    return _mixing("the padding runs along the batch") if mine is not None and mine.dim in padded else ROWWISE


@_rule(RowRule.LAYER_NORM)
def _layer_norm(node: fx.Node) -> Verdict:
    return _normalising(node, node.args[0]) or ROWWISE


@_rule(RowRule.LAYER_NORM_BACKWARD)
def _layer_norm_backward(node: fx.Node) -> Verdict:
    return _normalising(node, node.args[1]) or _parted(node, "layer norm")


def _normalising(node: fx.Node, source: Any) -> Verdict | None:
    """Why a layer norm of `source`, or the backward of one, mixes rows; None where it does not."""
    assert isinstance(source, fx.Node)
    mine = rows_of(_value(source))
    normalized = _argument(node, "normalized_shape")
    if mine is not None and mine.dim >= _rank(source) - len(normalized):
        return _mixing("the normalisation runs along the batch")
    return None


def _parted(node: fx.Node, name: str) -> Verdict:
    """Both halves in one call cannot be folded apart; the normal form splits it into dx and the sums."""
    mask = _argument(node, "output_mask")
    if mask[0] and any(mask[1:]):
        return _mixing(f"{name}'s dx and its sums over rows come from one call")
    return ROWWISE if mask[0] else SUMMED


@_rule(RowRule.CONVOLUTION)
def _convolution(node: fx.Node) -> Verdict:
    """Images side by side in dimension 0, one kernel for all."""
    source, *others = (n for n in node.args[:3] if isinstance(n, fx.Node))
    mine = rows_of(_value(source))
    if mine is None or mine.dim != 0 or any(carries(_value(n)) for n in others):
        return _mixing("the kernel is not the same for all rows of the batch")
    return ROWWISE


@_rule(RowRule.CONVOLUTION_BACKWARD)
def _convolution_backward(node: fx.Node) -> Verdict:
    gradient, source, weight = (_value(n) for n in node.args[:3])
    mine = rows_of(gradient)
    if mine is None or mine.dim != 0 or rows_of(source) != mine or rows_of(weight) is not None:
        return _mixing("the kernel is not the same for all rows of the batch")
    return _parted(node, "a convolution")


@_rule(RowRule.EMBEDDING)
def _embedding(node: fx.Node) -> Verdict:
    if rows_of(_value(node.args[0])) is not None:
        return _mixing("the table that is looked up carries the batch")
    return ROWWISE


@_rule(RowRule.GATHER)
def _gather(node: fx.Node) -> Verdict:
    """gather, scatter and kin: all operands carry rows alike, along another dimension than the batch."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    mine = rows_of(_value(node))
    if mine is None:
        return _mixing("it removes the batch")
    dim = int(_argument(node, "dim")) % _rank(source)
    for operand in node.all_input_nodes:
        if isinstance(_value(operand), torch.Tensor) and _rank(operand) and rows_of(_value(operand)) != mine:
            return _mixing("its operands carry the batch in different dimensions")
    return _mixing("it indexes along the batch") if mine.dim == dim else ROWWISE


@_rule(RowRule.INDEX_ADD)
def _index_add(node: fx.Node) -> Verdict:
    """index_add along another dimension than the batch, by an index that is the same for all rows."""
    source, added, index = node.args[0], node.args[3], node.args[2]
    mine = rows_of(_value(node))
    if mine is None or rows_of(_value(source)) != mine or rows_of(_value(added)) != mine:
        return _mixing("its operands carry the batch in different dimensions")
    same = rows_of(_value(index)) is None and int(_argument(node, "dim")) % _rank(source) != mine.dim
    return ROWWISE if same else _mixing("it writes along the batch")


@_rule(RowRule.INDEX)
def _index(node: fx.Node) -> Verdict:
    """x[i]: rows come either from x, in a dimension that is not indexed, or from one index into a batchless table."""
    source, indices = node.args[0], node.args[1]
    mine, out = rows_of(_value(source)), rows_of(_value(node))
    indexed = [(dim, i) for dim, i in enumerate(indices) if i is not None]  # type: ignore[arg-type]
    moving = [i for _, i in indexed if rows_of(_value(i)) is not None]
    if out is None:
        return _mixing("it removes the batch")
    if mine is None and moving:
        return (
            ROWWISE
            if all(rows_of(_value(i)) == Rows(0, 1) for i in moving)
            else _mixing("its indices carry the batch in different dimensions")
        )
    if mine is not None and not moving and all(dim != mine.dim for dim, _ in indexed):
        return ROWWISE
    return _mixing("it indexes along the batch")


@_rule(RowRule.INDEX_PUT)
def _index_put(node: fx.Node) -> Verdict:
    """Adding rows into a batchless table is a sum over rows; what is written behind the batch keeps rows apart, be it
    rows or what all have alike. Everything else is not known to."""
    source, indices, values = node.args[0], node.args[1], node.args[2]
    accumulate = bool(_argument(node, "accumulate"))
    mine = rows_of(_value(source))
    moving = [i for i in indices if i is not None and rows_of(_value(i)) is not None]  # type: ignore[union-attr]
    if mine is None and accumulate and moving and rows_of(_value(values)) is not None and is_zero(source):
        return SUMMED
    if mine is not None and not moving:
        dims = [dim for dim, i in enumerate(indices) if i is not None]  # type: ignore[arg-type]
        if mine.dim not in dims and mine.dim < min(dims, default=99):
            return ROWWISE
    return _mixing("it writes along the batch")


@_rule(RowRule.ADDS_ROWS)
def _always_summed(node: fx.Node) -> Verdict:
    return SUMMED
