"""Operations as what they are made of, while a step is traced.

PyTorch computes `scaled_dot_product_attention` by kernels of which a graph shows nothing, some of them with a name that
says "random" and without second derivatives. The second derivatives of some operations, and those of forward mode,
are missing, wrong, or ask how large the batch is, which nobody knows here; one_hot looks at its numbers, which are not
there. A formula says the same, and has derivatives of any order.
"""

from __future__ import annotations

import functools
import math
import traceback
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch._C._functorch import TransformType, peek_interpreter_stack
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from elman.trace import convolutions, filling, matrices, norms
from elman.trace.quantiles import nanquantile, quantile
from elman.trace.unchanging import WithZeros

if TYPE_CHECKING:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

Tensor = torch.Tensor


class InParts(TorchFunctionMode):
    """Inside, operations are made of others: attention, and those whose second derivatives are not there, with `twice`
    and where the step pushes directions forward itself (`torch.func.jvp`, dual numbers).

    asked: the first call that has asked how large the batch is: its name, and the lines it came from.
    """

    def __init__(self, env: ShapeEnv, twice: bool) -> None:
        super().__init__()
        self.env = env
        self.parts = _PARTS | _TWICE if twice else _PARTS
        self.level = forward_ad._current_level  # what surrounds the trace is not the step's
        self.asked: tuple[str, traceback.StackSummary] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        guards = len(self.env.guards)
        if self._pushing():
            with WithZeros():
                result = _FORWARD.get(func, func)(*args, **(kwargs or {}))
        else:
            result = self.parts.get(func, func)(*args, **(kwargs or {}))
        if self.asked is None and len(self.env.guards) > guards:
            self.asked = getattr(func, "__name__", str(func)), traceback.extract_stack()
        return result

    def _pushing(self) -> bool:
        """Whether the step is within forward mode of its own."""
        if forward_ad._current_level > self.level:
            return True
        if peek_interpreter_stack() is None:
            return False
        return any(level.key() is TransformType.Jvp for level in retrieve_all_functorch_interpreters())


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(q kᵀ / √d) v, as `torch.nn.functional.scaled_dot_product_attention` defines it: [.., L, d], [.., S, d].

    A row whose places are all hidden attends to nothing: zeros.
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    score = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    hides = attn_mask is not None
    if is_causal:
        at, seen_from = (torch.arange(value.shape[-2], device=query.device) for value in (key, query))
        seen = at <= seen_from[:, None]
        score = torch.where(seen, score, -math.inf)
    if attn_mask is not None:
        hidden = attn_mask.dtype == torch.bool
        score = torch.where(attn_mask, score, -math.inf) if hidden else score + attn_mask
    if not hides:
        weight = torch.softmax(score, -1)
    else:  # what attends to nothing is kept out of the softmax, whose derivatives are NaN there
        nothing = (score == -math.inf).all(-1, keepdim=True)
        weight = torch.where(nothing, 0.0, torch.softmax(torch.where(nothing, 0.0, score), -1))
    return F.dropout(weight, dropout_p) @ value if dropout_p else weight @ value


def _with_ours(function: types.FunctionType) -> types.FunctionType:
    """The same function of torch, computing with `attend`."""
    namespace = {
        **function.__globals__,
        "scaled_dot_product_attention": attend,
        "has_torch_function": lambda tensors: False,
    }
    copy = types.FunctionType(function.__code__, namespace, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class _Straight(torch.autograd.Function):
    """A function whose graph is made of straight lines, by its value and its slope; its second derivative is zero."""

    @staticmethod
    def forward(x: Tensor, value: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Tensor:
        return value(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.slope = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return gradients[0] * ctx.slope(x), None, None

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return directions[0] * ctx.slope(x)


def _sgn(input: Tensor) -> Tensor:
    return torch.sgn(input) if input.is_complex() else torch.sign(input)


def _multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.matmul, tensors)


def _abs(input: Tensor) -> Tensor:
    """Its slope for autograd is that of sgn(x), whose own is a tensor of the batch's size."""
    return _Straight.apply(input, torch.abs, torch.sign) if input.is_floating_point() else torch.abs(input)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    if inplace:
        return F.hardsigmoid(input, True)
    return _Straight.apply(input, F.hardsigmoid, _slope_of_hardsigmoid)


def _slope_of_hardsigmoid(x: Tensor) -> Tensor:
    """1/6 in float32, which PyTorch takes in float64 as well."""
    return torch.where((x > -3) & (x < 3), 0.1666666716337204, 0.0).to(x.dtype)


def _l1_loss(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", **more: Any,
) -> Tensor:  # fmt: skip
    if more or size_average is not None or reduce is not None or reduction == "mean":
        return F.l1_loss(input, target, size_average, reduce, reduction, **more)
    apart = _abs(input - target)
    return apart if reduction == "none" else apart.sum()


def _length(x: Tensor, p: float, dim: Any = None, keepdim: bool = False) -> Tensor:
    """(Σ |x|ᵖ)^(1/p); as in PyTorch, its derivative at 0 is 0."""
    size = _abs(x)
    if math.isinf(p):
        return size.amax(() if dim is None else dim, keepdim)
    if p == 1:
        return size.sum(dim, keepdim)
    total = size.pow(p).sum(dim, keepdim)
    nothing = total == 0
    return torch.where(nothing, 0.0, torch.where(nothing, 1.0, total).pow(1 / p))


def _norm(function: Any) -> Any:
    """A norm, that of vectors by `_length`. All take x, p, dim, keepdim in this order."""

    def norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        named = {"p" if key == "ord" else key: value for key, value in kwargs.items() if value is not None}
        named |= dict(zip(("p", "dim", "keepdim", "out", "dtype"), args, strict=False))
        vectors = isinstance(named.get("dim"), int) or x.dim() == 1 or function is not torch.linalg.norm
        if named.keys() <= {"p", "dim", "keepdim"} and vectors and _has_length(x, named.get("p")):
            return _length(x, **named)
        return function(x, *args, **kwargs)

    return norm


def _has_length(x: Tensor, p: Any) -> bool:
    """Whether PyTorch's derivatives of the norm cannot be traced: those of p = 2 can."""
    return x.is_floating_point() and isinstance(p, (int, float)) and p >= 1 and p != 2


def _normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Tensor:
    if out is not None or not _has_length(input, p):
        return F.normalize(input, p, dim, eps, out)
    return input / _length(input, p, dim, keepdim=True).clamp_min(eps)


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, *args: Any, **kwargs: Any) -> Tensor:
    if math.isinf(p) or p < 1:  # where several are largest, PyTorch's derivative here is not that of its norm
        return torch.cdist(x1, x2, p, *args, **kwargs)
    apart = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    return torch.linalg.vector_norm(apart, p, -1) if p == 2 else _length(apart, p, -1)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """PyTorch's own second derivative by v is wrong (2.13), without an error."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _power_pool(pool: Callable[..., Tensor], dims: int) -> Callable[..., Tensor]:
    """(Σ xᵖ)^(1/p) over each window, as F.lp_pool1d, … have it."""

    def pooled(
        input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
    ) -> Tensor:
        mean = pool(input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
        count = kernel_size**dims if isinstance(kernel_size, int) else math.prod(kernel_size)
        return (torch.sign(mean) * F.relu(_abs(mean)) * count).pow(1 / norm_type)

    return pooled


def _rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """Out of training it draws nothing, though PyTorch calls it by the name of what does."""
    if training:
        return F.rrelu(input, lower, upper, training, inplace)
    return F.leaky_relu(input, (lower + upper) / 2, inplace)


def _softsign(input: Tensor) -> Tensor:
    return input / (_abs(input) + 1)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    a, b = input.chunk(2, dim)
    return a * torch.sigmoid(b)


def _embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    if max_norm is not None or scale_grad_by_freq or sparse:
        return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    rows = weight[input]
    if padding_idx is None:
        return rows
    padding = input == padding_idx % len(weight)
    return torch.where(padding.unsqueeze(-1), rows.detach(), rows)


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Numbers that are none of the classes are an error in PyTorch; on fake tensors it is a comparison, which has none.
    A scatter says so in every engine."""
    if num_classes < 1:
        return F.one_hot(tensor, num_classes)
    room = torch.zeros((*tensor.shape, num_classes), dtype=tensor.dtype, device=tensor.device)
    return room.scatter(-1, tensor.unsqueeze(-1), 1)


def _logcumsumexp(input: Tensor, dim: int, **more: Any) -> Tensor:
    """PyTorch's own second derivatives are NaN where a gradient is 0."""
    x = input.movedim(dim, -1)
    before = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).tril()
    return torch.where(before, x.unsqueeze(-2), -math.inf).logsumexp(-1).movedim(-1, dim)


def _sinc(input: Tensor) -> Tensor:
    """PyTorch's own derivative divides by zero at 0, and hides that from its backward pass alone."""
    if not input.is_floating_point():
        return torch.sinc(input)
    x = math.pi * input
    near = x.abs() < 1e-3
    far = torch.where(near, 1.0, x)
    return torch.where(near, 1 - x * x * (1 / 6 - x * x / 120), far.sin() / far)


def _logit(input: Tensor, eps: float | None = None) -> Tensor:
    """The same beyond eps and 1 - eps."""
    if eps is None or not input.is_floating_point():
        return torch.logit(input, eps)
    p = input.clamp(eps, 1 - eps)
    return torch.log(p / (1 - p))


def gru_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:  # fmt: skip
    """One step of torch.nn.GRUCell."""
    a_r, a_z, a_n = F.linear(input, w_ih, b_ih).chunk(3, -1)
    b_r, b_z, b_n = F.linear(hx, w_hh, b_hh).chunk(3, -1)
    n = torch.tanh(a_n + torch.sigmoid(a_r + b_r) * b_n)
    return torch.sigmoid(a_z + b_z) * (hx - n) + n


def lstm_cell(
    input: Tensor, hx: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step of torch.nn.LSTMCell."""
    h, c = hx
    i, f, g, o = (F.linear(input, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def logsigmoid(input: Tensor) -> Tensor:
    """log σ(x)."""
    return -torch.logaddexp(torch.zeros_like(input), -input)


def _elsewhere(function: Any, parts: Any) -> Any:
    """The function on CPUs; what it is made of on other devices, where PyTorch has kernels that a trace cannot look
    into, or whose results have other shapes."""

    def chosen(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (function if input.device.type == "cpu" else parts)(input, *args, **kwargs)

    return chosen


_PARTS: dict[Any, Any] = {
    torch.gru_cell: _elsewhere(torch.gru_cell, gru_cell),
    torch.lstm_cell: _elsewhere(torch.lstm_cell, lstm_cell),
    F.logsigmoid: _elsewhere(F.logsigmoid, logsigmoid),
    F.scaled_dot_product_attention: attend,
    F.multi_head_attention_forward: _with_ours(F.multi_head_attention_forward),  # type: ignore[arg-type]
    **dict.fromkeys((torch.sgn, Tensor.sgn), _sgn),
    torch.linalg.multi_dot: _multi_dot,
    F.one_hot: _one_hot,
    **dict.fromkeys((torch.quantile, Tensor.quantile), quantile),
    **dict.fromkeys((torch.nanquantile, Tensor.nanquantile), nanquantile),
    **dict.fromkeys((torch.index_fill, Tensor.index_fill), filling.index_fill),
    Tensor.index_fill_: filling.index_fill_,
    Tensor.__setitem__: filling.set_item,
    F.rrelu: _rrelu,
    **dict.fromkeys((torch.norm, Tensor.norm), _norm(torch.norm)),
    torch.linalg.norm: _norm(torch.linalg.norm),
    torch.linalg.vector_norm: _norm(torch.linalg.vector_norm),
    F.normalize: _normalize,
    **dict.fromkeys((F.group_norm, torch.group_norm), norms.group_norm(F.layer_norm)),
}
_TWICE: dict[Any, Any] = {
    **dict.fromkeys((torch.abs, Tensor.abs, Tensor.__abs__, torch.absolute, Tensor.absolute), _abs),
    F.hardsigmoid: _hardsigmoid,
    F.l1_loss: _l1_loss,
    torch.cdist: _cdist,
    torch._weight_norm: _weight_norm,
    F.softsign: _softsign,
    F.glu: _glu,
    F.embedding: _embedding,
    F.batch_norm: norms.batch_norm,
    F.instance_norm: norms.instance_norm,
    **dict.fromkeys((F.layer_norm, torch.layer_norm), norms.layer_norm),
    torch.native_layer_norm: norms.native_layer_norm,
    **dict.fromkeys((F.group_norm, torch.group_norm), norms.group_norm(norms.layer_norm)),
    **dict.fromkeys((torch.logcumsumexp, Tensor.logcumsumexp), _logcumsumexp),
    **dict.fromkeys((torch.sinc, Tensor.sinc, torch.special.sinc), _sinc),
    **dict.fromkeys((torch.logit, Tensor.logit, torch.special.logit), _logit),
    **dict.fromkeys((torch.trace, Tensor.trace), matrices.trace),
    **dict.fromkeys((torch.linalg.det, torch.det, Tensor.det), matrices.det),
    F.lp_pool1d: _power_pool(F.avg_pool1d, 1),
    F.lp_pool2d: _power_pool(F.avg_pool2d, 2),
    F.lp_pool3d: _power_pool(F.avg_pool3d, 3),
    **{
        getattr(F, name.format(dims)): made(dims)
        for name, made in (
            ("conv{}d", convolutions.convolution),
            ("conv_transpose{}d", convolutions.transposed),
        )
        for dims in (1, 2, 3)
    },
}
# In forward mode. Not layer norm: what PyTorch makes of its derivative's gradient is wrong, and no circuit of it may be
# right where the cell is not.
_FORWARD: dict[Any, Any] = {
    function: parts
    for function, parts in (_PARTS | _TWICE).items()
    if function not in (F.layer_norm, torch.layer_norm, torch.native_layer_norm)
}
