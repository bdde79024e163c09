"""Cells that run a program: a list of instructions over values [B, width], drawn at random by tests/strategies.py.

A program prints as the code that it is, so a failing example can be read:

    RandomCell(seed=0)
        v0 = x [3]
        v1 = h0 [2]
        v2 = linear(v0, 2) [2]
        v3 = add(v2, v1) [2]
        h0 = tanh(0.25 * v3)
        return v3, h0

Every operation met in real cells' loops has an instruction that contains it. Values are bounded: `bound` says by what,
and a new state is tanh of a value divided by twice its bound, so that the map contracts, more or less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

Tensor = torch.Tensor
MOST = 6  # the widest value


def _largest(*bounds: float) -> float:
    return max(bounds)


@dataclass(frozen=True)
class Rule:
    """What an instruction means.

    arity: how many values it takes. run: (weights, size, *values) -> value.
    width: (size, *widths) -> the width of the result. bound: (*bounds) -> how large the result can be.
    weights: (size, *widths) -> the shapes of its parameters.
    sized: it uses the size. alike: all operands must have one width. fits: (*widths) -> whether it can be used at all.
    honest: its gradient is the derivative. linear: its gradient is linear in the gradient that it is given.
    rich: it is drawn only where cells of every kind are asked for.
    """

    arity: int
    run: Callable[..., Tensor]
    width: Callable[..., int] = lambda size, first, *others: first
    bound: Callable[..., float] = _largest
    weights: Callable[..., tuple[tuple[int, ...], ...]] = lambda size, *widths: ()
    sized: bool = False
    alike: bool = True
    fits: Callable[..., bool] = lambda *widths: True
    noise: bool = False
    honest: bool = True
    linear: bool = True
    rich: bool = False


@dataclass(frozen=True)
class Instruction:
    """One line of a program: the rule's name, the values it takes by number, and a size for rules that use one."""

    rule: str
    operands: tuple[int, ...]
    size: int = 0


@dataclass(frozen=True)
class Next:
    """How a state goes on: tanh(scale · value), or the value as it is (a delay)."""

    value: int
    scale: float | None


@dataclass(frozen=True)
class Program:
    """inputs, states: widths of x (None: there is no x) and of each state; they are the first values.

    nexts: one for each state. output: the value that is kept, or None for a cell that returns its state alone.
    context: the width of a value that is the same at every step. counter: one more state is a whole number below that
    one, which chooses a row of a table; 0: there is none. nesting: how x, state and output are nested, one of NESTINGS.
    learned: the first state starts from a parameter. Given values are x, states, context, the counter's row.
    """

    inputs: int | None
    states: tuple[int, ...]
    lines: tuple[Instruction, ...]
    nexts: tuple[Next, ...]
    output: int | None
    seed: int = 0
    context: int | None = None
    counter: int = 0
    nesting: str = "flat"
    learned: bool = False

    @property
    def given(self) -> list[int]:
        """The widths of the values that are there before the first line."""
        found = [*([] if self.inputs is None else [self.inputs]), *self.states]
        return [*found, *([] if self.context is None else [self.context]), *([TABLE] if self.counter else [])]

    @property
    def names(self) -> list[str]:
        """What they are called."""
        found = [*([] if self.inputs is None else ["x"]), *(f"h{i}" for i in range(len(self.states)))]
        return [*found, *([] if self.context is None else ["context"]), *(["row"] if self.counter else [])]

    def widths(self) -> list[int]:
        """The width of every value."""
        found = self.given
        for line in self.lines:
            found.append(RULES[line.rule].width(line.size, *(found[i] for i in line.operands)))
        return found

    @property
    def noise(self) -> bool:
        return any(RULES[line.rule].noise for line in self.lines)

    def __str__(self) -> str:
        names = self.names
        widths, first = self.widths(), len(names)
        text = [f"RandomCell(seed={self.seed})"]
        text += [f"v{i} = {name} [{widths[i]}]" for i, name in enumerate(names)]
        for i, line in enumerate(self.lines, start=first):
            operands = [f"v{operand}" for operand in line.operands]
            given = ", ".join([*operands, str(line.size)] if RULES[line.rule].sized else operands)
            text.append(f"v{i} = {line.rule}({given}) [{widths[i]}]")
        for i, new in enumerate(self.nexts):
            text.append(
                f"h{i} = v{new.value}" if new.scale is None else f"h{i} = tanh({new.scale} * v{new.value})"
            )
        states = ", ".join(f"h{i}" for i in range(len(self.states)))
        text.append(f"return {states}" if self.output is None else f"return v{self.output}, ({states})")
        return "\n    ".join(text)


def weight(scale: float, *shape: int, generator: torch.Generator) -> nn.Parameter:
    """Between -scale and scale; the same numbers whatever the default dtype is."""
    return nn.Parameter(scale * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1))


class RandomCell(nn.Module):
    """The cell that runs a program: x [B, I] or None, one state [B, width] or several, nested."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        widths = program.widths()
        first = len(program.given)
        generator = torch.Generator().manual_seed(program.seed)
        self.weights = nn.ParameterDict()
        for i, line in enumerate(program.lines, start=first):
            shapes = RULES[line.rule].weights(line.size, *(widths[o] for o in line.operands))
            for number, shape in enumerate(shapes):
                # Rows of a matrix add up to at most one, so a product is no larger than what it multiplies.
                scale = 1 / shape[-1] if len(shape) > 1 else 0.5
                self.weights[f"v{i}_{number}"] = weight(scale, *shape, generator=generator)
        if program.counter:
            self.weights["table"] = weight(1, program.counter, TABLE, generator=generator)
        if program.learned:
            self.weights["start"] = weight(1, program.states[0], generator=generator)

    def forward(self, x: Any, state: Any, context: Tensor | None = None) -> Any:
        *states, count = leaves_of(state) if self.program.counter else [*leaves_of(state), None]
        values = [*leaves_of(x), *states, *([] if context is None else [context])]
        if count is not None:
            values.append(self.weights["table"][count])
        for line in self.program.lines:
            weights = []
            while (key := f"v{len(values)}_{len(weights)}") in self.weights:
                weights.append(self.weights[key])
            values.append(RULES[line.rule].run(weights, line.size, *(values[i] for i in line.operands)))
        new = tuple(
            values[n.value] if n.scale is None else torch.tanh(n.scale * values[n.value])
            for n in self.program.nexts
        )
        nest = NESTINGS[self.program.nesting]
        if count is not None:
            new = (*new, (count + 1 + (states[0].sum(-1) > 0.0271).long()) % self.program.counter)
        returned = nest(*new)
        return returned if self.program.output is None else (nest(values[self.program.output]), returned)

    def initial_state(self, batch: int) -> Any:
        """What a new sequence starts from: a learned first state, zeros."""
        dtype = next((p.dtype for p in self.parameters()), torch.float64)
        found = [torch.zeros(batch, width, dtype=dtype) for width in self.program.states]
        if self.program.learned:
            found[0] = self.weights["start"].expand(batch, -1)
        counts = [torch.zeros(batch, dtype=torch.long)] * bool(self.program.counter)
        return NESTINGS[self.program.nesting](*found, *counts)

    def surroundings(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """A random context, or None."""
        if self.program.context is None:
            return None
        return torch.rand(batch, self.program.context, generator=generator, dtype=torch.float64) * 2 - 1

    def start(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Any:
        """A random state."""
        states = tuple(
            torch.rand(batch, width, generator=generator, dtype=torch.float64).mul(2).sub(1).to(dtype)
            for width in self.program.states
        )
        count = self.program.counter
        counts = [torch.randint(count, (batch,), generator=generator)] if count else []
        return NESTINGS[self.program.nesting](*states, *counts)

    def sequence(self, T: int, B: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Any:
        """A random x, or None."""
        if self.program.inputs is None:
            return None
        drawn = torch.randn(T, B, self.program.inputs, generator=generator, dtype=torch.float64)
        return NESTINGS[self.program.nesting](drawn.clamp(-3, 3).to(dtype))

    def steps(self, T: int) -> int | None:
        """What to pass as `steps`: T for a cell without x, else None."""
        return T if self.program.inputs is None else None

    def __repr__(self) -> str:
        return str(self.program)


# --- the rules --------------------------------------------------------------------------------------------------------


def _linear(w: Sequence[Tensor], size: int, a: Tensor) -> Tensor:
    return F.linear(a, w[0], w[1])


def _heads(w: Sequence[Tensor], size: int, a: Tensor) -> Tensor:
    heads = a.reshape(a.shape[0], 2, -1).permute(1, 0, 2)
    return torch.bmm(heads, w[0].transpose(1, 2)).permute(1, 0, 2).reshape(a.shape)


def _recall(w: Sequence[Tensor], size: int, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    memory = torch.bmm(a.unsqueeze(2), b.unsqueeze(1))
    return torch.bmm(memory, c.unsqueeze(2)).squeeze(2) / a.shape[1]


def _gate(w: Sequence[Tensor], size: int, a: Tensor, b: Tensor) -> Tensor:
    z, n = torch.sigmoid(a), torch.tanh(a)
    return z * b + (1 - z) * n


def _standardise(w: Sequence[Tensor], size: int, a: Tensor) -> Tensor:
    variance, mean = torch.var_mean(a, -1, keepdim=True, correction=0)
    return (a - mean) * torch.rsqrt(variance + 0.1)


def _swap(w: Sequence[Tensor], size: int, a: Tensor) -> Tensor:
    first, *others = a.chunk(2, -1)
    return torch.cat([*others, first], -1)


def _index(size: int, width: int) -> Tensor:
    return (torch.arange(width) * (size + 1) + size) % width


def _scatter(w: Sequence[Tensor], size: int, a: Tensor, b: Tensor) -> Tensor:
    return a.scatter_add(1, _index(size, a.shape[1]).expand(a.shape[0], -1), b)


def _columns(w: Sequence[Tensor], size: int, a: Tensor, b: Tensor) -> Tensor:
    """The batch second: W aᵀ, and what gates it, read non-linearly there."""
    z, n = torch.sigmoid(b.T), torch.tanh(w[0] @ a.T)
    return (z * n + (1 - z) * torch.sin(b.T)).T


def _stacked(w: Sequence[Tensor], size: int, a: Tensor, b: Tensor) -> Tensor:
    """The batch in the middle: [2, B, n]."""
    two = torch.tanh(torch.stack([a, b]) @ w[0])
    return (two * two.flip(0).cos()).sum(0) / 2


def _merged(w: Sequence[Tensor], size: int, a: Tensor) -> Tensor:
    """The batch merged with another dimension: [B·2, n/2]."""
    parts = torch.sin(a.reshape(-1, a.shape[1] // 2))
    return torch.tanh(parts @ w[0] + parts * parts).view(a.shape[0], -1)


def _last(w: Sequence[Tensor], size: int, a: Tensor) -> Tensor:
    """The batch last, behind a dimension that it was merged with: [n/2, B·2]."""
    parts = a.reshape(-1, a.shape[1] // 2).T
    return torch.tanh(parts * parts.cos()).T.reshape(a.shape)


def _sum_of(*bounds: float) -> float:
    return float(sum(bounds))


def _product_of(*bounds: float) -> float:
    result = 1.0
    for bound in bounds:
        result *= bound
    return result


def _one(*bounds: float) -> float:
    return 1.0


def _resized(size: int, *widths: int) -> int:
    return size


def _square(size: int, width: int, *others: int) -> tuple[tuple[int, ...], ...]:
    return ((width, width),)


def _attend(w: Sequence[Tensor], size: int, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Two places look at each other, in one head."""
    q, k, v = (z.reshape(z.shape[0], 2, -1) for z in (a, b, c))
    return F.scaled_dot_product_attention(q, k @ w[0], v).flatten(1)


def _look(w: Sequence[Tensor], size: int, a: Tensor, b: Tensor) -> Tensor:
    """One place looks at all rows of a table, by what it holds, and takes away a mean of them."""
    return torch.softmax(a @ w[0].T + b[:, :1], -1) @ w[0]


def _rotate(w: Sequence[Tensor], size: int, a: Tensor) -> Tensor:
    """Pairs of numbers as complex ones, turned."""
    apart = a.reshape(a.shape[0], -1, 2).clone(
        memory_format=torch.contiguous_format
    )  # a view may begin anywhere
    pairs = torch.view_as_complex(apart)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(w[0]), w[0])).flatten(1)


def _spectrum(w: Sequence[Tensor], size: int, a: Tensor) -> Tensor:
    """A filter over the features."""
    return torch.fft.irfft(torch.fft.rfft(a) * w[0][: a.shape[1] // 2 + 1], n=a.shape[1])


class Fire(torch.autograd.Function):
    """A step, with the gradient of something smooth."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return (a > 0.0314).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (a,) = ctx.saved_tensors
        return g / (1 + a * a)


class Clip(torch.autograd.Function):
    """The same number, with a clipped gradient."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return a.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g.clamp(-0.4, 0.4)


def leaves_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


TABLE = 3  # the width of the row that a counter chooses
# Tensors, nested; leaves keep their order.
NESTINGS: Mapping[str, Callable[..., Any]] = {
    "flat": lambda first, *others: (first, *others) if others else first,
    "dict": lambda *each: {f"h{i}": one for i, one in enumerate(each)},
    "deep": lambda first, *others: ([first], {"others": (*others,)}) if others else ({"only": first},),
}


# Comparisons keep a little away from each other's values: a rounding error must not decide.
RULES: Mapping[str, Rule] = {
    # Products with parameters, and of values.
    "linear": Rule(1, _linear, _resized, lambda a: a + 0.5, lambda size, width: ((size, width), (size,)), sized=True),
    "product": Rule(1, lambda w, size, a: F.linear(a, w[0]), weights=_square),
    "matmul": Rule(1, lambda w, size, a: a @ w[0], weights=_square),
    "heads": Rule(1, _heads, weights=lambda size, n: ((2, n // 2, n // 2),), fits=lambda n: n % 2 == 0),
    "recall": Rule(3, _recall, bound=_product_of),
    "dot": Rule(
        2,
        lambda w, size, a, b: torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).squeeze(2) / a.shape[1],
        lambda size, *widths: 1,
        _product_of,
    ),
    # Pointwise.
    "add": Rule(2, lambda w, size, a, b: a + b, bound=_sum_of),
    "sub": Rule(2, lambda w, size, a, b: a - b, bound=_sum_of),
    "mul": Rule(2, lambda w, size, a, b: a * b, bound=_product_of),
    "div": Rule(2, lambda w, size, a, b: a / (1 + b * b)),
    "shift": Rule(1, lambda w, size, a: a + w[0], bound=lambda a: a + 0.5, weights=lambda size, width: ((width,),)),
    "gate": Rule(2, _gate, bound=lambda a, b: max(b, 1.0)),
    "tanh": Rule(1, lambda w, size, a: torch.tanh(a), bound=_one),
    "sigmoid": Rule(1, lambda w, size, a: torch.sigmoid(a), bound=_one),
    "relu": Rule(1, lambda w, size, a: torch.relu(a + 0.0271), bound=lambda a: a + 0.1),
    "rsqrt": Rule(1, lambda w, size, a: torch.rsqrt(a * a + 1), bound=_one),
    "hardsigmoid": Rule(1, lambda w, size, a: F.hardsigmoid(a * 3), bound=_one),
    "hard_gate": Rule(2, lambda w, size, a, b: a + F.hardsigmoid(2 * a + 1) * (b - a)),
    "softplus": Rule(1, lambda w, size, a: F.softplus(a), bound=lambda a: a + 1),
    "clamp": Rule(1, lambda w, size, a: torch.clamp(a, -0.613, 0.587), bound=_one),
    "maximum": Rule(2, lambda w, size, a, b: torch.maximum(a, b + 0.0193), bound=lambda a, b: max(a, b) + 0.1),
    "where": Rule(3, lambda w, size, a, b, c: torch.where(a > 0.0314 - b, b, c)),
    # Where the batch is not in front.
    "columns": Rule(2, _columns, bound=_one, weights=_square),
    "stacked": Rule(2, _stacked, bound=_one, weights=_square),
    "merged": Rule(
        1, _merged, bound=_one, weights=lambda size, n: ((n // 2, n // 2),), fits=lambda n: n % 2 == 0
    ),
    "last": Rule(1, _last, bound=_one, fits=lambda n: n % 2 == 0),
    # Along features.
    "layer_norm": Rule(
        1,
        lambda w, size, a: F.layer_norm(a, (a.shape[1],), w[0] + 1, w[1], 0.1),
        bound=lambda a: 4.0,
        weights=lambda size, width: ((width,), (width,)),
    ),
    "standardise": Rule(1, _standardise, bound=lambda a: 2.5),
    "softmax": Rule(1, lambda w, size, a: torch.softmax(a, -1), bound=_one),
    "largest": Rule(1, lambda w, size, a: a.max(-1, keepdim=True).values, lambda size, width: 1),
    "sum": Rule(1, lambda w, size, a: a.sum(-1, keepdim=True) / MOST, lambda size, width: 1),
    "mean": Rule(1, lambda w, size, a: a.mean(-1, keepdim=True), lambda size, width: 1),
    # Addressing.
    "slice": Rule(1, lambda w, size, a: a[:, :size], lambda size, width: min(size, width), sized=True),
    "rest": Rule(1, lambda w, size, a: a[:, 1:], lambda size, width: width - 1, fits=lambda n: n > 1),
    "swap": Rule(1, _swap),
    "cat": Rule(
        2,
        lambda w, size, a, b: torch.cat([a, b], -1),
        lambda size, a, b: a + b,
        alike=False,
        fits=lambda a, b: a + b <= MOST,
    ),
    "transpose": Rule(
        1,
        lambda w, size, a: a.reshape(a.shape[0], 2, -1).permute(0, 2, 1).reshape(a.shape[0], -1),
        fits=lambda n: n % 2 == 0,
    ),
    "expand": Rule(1, lambda w, size, a: a[:, :1].expand(-1, size), _resized, sized=True),
    "unsqueeze": Rule(1, lambda w, size, a: a.unsqueeze(1).expand(-1, 2, -1).sum(1).unsqueeze(2).squeeze(2) / 2),
    # Index.
    "index": Rule(1, lambda w, size, a: a[:, _index(size, a.shape[1])], sized=True),
    "gather": Rule(1, lambda w, size, a: a.gather(1, _index(size, a.shape[1]).expand(a.shape[0], -1)), sized=True),
    "scatter": Rule(2, _scatter, bound=lambda a, b: a + MOST * b, sized=True),
    # Noise, and gradients cut.
    "zoneout": Rule(2, lambda w, size, a, b: torch.where(torch.rand_like(a) < 0.3, a, b), noise=True),
    "jitter": Rule(1, lambda w, size, a: a + 0.1 * torch.randn_like(a), bound=lambda a: a + 0.5, noise=True),
    "dropout": Rule(1, lambda w, size, a: F.dropout(a, 0.3, True), bound=lambda a: 1.5 * a, noise=True),
    "detach": Rule(1, lambda w, size, a: a.detach() * 0.5, honest=False),
    "straight_through": Rule(
        1, lambda w, size, a: a + (torch.tanh(3 * a) - a).detach(), bound=lambda a: a + 1, honest=False
    ),
    # Cells of every kind: attention, complex numbers, backwards of their own.
    "attend": Rule(
        3, _attend, weights=lambda size, n, *more: ((n // 2, n // 2),), fits=lambda n, *more: n % 2 == 0, rich=True
    ),
    "look": Rule(2, _look, bound=_one, weights=lambda size, n, *more: ((4, n),), rich=True),
    "rotate": Rule(
        1, _rotate, bound=lambda a: 2 * a, weights=lambda size, n: ((n // 2,),), fits=lambda n: n % 2 == 0, rich=True
    ),
    "spectrum": Rule(
        1, _spectrum, bound=lambda a: a, weights=lambda size, n: ((n,),), fits=lambda n: n > 1, rich=True
    ),
    "fire": Rule(1, lambda w, size, a: Fire.apply(a), bound=_one, honest=False, rich=True),
    "clip": Rule(1, lambda w, size, a: Clip.apply(a), honest=False, linear=False, rich=True),
}  # fmt: skip
