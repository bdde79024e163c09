"""Every row of the table of operations in calls of its own; B is the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elman.circuit.verdict import ROWWISE, SUMMED, Verdict

aten = torch.ops.aten
B = "B"
ANY = "a reason"
UNKNOWN = "no rule"
END = 2**63 - 1
REAL, WHOLE, SHORT, TRUE, COMPLEX = "real", "whole", "int32", "true", "complex"
Shape = tuple[Any, ...]


@dataclass(frozen=True)
class Sample:
    """A call: of operands of these shapes and types (real where none is said), the last `make` is the operation's.

    said: a verdict, or words of its reason. fixed: whether it gives the same numbers again, and all of them.
    """

    name: str
    shapes: tuple[Shape, ...]
    call: Callable[..., Any]
    said: Verdict | str
    types: tuple[str, ...] = ()
    fixed: bool = True

    def type(self, operand: int) -> str:
        return self.types[operand] if operand < len(self.types) else REAL


def of(
    names: str, shapes: Sequence[Shape], *after: Any, said: Verdict | str = ROWWISE, overload: str = "default",
    types: Sequence[str] = (), fixed: bool = True, **named: Any,
) -> list[Sample]:  # fmt: skip
    """Operations that take the operands, then what comes after them."""

    def calling(target: Any) -> Callable[..., Any]:
        return lambda make, *operands: make(target, *operands, *after, **named)

    return [
        Sample(
            name, tuple(shapes), calling(getattr(getattr(aten, name), overload)), said, tuple(types), fixed
        )
        for name in names.split()
    ]


def by(
    names: str, shapes: Sequence[Shape], call: Callable[..., Any], said: Verdict | str = ROWWISE,
    overload: str = "default", types: Sequence[str] = (), fixed: bool = True,
) -> list[Sample]:  # fmt: skip
    """Operations that are called as `call(make, target, *operands)`."""

    def calling(target: Any) -> Callable[..., Any]:
        return lambda make, *operands: call(make, target, *operands)

    return [
        Sample(
            name, tuple(shapes), calling(getattr(getattr(aten, name), overload)), said, tuple(types), fixed
        )
        for name in names.split()
    ]


def rows(make: Any, x: Any, dim: int = 0) -> Any:
    return make(aten.sym_size.int, x, dim)


X, Y, W = (B, 3), (B, 3), (3,)
RW = (REAL, WHOLE)
LINES = "runs along the batch"

SAMPLES = [
    # Products.
    *of("mm", ((B, 3), (3, 4))), *of("mm", ((4, B), (B, 3)), said=SUMMED), *of("mm", ((4, 3), (3, B))),
    *of("bmm", ((B, 2, 3), (B, 3, 4))), *of("bmm", ((2, 3, B), (2, B, 4)), said=SUMMED),
    *of("addmm", ((4,), (B, 3), (3, 4))), *of("addmm", ((2, 4), (2, B), (B, 4)), said="contracts the batch"),
    *of("convolution", ((B, 2, 5), (3, 2, 2), (3,)), [1], [0], [1], False, [0], 1),
    *of("convolution", ((1, 2, 5), (B, 2, 2), (B,)), [1], [0], [1], False, [0], 1, said="the kernel is not the same"),
    *(
        sample
        for mask, said in (
            ([True, False, False], ROWWISE), ([False, True, True], SUMMED), ([True, True, True], "from one call"))
        for sample in of(
            "convolution_backward", ((B, 3, 4), (B, 2, 5), (3, 2, 2)), [3], [1], [0], [1], False, [0], 1, mask,
                said=said)
    ),
    *of("convolution_backward", ((1, B, 4), (1, 2, 5), (B, 2, 2)), [0], [1], [0], [1], False, [0], 1,
        [True, False, False], said="the kernel is not the same"),
    # Where numbers are.
    *of("reshape view _unsafe_view", ((B, 6),), [-1, 2, 3]),
    *of("reshape view _unsafe_view", ((2, B, 3),), [-1, 3], said="moves the batch"),
    *of("permute", (X,), [1, 0]), *of("transpose", (X,), 0, 1, overload="int"), *of("t", (X,)),
    *of("movedim", (X,), 0, 1, overload="int"), *of("squeeze", ((B, 1, 3),)), *of("unsqueeze", (X,), 0),
    *of("expand", ((B, 1),), [-1, 4]), *of("expand", (X,), [2, -1, 3]),
    *of("repeat", (X,), [1, 2]), *of("repeat", (X,), [2, 1], said="repeats the batch"),
    *of("slice", (X,), 1, 0, 2, overload="Tensor"), *of("slice", (X,), 0, 0, END, overload="Tensor", said=LINES),
    *of("select", (X,), 1, 0, overload="int"), *of("select", (X,), 0, 0, overload="int", said=LINES),
    *of("split_with_sizes", (X,), [1, 2], 1),
    *by("split_with_sizes", (X,), lambda make, f, x: make(f, x, [rows(make, x)], 0), LINES),
    *of("unbind", (X,), 1, overload="int"),
    *of("diagonal diag_embed", ((B, 3, 3),), 0, 1, 2, said=UNKNOWN), *of("tril triu", ((B, 3, 3),), said=UNKNOWN),
        *of("clone", (X,)), *of("unfold", (X,), 1, 2, 1, said=UNKNOWN),
    *of("flip", (X,), [1]), *of("flip", (X,), [0], said=LINES),
    *of("roll", (X,), [1], [1]), *of("roll", (X,), [1], [0], said=LINES),
    *by("cat", ((B, 3), (B, 2)), lambda make, f, a, b: make(f, [a, b], 1)),
    *by("cat", ((B, 3), (B, 3)), lambda make, f, a, b: make(f, [a, b], 0), "along the batch"),
    *of("constant_pad_nd", (X,), [1, 2]), *of("constant_pad_nd", (X,), [0, 0, 1, -1],
        said="padding runs along the batch"),
    *of("slice_scatter", (X, (B, 2)), 1, 0, 2), *of("slice_scatter", (X, Y), 0, 0, END, said=LINES),
    *of("select_scatter", (X, (B,)), 1, 0), *of("select_scatter", (X, W), 0, 0, said=LINES),
    *by("slice_backward", ((B, 2),), lambda make, f, g: make(f, g, [rows(make, g), 3], 1, 0, 2, 1)),
    *by("slice_backward", (X,), lambda make, f, g: make(f, g, [rows(make, g), 3], 0, 0, END, 1), LINES),
    *by("select_backward", ((B,),), lambda make, f, g: make(f, g, [rows(make, g), 3], 1, 0)),
    *of("detach alias", (X,)), *of("lift_fresh_copy", (X,)), *of("_to_copy", (X,), dtype=torch.float64), *of("copy",
        (X, Y)),
    # What indices choose.
    *by("gather", (X, (B, 2)), lambda make, f, x, i: make(f, x, 1, i), types=RW),
    *by("gather", (X, X), lambda make, f, x, i: make(f, x, 0, i), "along the batch", types=RW),
    *by("gather", (X, (2, 3)), lambda make, f, x, i: make(f, x, 0, i), "removes the batch", types=RW),
    *by("gather", ((5, 3), X), lambda make, f, x, i: make(f, x, 0, i), "in different dimensions", types=RW),
    *(
        sample
        for names, overload in (("scatter", "src"), ("scatter_add", "default"))
        for dim, said, shape in ((1, ROWWISE, (B, 2)), (0, "along the batch", X))
        for sample in by(names, (X, shape, shape), lambda make, f, x, i, v, dim=dim: make(f, x, dim, i, v), said,
            overload, (REAL, WHOLE))
    ),
    *by("index _unsafe_index", (X, (2,)), lambda make, f, x, i: make(f, x, [None, i]), overload="Tensor", types=RW),
    *by("index _unsafe_index", ((5, 3), (B,)), lambda make, f, x, i: make(f, x, [i]), overload="Tensor", types=RW),
    *by("index _unsafe_index", (X, (2,)), lambda make, f, x, i: make(f, x, [i]), ANY, overload="Tensor", types=RW),
    *by("index", ((5, 3), (2, B)), lambda make, f, x, i: make(f, x, [i]), "in different dimensions", overload="Tensor",
        types=RW),
    *by("index", (X, (B,)), lambda make, f, x, i: make(f, x, [i]), "along the batch", overload="Tensor", types=RW),
    *by("index_select", (X, (2,)), lambda make, f, x, i: make(f, x, 1, i), types=RW),
    *by("index_select", (X, (2,)), lambda make, f, x, i: make(f, x, 0, i), LINES, types=RW),
    *by("index_add", (X, (2,), (B, 2)), lambda make, f, x, i, v: make(f, x, 1, i, v), types=RW),
    *by("index_add", (X, (B,), X), lambda make, f, x, i, v: make(f, x, 0, i, v), "writes along the batch", types=RW),
    *by("index_add", ((5, 3), (B,), X), lambda make, f, x, i, v: make(f, x, 0, i, v), "in different dimensions",
        types=RW),
    *by("index_put", ((B, 4), (2,), (B, 2)), lambda make, f, x, i, v: make(f, x, [None, i], v), types=RW),
    *by("index_put", ((B, 4), (2,), (2,)), lambda make, f, x, i, v: make(f, x, [None, i], v), types=RW),
    *by("index_put", ((4, B), (2,), (2, B)), lambda make, f, x, i, v: make(f, x, [i], v), "along the batch", types=RW),
    *by("index_put", ((B, 3), (B,), X), lambda make, f, x, i, v: make(f, x, [i], v), "along the batch", types=RW),
    *by("index_put _unsafe_index_put", ((5, 3), (2,), (2, 3)), lambda make, f, x, i, v: make(f, x, [i], v, True),
        types=RW),
    *by("index_put _unsafe_index_put", (X, (B,)), lambda make, f, v, i: make(
        f, make(aten.zeros.default, [5, 3], dtype=torch.float64), [i], v, True), SUMMED, types=RW),
    *by("index_put _unsafe_index_put", (X, (B,)), lambda make, f, v, i: make(
        f, make(aten.zeros.default, [5, 3], dtype=torch.float64), [i], v, False), ANY, types=RW),
    *of("embedding", ((5, 3), (B,)), types=RW), *of("embedding", (X, (2,)), said="carries the batch", types=RW),
    *of("embedding_dense_backward", (X, (B,)), 5, -1, False, said=SUMMED, types=RW),
    # Made out of nothing.
    *of("zeros_like ones_like", (X,)), *of("empty_like rand_like", (X,), fixed=False),
    *of("bernoulli", (X,), 0.5, overload="p", fixed=False),
    *by("new_zeros new_ones", (X,), lambda make, f, x: make(f, x, [rows(make, x), 2])),
    *by("new_empty", (X,), lambda make, f, x: make(f, x, [rows(make, x), 2]), fixed=False),
    *by("new_zeros", (X,), lambda make, f, x: make(f, x, [rows(make, x), 2, 2])),
    *by("new_full", (X,), lambda make, f, x: make(f, x, [rows(make, x), 2], 0.5)),
    *of("full_like", (X,), 0.5), *of("fill", (X,), 0.5, overload="Scalar"),
    # Element by element.
    *of("add sub mul div fmod remainder rsub", (X, Y), overload="Tensor"), *of("maximum minimum atan2 floor_divide",
        (X, Y)),
    *of("add sub mul div", ((B, 3), (3,)), overload="Tensor"),
    *of("where", (X, X, Y), overload="self", types=(TRUE,)), *of("masked_fill", (X, X), 0.0, overload="Scalar",
        types=(REAL, TRUE)),
    *of("neg abs sign sgn exp expm1 log log1p tanh sigmoid sqrt rsqrt reciprocal relu round floor ceil"
        " trunc erf sin cos atan square hardswish log_sigmoid_forward", (X,)),
    *of("lt le gt ge eq ne", (X, Y), overload="Tensor"), *of("_prelu_kernel", (X, W)),
    *of("native_dropout", (X,), 0.5, True, fixed=False),
    *of("softplus_backward", (X, Y), 1.0, 1.0), *of("hardsigmoid_backward hardswish_backward mish_backward", (X, Y)),
    *of("hardtanh_backward", (X, Y), -1.0, 1.0), *of("leaky_relu_backward", (X, Y), 0.1, False),
    *by("elu_backward", (X, Y), lambda make, f, g, x: make(f, g, 1.0, 1.0, 1.0, False, x)),
    *of("log_sigmoid_backward _prelu_kernel_backward", (X, Y, Y)),
    # Along features.
    *(
        sample
        for dim, said in ((1, ROWWISE), (0, LINES))
        for sample in (
            *of("mean", (X,), [dim], said=said, overload="dim"), *of("var_mean var", (X,), [dim], said=said,
                overload="correction"),
            *of("cumsum cumprod cummax cummin sort argmax argmin", (X,), dim, said=said),
            *of("amax amin logsumexp", (X,), [dim], said=said), *of("max min any all", (X,), dim, said=said,
                overload="dim"),
            *of("topk", (X,), 2, dim, said=said), *of("kthvalue", (X,), 1, dim, said=said),
            *of("prod", (X,), dim, said=said, overload="dim_int"), *of("linalg_vector_norm", (X,), 2, [dim], said=said),
            *of("_softmax _log_softmax", (X,), dim, False, said=said),
            *of("_softmax_backward_data _log_softmax_backward_data", (X, Y), dim, torch.float64, said=said),
        )
    ),
    *of("sum", (X,), [1], overload="dim_IntList"), *of("sum", (X,), [0], overload="dim_IntList", said=SUMMED),
    *of("trace", ((3, 3),)),
    *by("native_layer_norm", (X, W, W), lambda make, f, x, w, b: make(f, x, [3], w, b, 1e-5)),
    *by("native_layer_norm", ((2, B),), lambda make, f, x: make(f, x, [rows(make, x, 1)], None, None, 1e-5),
        "along the batch"),
    *(
        sample
        for mask, said in (
            ([True, False, False], ROWWISE), ([False, True, True], SUMMED), ([True, True, True], "from one call"))
        for sample in by("native_layer_norm_backward", (X, Y, (B, 1), (B, 1), W, W), lambda make, f, g, x, m, s, w, b,
            mask=mask: make(
            f, g, x, [3], m, s, w, b, mask), said)
    ),
    *by("native_layer_norm_backward", ((2, B), (2, B), (2, 1), (2, 1)), lambda make, f, g, x, m, s: make(
        f, g, x, [rows(make, x, 1)], m, s, None, None, [True, False, False]), "along the batch"),
    # The Fourier transform, complex numbers, systems of equations.
    *of("_fft_r2c", ((B, 4),), [1], 0, True, said=UNKNOWN), *of("_fft_c2c", ((B, 4),), [1], 0, True, types=(COMPLEX,),
        said=UNKNOWN),
    *of("_fft_c2r", ((B, 3),), [1], 0, 4, types=(COMPLEX,), said=UNKNOWN),
    *of("_conj_physical", (X,), types=(COMPLEX,)),
    *of("view_as_real real imag conj _conj", (X,), types=(COMPLEX,), said=ANY), *of("view_as_complex", ((B, 3, 2),),
        said=UNKNOWN),
    *of("complex", (X, Y)),
    *of("linalg_lu_solve", ((3, 3), (3,), (3, 2)), types=(REAL, SHORT)), *of("linalg_solve_triangular", ((3, 3), (3,
        2)), upper=True),
    *of("triangular_solve", ((3, 2), (3, 3))), *of("cholesky_solve", ((3, 2), (3, 3))),
]  # fmt: skip
