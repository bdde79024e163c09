"""Products, and what works along features, as nodes of ONNX."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from elman.errors import NotSupported
from elman.export.onnx.nodes import Nodes, dims_of, dtype_of, rank_of, shape_of

# --- products --------------------------------------------------------------------------------------------------------


def product(w: Nodes, node: Node, x: Any, y: Any) -> str:
    return w.add("MatMul", w.names[x], w.names[y])


def added(w: Nodes, node: Node, bias: Any, x: Any, y: Any, beta: Any = 1, alpha: Any = 1) -> str:
    """addmm: one node, whose bias is spread over the rows."""
    return w.add("Gemm", w.names[x], w.names[y], w.names[bias], alpha=float(alpha), beta=float(beta))


def added_batches(w: Nodes, node: Node, bias: Any, x: Any, y: Any, beta: Any = 1, alpha: Any = 1) -> str:
    """baddbmm."""
    dtype = dtype_of(node)
    result, start = w.add("MatMul", w.names[x], w.names[y]), w.names[bias]
    result = result if alpha == 1 else w.add("Mul", result, w.constant(alpha, dtype))
    return w.add("Add", start if beta == 1 else w.add("Mul", start, w.constant(beta, dtype)), result)


def linear(w: Nodes, node: Node, x: Any, weight: Any, bias: Any = None) -> str:
    turned = w.add("Transpose", w.names[weight], perm=[1, 0])
    if rank_of(x) == 2 and bias is not None:
        return w.add("Gemm", w.names[x], turned, w.names[bias])
    result = w.add("MatMul", w.names[x], turned)
    return result if bias is None else w.add("Add", result, w.names[bias])


def convolution(
    w: Nodes, node: Node, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> str:  # fmt: skip
    inputs = [w.names[x], w.names[weight], *([] if bias is None else [w.names[bias]])]
    ends = list(padding)
    how = {"strides": list(stride), "pads": ends + ends, "dilations": list(dilation), "group": groups}
    if transposed:
        return w.add("ConvTranspose", *inputs, output_padding=list(output_padding), **how)
    return w.add("Conv", *inputs, **how)


# --- along features --------------------------------------------------------------------------------------------------


def reduced(kind: str, widened: bool = False) -> Any:
    """A reduction: (x, dims, keepdim). widened: bools and whole numbers are added up in the dtype of the result."""

    def rule(w: Nodes, node: Node, x: Any, dims: Any = None, keep: bool = False, *_: Any) -> str:
        dims, dtype = dims_of(dims, rank_of(x)), dtype_of(x)
        if widened:
            return reduction(w, kind, w.tensor(x, dtype_of(node)), dims, keep)
        return w.cast(_largest(w, kind, _ordered(w, x), dims, keep, dtype), _in_order(dtype), dtype)

    return rule


def _in_order(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a dtype are compared in: ONNX knows no order of truths."""
    return torch.int32 if dtype == torch.bool else dtype


def _ordered(w: Nodes, x: Node) -> str:
    """Numbers that ONNX can compare."""
    return w.tensor(x, _in_order(dtype_of(x)))


def reduction(w: Nodes, kind: str, x: str, dims: list[int], keep: bool) -> str:
    return w.add(kind, x, w.ints(*dims), keepdims=int(keep)) if dims else x


def _largest(w: Nodes, kind: str, x: str, dims: list[int], keep: bool, dtype: torch.dtype) -> str:
    """ReduceMax or ReduceMin, which are NaN where a number is: ONNX Runtime passes over it."""
    result = reduction(w, kind, x, dims, keep)
    if not dims or not dtype.is_floating_point:
        return result
    return w.add("Where", _undefined(w, x, dims, keep), w.constant(torch.nan, dtype), result)


def _undefined(w: Nodes, x: str, dims: list[int], keep: bool) -> str:
    """Whether one of the numbers is NaN."""
    found = reduction(w, "ReduceMax", w.cast(w.add("IsNaN", x), torch.bool, torch.int32), dims, keep)
    return w.cast(found, torch.int32, torch.bool)


def _place(w: Nodes, kind: str, x: str, dim: int, keep: bool, dtype: torch.dtype) -> str:
    """ArgMax or ArgMin: of the first NaN, if there is one."""
    if dtype.is_floating_point:
        first = w.cast(w.add("IsNaN", x), torch.bool, dtype)
        first = first if kind == "ArgMax" else w.add("Neg", first)
        x = w.add("Where", _undefined(w, x, [dim], True), first, x)
    return w.add(kind, x, axis=dim, keepdims=int(keep))


def whole(kind: str) -> Any:
    """A reduction of all numbers."""

    def rule(w: Nodes, node: Node, x: Any, *_: Any) -> str:
        dtype, numbers, dims = (
            dtype_of(node),
            w.tensor(x, _in_order(dtype_of(node))),
            dims_of(None, rank_of(x)),
        )
        if kind in ("ReduceMax", "ReduceMin"):
            result = _largest(w, kind, numbers, dims, False, dtype)
        else:
            result = reduction(w, kind, numbers, dims, False)
        return w.cast(result, _in_order(dtype), dtype)

    return rule


def extreme(largest: bool) -> Any:
    """max.dim and min.dim: (values, where)."""

    def rule(w: Nodes, node: Node, x: Any, dim: int, keep: bool = False) -> tuple[str, str]:
        dim %= rank_of(x)
        kinds = ("ReduceMax", "ArgMax") if largest else ("ReduceMin", "ArgMin")
        numbers, dtype = _ordered(w, x), dtype_of(x)
        return (
            w.cast(_largest(w, kinds[0], numbers, [dim], keep, dtype), _in_order(dtype), dtype),
            _place(w, kinds[1], numbers, dim, keep, dtype),
        )

    return rule


def place(kind: str) -> Any:
    """argmax and argmin."""

    def rule(w: Nodes, node: Node, x: Any, dim: Any = None, keep: bool = False) -> str:
        if dim is None:
            return _place(w, kind, w.add("Reshape", w.names[x], w.ints(-1)), 0, False, dtype_of(x))
        return _place(w, kind, w.names[x], dim % rank_of(x), keep, dtype_of(x))

    return rule


def truth(kind: str) -> Any:
    """any and all."""

    def rule(w: Nodes, node: Node, x: Any, dims: Any = None, keep: bool = False) -> str:
        numbers = w.cast(w.tensor(x, torch.bool), torch.bool, torch.int32)
        result = reduction(w, kind, numbers, dims_of(dims, rank_of(x)), keep)
        return w.cast(result, torch.int32, torch.bool)

    return rule


def running_sum(w: Nodes, node: Node, x: Any, dim: int, *_: Any) -> str:
    return w.add("CumSum", w.tensor(x, dtype_of(node)), w.constant(dim % max(rank_of(x), 1), torch.int64))


def multiplied(w: Nodes, node: Node, x: Any, dim: int, keep: bool = False, *_: Any) -> str:
    return reduction(w, "ReduceProd", w.tensor(x, dtype_of(node)), [dim % rank_of(x)], keep)


def logsumexp(w: Nodes, node: Node, x: Any, dims: Any, keep: bool = False) -> str:
    axes = dims_of(dims, rank_of(x))
    top = reduction(w, "ReduceMax", w.names[x], axes, True)
    total = reduction(w, "ReduceSum", w.add("Exp", w.add("Sub", w.names[x], top)), axes, True)
    value = w.add("Add", w.add("Log", total), top)
    return value if keep else w.add("Squeeze", value, w.ints(*axes))


def softmax(kind: str) -> Any:
    def rule(w: Nodes, node: Node, x: Any, dim: int, *_: Any) -> str:
        return w.add(kind, w.tensor(x, dtype_of(node)), axis=dim % max(rank_of(x), 1))

    return rule


def _spread(
    w: Nodes, x: Any, dims: list[int], correction: Any, keep: bool, dtype: torch.dtype
) -> tuple[str, str]:
    """(variance, mean)."""
    sizes = [shape_of(x)[dim] for dim in dims]
    if not all(isinstance(size, int) for size in sizes):
        raise NotSupported(what="a variance along an open size has no form in ONNX", where="var")
    mean = reduction(w, "ReduceMean", w.names[x], dims, True)
    far = w.add("Sub", w.names[x], mean)
    squares = reduction(w, "ReduceSum", w.add("Mul", far, far), dims, keep)
    count = 1
    for size in sizes:
        count *= size
    spread = w.add(
        "Div", squares, w.constant(max(count - (1 if correction is None else correction), 0), dtype)
    )
    return spread, mean if keep else w.add("Squeeze", mean, w.ints(*dims))


def variance(w: Nodes, node: Node, x: Any, dims: Any = None, correction: Any = 1, keep: bool = False) -> str:
    return _spread(w, x, dims_of(dims, rank_of(x)), correction, keep, dtype_of(node))[0]


def variance_and_mean(
    w: Nodes, node: Node, x: Any, dims: Any = None, correction: Any = 1, keep: bool = False
) -> tuple[str, str]:
    return _spread(w, x, dims_of(dims, rank_of(x)), correction, keep, dtype_of(x))


def norm(w: Nodes, node: Node, x: Any, p: Any = 2, dims: Any = None, keep: bool = False, *_: Any) -> str:
    axes, dtype = dims_of(dims, rank_of(x)), dtype_of(node)
    if p in (1, 2):
        return reduction(w, f"ReduceL{p:.0f}", w.names[x], axes, keep)
    size = w.add("Abs", w.names[x])
    if p in (torch.inf, -torch.inf):
        return _largest(w, "ReduceMax" if p > 0 else "ReduceMin", size, axes, keep, dtype)
    total = reduction(w, "ReduceSum", w.add("Pow", size, w.constant(p, dtype)), axes, keep)
    return w.add("Pow", total, w.constant(1 / p, dtype))


def normalised(
    w: Nodes, node: Node, x: Any, widths: Any, weight: Any, bias: Any, epsilon: Any, *_: Any
) -> Any:
    """native_layer_norm and layer_norm: whole of its own operation where its numbers are of float32."""
    value = node.meta["val"]
    several = isinstance(value, (tuple, list))
    dtype = dtype_of(x)
    dims = list(range(rank_of(x) - len(widths), rank_of(x)))
    if dtype == torch.float32:
        scale = w.constant(torch.ones(list(widths)), dtype) if weight is None else w.names[weight]
        shift = [] if bias is None else [w.names[bias]]
        outputs = w.several(
            "LayerNormalization",
            (w.names[x], scale, *shift),
            3 if several else 1,
            axis=dims[0],
            epsilon=float(epsilon),
        )
        return tuple(outputs) if several else outputs[0]
    variance, mean = _spread(w, x, dims, 0, True, dtype)
    deviation = w.add("Sqrt", w.add("Add", variance, w.constant(epsilon, dtype)))
    y = w.add("Div", w.add("Sub", w.names[x], mean), deviation)
    y = y if weight is None else w.add("Mul", y, w.names[weight])
    y = y if bias is None else w.add("Add", y, w.names[bias])
    return (y, mean, w.add("Reciprocal", deviation)) if several else y


def weight_norm(w: Nodes, node: Node, v: Any, g: Any, dim: int = 0) -> tuple[str, str]:
    """g v / |v|, the norm over all dimensions but one."""
    others = [d for d in range(rank_of(v)) if d != dim % rank_of(v)]
    length = reduction(w, "ReduceL2", w.names[v], others, True)
    return w.add("Mul", w.names[v], w.add("Div", w.names[g], length)), length


def top(
    w: Nodes, node: Node, x: Any, k: Any, dim: int = -1, largest: bool = True, in_order: bool = True
) -> list[str]:
    how: dict[str, Any] = {"axis": dim % rank_of(x), "largest": int(largest), "sorted": int(in_order)}
    return w.several("TopK", (w.names[x], w.sizes([k])), 2, **how)


def in_order(w: Nodes, node: Node, x: Any, dim: int = -1, descending: bool = False) -> list[str]:
    how: dict[str, Any] = {"axis": dim % rank_of(x), "largest": int(descending), "sorted": 1}
    values, where = w.several("TopK", (_ordered(w, x), w.size(x, dim)), 2, **how)
    return [w.cast(values, _in_order(dtype_of(x)), dtype_of(x)), where]
