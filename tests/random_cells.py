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
    """

    inputs: int | None
    states: tuple[int, ...]
    lines: tuple[Instruction, ...]
    nexts: tuple[Next, ...]
    output: int | None
    seed: int = 0

    def widths(self) -> list[int]:
        """The width of every value."""
        found = [*([] if self.inputs is None else [self.inputs]), *self.states]
        for line in self.lines:
            found.append(RULES[line.rule].width(line.size, *(found[i] for i in line.operands)))
        return found

    @property
    def noise(self) -> bool:
        return any(RULES[line.rule].noise for line in self.lines)

    def __str__(self) -> str:
        names = [*([] if self.inputs is None else ["x"]), *(f"h{i}" for i in range(len(self.states)))]
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


class RandomCell(nn.Module):
    """The cell that runs a program: x [B, I] or None, one state [B, width] or a tuple of them."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        widths = program.widths()
        first = len(widths) - len(program.lines)
        generator = torch.Generator().manual_seed(program.seed)
        self.weights = nn.ParameterDict()
        for i, line in enumerate(program.lines, start=first):
            shapes = RULES[line.rule].weights(line.size, *(widths[o] for o in line.operands))
            for number, shape in enumerate(shapes):
                weight = 2 * torch.rand(shape, generator=generator) - 1
                # Rows of a matrix add up to at most one, so a product is no larger than what it multiplies.
                self.weights[f"v{i}_{number}"] = nn.Parameter(
                    weight / shape[-1] if len(shape) > 1 else weight * 0.5
                )

    def forward(self, x: Tensor | None, state: Tensor | tuple[Tensor, ...]) -> Any:
        states = (state,) if isinstance(state, Tensor) else state
        values = [*([] if x is None else [x]), *states]
        for line in self.program.lines:
            weights = []
            while (key := f"v{len(values)}_{len(weights)}") in self.weights:
                weights.append(self.weights[key])
            values.append(RULES[line.rule].run(weights, line.size, *(values[i] for i in line.operands)))
        new = tuple(
            values[n.value] if n.scale is None else torch.tanh(n.scale * values[n.value])
            for n in self.program.nexts
        )
        returned = new[0] if isinstance(state, Tensor) else new
        return returned if self.program.output is None else (values[self.program.output], returned)

    def start(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Any:
        """A random state."""
        states = tuple(
            torch.rand(batch, width, generator=generator, dtype=torch.float64).mul(2).sub(1).to(dtype)
            for width in self.program.states
        )
        return states[0] if len(states) == 1 else states

    def sequence(
        self, T: int, B: int, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor | None:
        """A random x, or None."""
        if self.program.inputs is None:
            return None
        return (
            torch.randn(T, B, self.program.inputs, generator=generator, dtype=torch.float64)
            .clamp(-3, 3)
            .to(dtype)
        )

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
    "detach": Rule(1, lambda w, size, a: a.detach() * 0.5),
    "straight_through": Rule(1, lambda w, size, a: a + (torch.tanh(3 * a) - a).detach(), bound=lambda a: a + 1),
}  # fmt: skip
