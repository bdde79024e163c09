"""What an operation *is*: one table, one row for each operation of ATen that elman knows more of than its name.

A new operation is a row here and its code in the native engine; nothing else in elman lists operations by name, but for
what a file itself makes of them (tests/test_operations.py looks).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx

from elman.caches import cached


class RowRule(enum.Enum):
    """How it is found out what an operation does to the rows of its operands: see elman/circuit/verdict.py."""

    ELEMENTS = "element by element, operands lined up from the right"
    ALONG = "along the dimensions that its argument `dim` says"
    ALONG_SEVERAL = "along those that `dims` says"
    ALONG_RESULT = "along a dimension `dim` of its result, which its operand may lack"
    TURNS = "turns dimensions, and the batch with them"
    RESHAPE = "reshape"
    REPEAT = "repeat"
    JOIN = "puts its operands side by side"
    PAD = "constant_pad_nd"
    SUM = "sum"
    PRODUCT = "a product of its first two operands"
    STARTED_PRODUCT = "a product of its second and third operand, added to the first"
    LAYER_NORM = "native_layer_norm"
    LAYER_NORM_BACKWARD = "native_layer_norm_backward"
    CONVOLUTION = "convolution"
    CONVOLUTION_BACKWARD = "convolution_backward"
    EMBEDDING = "embedding"
    ADDS_ROWS = "adds up its rows, whatever they are"
    GATHER = "all operands carry rows alike, along another dimension than the batch"
    INDEX = "index"
    INDEX_ADD = "index_add"
    INDEX_PUT = "index_put"
    MADE = "reads nothing of its operand"


class Lookup(enum.Enum):
    """Which operands are indices, and into what."""

    ROWS = "the second operand, into the first dimension of the first one"
    ALONG = "the third operand, into the dimension of the first one that the second says"
    EACH = "a list of them, one for each dimension of the first operand; -1 is the last place"


class NativeOp(NamedTuple):
    """A plain operation of the native engine, element by element. code: its name there (native/program.hpp)."""

    family: str  # "unary", "binary", or "compare", which has true or false as its result
    code: str


@dataclass(frozen=True)
class Operation:
    """What an operation is, in all its overloads.

    name: `mm` for `aten.mm.default`.
    rows: the rule for the rows of a batch; None: element by element where PyTorch tags it so, else nobody knows.
    linear: operands, by position, in which it is linear together, f(a + b) = f(a) + f(b), the others being constant.
    bilinear: linear in each of its first two operands while the other one is constant.
    nonlinear: overloads that are not linear after all.
    addresses: only says where numbers are or moves them, and counts as no work.
    contracts: for a product of matrices, the operand (by position) over whose last dimension it sums.
    recomputed: whether a backward pass may compute it again lightly (rematerialisation).
    zeros: it is zero all over. filled: the argument, by position, that it is filled with.
    counts: its numbers depend on the size that it is given.
    broadcasts: it needs no operand to be expanded for it.
    lookup: which operands are indices.
    apart: taken apart by PyTorch while a step is traced; what remains has rows of its own here.
    native: its name in the native engine, where it is a plain one.
    """

    name: str
    rows: RowRule | None = None
    linear: tuple[int, ...] = ()
    bilinear: bool = False
    nonlinear: tuple[str, ...] = ()
    addresses: bool = False
    contracts: int | None = None
    recomputed: bool = True
    zeros: bool = False
    filled: int | None = None
    counts: bool = False
    broadcasts: bool = False
    lookup: Lookup | None = None
    apart: bool = False
    native: NativeOp | None = None


def _unary(name: str, code: str | None = None, **more: Any) -> Operation:
    return Operation(name, native=NativeOp("unary", code or name), **more)


def _binary(name: str, **more: Any) -> Operation:
    return Operation(name, native=NativeOp("binary", name), **more)


def _compare(name: str) -> Operation:
    return Operation(name, native=NativeOp("compare", name))


def _apart(name: str) -> Operation:
    return Operation(name, apart=True)


def _backward(name: str, rows: RowRule = RowRule.ELEMENTS, **more: Any) -> Operation:
    """What autograd calls the backward of an operation is linear in its first operand, the gradient."""
    return Operation(name, rows, linear=(0,), **more)


_BACKWARD = ("_backward", "_backward_data")  # how the names of such operations end

_TABLE = (
    # Products.
    Operation("mm", RowRule.PRODUCT, bilinear=True, contracts=0, recomputed=False),
    Operation("bmm", RowRule.PRODUCT, bilinear=True, contracts=0, recomputed=False),
    Operation("addmm", RowRule.STARTED_PRODUCT, contracts=1, recomputed=False),
    Operation("convolution", RowRule.CONVOLUTION, recomputed=False),
    _backward("convolution_backward", RowRule.CONVOLUTION_BACKWARD),
    # Where numbers are.
    Operation("reshape", RowRule.RESHAPE, linear=(0,), addresses=True),
    Operation("view", RowRule.RESHAPE, linear=(0,), addresses=True),
    Operation("_unsafe_view", RowRule.RESHAPE, linear=(0,), addresses=True),
    Operation("permute", RowRule.TURNS, linear=(0,), addresses=True),
    Operation("transpose", RowRule.TURNS, linear=(0,), addresses=True),
    Operation("t", RowRule.TURNS, linear=(0,), addresses=True),
    Operation("movedim", RowRule.TURNS, linear=(0,), addresses=True),
    Operation("squeeze", RowRule.TURNS, linear=(0,), addresses=True),
    Operation("unsqueeze", RowRule.TURNS, linear=(0,), addresses=True),
    Operation("expand", RowRule.TURNS, linear=(0,), addresses=True),
    Operation("repeat", RowRule.REPEAT, linear=(0,)),
    Operation("slice", RowRule.ALONG, linear=(0,), addresses=True),
    Operation("select", RowRule.ALONG, linear=(0,), addresses=True),
    Operation("split_with_sizes", RowRule.ALONG, linear=(0,)),
    Operation("unbind", RowRule.ALONG, linear=(0,)),
    Operation("diagonal", linear=(0,)),
    Operation("diag_embed", linear=(0,)),
    Operation("unfold", linear=(0,)),
    Operation("tril", linear=(0,)),
    Operation("triu", linear=(0,)),
    Operation("flip", RowRule.ALONG_SEVERAL, linear=(0,), addresses=True),
    Operation("roll", RowRule.ALONG_SEVERAL, linear=(0,)),
    Operation("cat", RowRule.JOIN, linear=(0,), addresses=True),
    Operation("constant_pad_nd", RowRule.PAD, linear=(0, 2), addresses=True),
    Operation("slice_scatter", RowRule.ALONG, linear=(0, 1), addresses=True),
    Operation("select_scatter", RowRule.ALONG, linear=(0, 1), addresses=True),
    _backward("slice_backward", RowRule.ALONG_RESULT, addresses=True),
    _backward("select_backward", RowRule.ALONG_RESULT, addresses=True),
    Operation("clone", linear=(0,)),
    Operation("detach", RowRule.ELEMENTS, linear=(0,)),
    Operation("alias", RowRule.ELEMENTS, linear=(0,)),
    Operation("lift_fresh_copy", RowRule.ELEMENTS),
    Operation("_to_copy", RowRule.ELEMENTS, linear=(0,), addresses=True),
    Operation("copy", RowRule.ELEMENTS),
    # What indices choose.
    Operation("gather", RowRule.GATHER, linear=(0,), addresses=True, lookup=Lookup.ALONG),
    Operation(
        "scatter", RowRule.GATHER, linear=(0, 3), nonlinear=("reduce", "value_reduce"), addresses=True,
        lookup=Lookup.ALONG,
    ),
    Operation("scatter_add", RowRule.GATHER, linear=(0, 3), lookup=Lookup.ALONG),
    Operation("index", RowRule.INDEX, linear=(0,), addresses=True, lookup=Lookup.EACH),
    Operation("_unsafe_index", RowRule.INDEX),
    Operation("index_select", RowRule.ALONG, linear=(0,), lookup=Lookup.ALONG),
    Operation("index_add", RowRule.INDEX_ADD, linear=(0, 3), lookup=Lookup.ALONG),
    Operation("index_put", RowRule.INDEX_PUT, linear=(0, 2), lookup=Lookup.EACH),
    Operation("_unsafe_index_put", RowRule.INDEX_PUT, linear=(0, 2)),
    Operation("embedding", RowRule.EMBEDDING, addresses=True, lookup=Lookup.ROWS),
    _backward("embedding_dense_backward", RowRule.ADDS_ROWS),
    # Made out of nothing.
    Operation("zeros", zeros=True, addresses=True),
    Operation("zeros_like", RowRule.ELEMENTS, zeros=True, addresses=True),
    Operation("new_zeros", RowRule.MADE, zeros=True, addresses=True),
    Operation("ones_like", RowRule.ELEMENTS),
    Operation("new_ones", RowRule.MADE),
    Operation("empty", addresses=True),
    Operation("empty_like", RowRule.ELEMENTS),
    Operation("new_empty", RowRule.MADE),
    Operation("full", filled=1, addresses=True),
    Operation("full_like", RowRule.ELEMENTS, filled=1, addresses=True),
    Operation("new_full", RowRule.MADE, filled=2),
    Operation("fill", RowRule.ELEMENTS, filled=1),
    Operation("scalar_tensor", filled=0),
    Operation("rand_like", RowRule.ELEMENTS),
    Operation("bernoulli", RowRule.ELEMENTS),
    Operation("arange", counts=True),
    Operation("linspace", counts=True),
    Operation("randperm", counts=True),
    Operation("eye", counts=True),
    Operation("tril_indices", counts=True),
    # Arithmetic, element by element.
    _binary("add", linear=(0, 1), broadcasts=True),
    _binary("sub", linear=(0, 1), broadcasts=True),
    Operation("rsub", RowRule.ELEMENTS, linear=(0, 1)),
    _binary("mul", bilinear=True, broadcasts=True),
    _binary("div", linear=(0,), nonlinear=("Tensor_mode", "Scalar_mode"), broadcasts=True),
    Operation("floor_divide", RowRule.ELEMENTS),
    _binary("fmod"),
    _binary("remainder"),
    _binary("maximum", broadcasts=True),
    _binary("minimum", broadcasts=True),
    _binary("atan2"),
    Operation("where", RowRule.ELEMENTS, linear=(1, 2), broadcasts=True),
    Operation("masked_fill", RowRule.ELEMENTS, linear=(0, 2)),
    _unary("neg", linear=(0,)),
    _unary("abs"),
    _unary("sign"),
    _unary("sgn", "sign"),
    _unary("exp"),
    _unary("expm1"),
    _unary("log"),
    _unary("log1p"),
    _unary("tanh"),
    _unary("sigmoid"),
    _unary("sqrt"),
    _unary("rsqrt"),
    _unary("reciprocal"),
    _unary("relu"),
    _unary("round"),
    _unary("floor"),
    _unary("ceil"),
    _unary("trunc"),
    _unary("erf"),
    _unary("sin"),
    _unary("cos"),
    _unary("atan"),
    _unary("square"),
    _compare("lt"),
    _compare("le"),
    _compare("gt"),
    _compare("ge"),
    _compare("eq"),
    _compare("ne"),
    # Activations.
    Operation("hardswish", RowRule.ELEMENTS),
    Operation("log_sigmoid_forward", RowRule.ELEMENTS),
    Operation("_prelu_kernel", RowRule.ELEMENTS),
    Operation("native_dropout", RowRule.ELEMENTS),
    _backward("softplus_backward"),
    _backward("hardsigmoid_backward"),
    _backward("hardswish_backward"),
    _backward("hardtanh_backward"),
    _backward("elu_backward"),
    _backward("leaky_relu_backward"),
    _backward("log_sigmoid_backward"),
    _backward("mish_backward"),
    _backward("_prelu_kernel_backward"),
    # Along features.
    Operation("sum", RowRule.SUM, linear=(0,)),
    Operation("mean", RowRule.ALONG, linear=(0,)),
    Operation("trace", linear=(0,)),
    Operation("cumsum", RowRule.ALONG, linear=(0,)),
    Operation("cumprod", RowRule.ALONG),
    Operation("cummax", RowRule.ALONG),
    Operation("cummin", RowRule.ALONG),
    Operation("sort", RowRule.ALONG),
    Operation("topk", RowRule.ALONG),
    Operation("kthvalue", RowRule.ALONG),
    Operation("amax", RowRule.ALONG),
    Operation("amin", RowRule.ALONG),
    Operation("max", RowRule.ALONG),
    Operation("min", RowRule.ALONG),
    Operation("argmax", RowRule.ALONG),
    Operation("argmin", RowRule.ALONG),
    Operation("var_mean", RowRule.ALONG),
    Operation("var", RowRule.ALONG),
    Operation("logsumexp", RowRule.ALONG),
    Operation("prod", RowRule.ALONG),
    Operation("any", RowRule.ALONG),
    Operation("all", RowRule.ALONG),
    Operation("linalg_vector_norm", RowRule.ALONG),
    Operation("_softmax", RowRule.ALONG),
    Operation("_log_softmax", RowRule.ALONG),
    _backward("_softmax_backward_data", RowRule.ALONG),
    _backward("_log_softmax_backward_data", RowRule.ALONG),
    Operation("native_layer_norm", RowRule.LAYER_NORM),
    _backward("native_layer_norm_backward", RowRule.LAYER_NORM_BACKWARD),
    # The Fourier transform, and complex numbers.
    Operation("_fft_r2c", linear=(0,)),
    Operation("_fft_c2r", linear=(0,)),
    Operation("_fft_c2c", linear=(0,)),
    Operation("view_as_real", linear=(0,)),
    Operation("view_as_complex", linear=(0,)),
    Operation("complex", RowRule.ELEMENTS, linear=(0, 1)),
    Operation("real", linear=(0,)),
    Operation("imag", linear=(0,)),
    Operation("conj", linear=(0,)),
    Operation("_conj", linear=(0,)),
    Operation("_conj_physical", linear=(0,)),
    # X of A X = B, in B.
    Operation("linalg_lu_solve", linear=(2,)),
    Operation("linalg_solve_triangular", linear=(1,)),
    Operation("triangular_solve", linear=(0,)),
    Operation("cholesky_solve", linear=(0,)),
    # Never met in a circuit.
    _apart("mv"),
    _apart("addmv"),
    _apart("dot"),
    _apart("addr"),
    _apart("nll_loss_forward"),
    _apart("nll_loss_backward"),
    _apart("mse_loss"),
    _apart("mse_loss_backward"),
    _apart("smooth_l1_loss"),
    _apart("smooth_l1_loss_backward"),
    _apart("huber_loss"),
    _apart("huber_loss_backward"),
    _apart("binary_cross_entropy"),
    _apart("binary_cross_entropy_backward"),
    _apart("glu"),
    _apart("glu_backward"),
    _apart("logaddexp"),
    _apart("std"),
    _apart("norm"),
)  # fmt: skip

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in _TABLE}
_NOTHING = Operation("")


@cached("operations that no table lists", 1024)
def _unlisted(name: str) -> Operation:
    return Operation(name, linear=(0,) if name.endswith(_BACKWARD) else ())


def operation_of(node: fx.Node) -> Operation:
    """What a node's operation is: its row, or one that says nothing for what has none or is none of ATen's."""
    return operation_named(node.target)


def operation_named(target: Any) -> Operation:
    """The same for what a node calls."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return _NOTHING
    name = target.overloadpacket.__name__
    return OPERATIONS.get(name) or _unlisted(name)
