"""The recurrences that we ship: each equation once, cited. Each is a plain torch.nn.Module whose forward is one step.

They show how a cell is written; nothing in elman knows them. Letters: x(t) input, h(t) state, o(t) output;
U input-to-hidden, W hidden-to-hidden, V hidden-to-output, b and c biases; σ the logistic function, ⊙ the product of
elements. I, H, V are the widths of input, hidden units and output, B is the batch.

A weight is stored `[out, in]` and the gates of a cell are stacked in one weight, so that a step multiplies x once and
h once. Every weight and bias starts uniform in ±1/sqrt(H), as in torch.nn.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from elman.errors import InputError

Tensor = torch.Tensor


class Elman(torch.nn.Module):
    """The plain recurrent network, recurrent in its hidden units.

        a(t) = b + W h(t-1) + U x(t)
        h(t) = tanh(a(t))

    input_size: I. hidden_size: H. bias: False leaves b out.
    forward(x [B, I], h [B, H]) -> h [B, H].
    Raises InputError for a size that is no positive integer.

    Elman 1990, Finding structure in time; the equations are (10.8) and (10.9) of Goodfellow, Bengio and Courville 2016,
    Deep Learning. The readout o(t) = c + V h(t), (10.10), is a layer of its own.
    """

    b: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, *, bias: bool = True) -> None:
        super().__init__()
        _check_sizes("Elman", input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.U = _uniform(hidden_size, hidden_size, input_size)
        self.W = _uniform(hidden_size, hidden_size, hidden_size)
        self.register_parameter("b", _uniform(hidden_size, hidden_size) if bias else None)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a = F.linear(x, self.U, self.b) + F.linear(h, self.W)
        return torch.tanh(a)

    def extra_repr(self) -> str:
        return _sizes(self.input_size, self.hidden_size)


class Jordan(torch.nn.Module):
    """The network whose only memory is its output: recurrent from the output to the hidden units.

        h(t) = tanh(b + W o(t-1) + U x(t))
        o(t) = c + V h(t)

    The state is o. Feeding the targets back instead of o (teacher forcing) leaves no recurrence at all.

    input_size: I. hidden_size: H, the width of h within a step. output_size: V, the width of the state.
    bias: False leaves b and c out.
    forward(x [B, I], o [B, V]) -> o [B, V].
    Raises InputError for a size that is no positive integer.

    Jordan 1986, Serial order: a parallel distributed processing approach; figure 10.4 of Goodfellow, Bengio and
    Courville 2016, Deep Learning.
    """

    b: Tensor | None
    c: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, output_size: int, *, bias: bool = True) -> None:
        super().__init__()
        _check_sizes("Jordan", input_size=input_size, hidden_size=hidden_size, output_size=output_size)
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.U = _uniform(hidden_size, hidden_size, input_size)
        self.W = _uniform(hidden_size, hidden_size, output_size)
        self.V = _uniform(hidden_size, output_size, hidden_size)
        self.register_parameter("b", _uniform(hidden_size, hidden_size) if bias else None)
        self.register_parameter("c", _uniform(hidden_size, output_size) if bias else None)

    def forward(self, x: Tensor, o: Tensor) -> Tensor:
        h = torch.tanh(F.linear(x, self.U, self.b) + F.linear(o, self.W))
        return F.linear(h, self.V, self.c)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros [B, V]."""
        return self.V.new_zeros(batch, self.output_size)

    def extra_repr(self) -> str:
        return _sizes(self.input_size, self.hidden_size, self.output_size)


class GRU(torch.nn.Module):
    """The gated recurrent unit, with the reset gate after the product, as in torch.nn.GRU and cuDNN.

        r(t) = σ(b_r + U_r x(t) + c_r + W_r h(t-1))                 reset
        z(t) = σ(b_z + U_z x(t) + c_z + W_z h(t-1))                 update
        n(t) = tanh(b_n + U_n x(t) + r(t) ⊙ (c_n + W_n h(t-1)))     candidate
        h(t) = (1 - z(t)) ⊙ n(t) + z(t) ⊙ h(t-1)

    U [3H, I], W [3H, H], b [3H] and c [3H] hold r, z, n in this order: torch.nn.GRUCell's weight_ih, weight_hh, bias_ih
    and bias_hh.

    input_size: I. hidden_size: H. bias: False leaves b and c out.
    forward(x [B, I], h [B, H]) -> h [B, H].
    Raises InputError for a size that is no positive integer.

    Cho et al. 2014, Learning phrase representations using RNN encoder-decoder. There the reset gate stands before the
    product, W_n (r ⊙ h); after it, one product with W serves all gates. The equations as here: documentation of
    torch.nn.GRU.
    """

    b: Tensor | None
    c: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, *, bias: bool = True) -> None:
        super().__init__()
        _check_sizes("GRU", input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.U = _uniform(hidden_size, 3 * hidden_size, input_size)
        self.W = _uniform(hidden_size, 3 * hidden_size, hidden_size)
        self.register_parameter("b", _uniform(hidden_size, 3 * hidden_size) if bias else None)
        self.register_parameter("c", _uniform(hidden_size, 3 * hidden_size) if bias else None)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        x_r, x_z, x_n = F.linear(x, self.U, self.b).chunk(3, dim=-1)
        h_r, h_z, h_n = F.linear(h, self.W, self.c).chunk(3, dim=-1)
        r = torch.sigmoid(x_r + h_r)
        z = torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        return n + z * (h - n)

    def extra_repr(self) -> str:
        return _sizes(self.input_size, self.hidden_size)


class LSTM(torch.nn.Module):
    """Long short-term memory with a forget gate.

        i(t) = σ(b_i + W_i h(t-1) + U_i x(t))        input gate
        f(t) = σ(b_f + W_f h(t-1) + U_f x(t))        forget gate
        g(t) = tanh(b_g + W_g h(t-1) + U_g x(t))     candidate
        q(t) = σ(b_q + W_q h(t-1) + U_q x(t))        output gate
        c(t) = f(t) ⊙ c(t-1) + i(t) ⊙ g(t)
        h(t) = q(t) ⊙ tanh(c(t))

    c is the cell's memory here, no bias. U [4H, I], W [4H, H] and b [4H] hold i, f, g, q in this order, as
    torch.nn.LSTMCell's weight_ih and weight_hh do; b is the sum of its two biases.

    input_size: I. hidden_size: H. bias: False leaves b out.
    forward(x [B, I], (h [B, H], c [B, H])) -> (h, c); the output is h.
    Raises InputError for a size that is no positive integer.

    Hochreiter and Schmidhuber 1997, Long short-term memory; the forget gate: Gers, Schmidhuber and Cummins 2000,
    Learning to forget.
    """

    b: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, *, bias: bool = True) -> None:
        super().__init__()
        _check_sizes("LSTM", input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.U = _uniform(hidden_size, 4 * hidden_size, input_size)
        self.W = _uniform(hidden_size, 4 * hidden_size, hidden_size)
        self.register_parameter("b", _uniform(hidden_size, 4 * hidden_size) if bias else None)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, q = (F.linear(x, self.U, self.b) + F.linear(h, self.W)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(q) * torch.tanh(c)
        return h, c

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Zeros ([B, H], [B, H])."""
        W, size = self.W, self.hidden_size
        return W.new_zeros(batch, size), W.new_zeros(batch, size)

    def extra_repr(self) -> str:
        return _sizes(self.input_size, self.hidden_size)


class Leaky(torch.nn.Module):
    """Leaky integrators: units that move a part α of the way to where the plain network would jump.

        h(t) = (1 - α) h(t-1) + α tanh(b + W h(t-1) + U x(t))

    It is Euler's method for the continuous-time network τ dh/dt = -h + tanh(b + W h + U x) with α = Δt/τ.

    input_size: I. hidden_size: H. alpha: α, 0 < α ≤ 1; α = 1 is `Elman`. bias: False leaves b out.
    forward(x [B, I], h [B, H]) -> h [B, H].
    Raises InputError for a size that is no positive integer, or an α outside of its range.

    Jaeger, Lukosevicius, Popovici and Siewert 2007, Optimization and applications of echo state networks with
    leaky-integrator neurons; the continuous-time network: Funahashi and Nakamura 1993, Approximation of dynamical
    systems by continuous time recurrent neural networks.
    """

    b: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, alpha: float = 0.2, *, bias: bool = True) -> None:
        super().__init__()
        _check_sizes("Leaky", input_size=input_size, hidden_size=hidden_size)
        if not 0 < alpha <= 1:
            raise InputError(
                what="the leak is out of its range",
                where="Leaky(alpha=…)",
                got=alpha,
                expected="0 < alpha <= 1",
                mend="alpha is the length of a time step in units of the time constant",
            )
        self.input_size, self.hidden_size, self.alpha = input_size, hidden_size, alpha
        self.U = _uniform(hidden_size, hidden_size, input_size)
        self.W = _uniform(hidden_size, hidden_size, hidden_size)
        self.register_parameter("b", _uniform(hidden_size, hidden_size) if bias else None)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a = F.linear(x, self.U, self.b) + F.linear(h, self.W)
        return (1 - self.alpha) * h + self.alpha * torch.tanh(a)

    def extra_repr(self) -> str:
        return f"{_sizes(self.input_size, self.hidden_size)}, alpha={self.alpha}"


def _uniform(hidden_size: int, *shape: int) -> torch.nn.Parameter:
    bound = 1 / math.sqrt(hidden_size)
    return torch.nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def _check_sizes(cell: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(
                what="a width must be a positive integer",
                where=f"{cell}({name}=…)",
                got=repr(size),
                expected="an integer of at least 1",
            )


def _sizes(*sizes: int) -> str:
    return ", ".join(str(size) for size in sizes)
