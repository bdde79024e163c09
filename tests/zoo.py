"""Cells as people write them: from papers, from other packages, and with the habits of eager PyTorch.

Every cell is built as Cell(I, H): input width, hidden width. tests/cases.py says what each one takes. None of them
knows elman. Cells with a backward of their own stand in zoo_gradients.py, cells made for an operation in
zoo_operations.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor


class Base(nn.Module):
    """U x + b and W h, which most cells start from."""

    def __init__(self, n_in: int, n_hidden: int, gates: int = 1) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.U = nn.Linear(n_in, gates * n_hidden)
        self.W = nn.Linear(n_hidden, gates * n_hidden, bias=False)


# --- normalised, noisy, gated -----------------------------------------------------------------------------------------


class LayerNormRNN(Base):
    """Ba, Kiros and Hinton 2016: h = tanh(LN(U x + W h))."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.norm = nn.LayerNorm(n_hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.U(x) + self.W(h)))


class LayerNormLSTM(Base):
    """Layer norm on both products and on the memory."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden, 4)
        self.of_x, self.of_h = nn.LayerNorm(4 * n_hidden), nn.LayerNorm(4 * n_hidden)
        self.of_c = nn.LayerNorm(n_hidden)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        i, f, g, o = (self.of_x(self.U(x)) + self.of_h(self.W(h))).chunk(4, 1)
        c = self.of_c(torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g))
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(batch, self.hidden_size, dtype=self.W.weight.dtype, device=self.W.weight.device)
        return zeros, zeros.clone()


class ZoneoutLSTM(nn.Module):
    """Krueger et al. 2017: each unit keeps its old value with probability p; in evaluation, the mean of that."""

    def __init__(self, n_in: int, n_hidden: int, p_h: float = 0.1, p_c: float = 0.4) -> None:
        super().__init__()
        self.inner, self.p_h, self.p_c = nn.LSTMCell(n_in, n_hidden), p_h, p_c

    def keep(self, old: Tensor, new: Tensor, p: float) -> Tensor:
        if not self.training:
            return p * old + (1 - p) * new
        return torch.where(torch.rand_like(old) < p, old, new)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = self.inner(x, state)
        return self.keep(state[0], h, self.p_h), self.keep(state[1], c, self.p_c)


class BernoulliRNN(Base):
    """Zoneout with torch.bernoulli, in the shape of a mask that all units of a row share."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        keep = torch.bernoulli(torch.full_like(h[:, :1], 0.3))
        return keep * h + (1 - keep) * new


class DropoutRNN(Base):
    """Dropout inside the step: of the state that is multiplied, and of the output alone."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.U(x) + self.W(F.dropout(h, 0.3, self.training)))
        return F.dropout(h, 0.5, self.training), h


class NoisyRNN(Base):
    """Private noise in every unit, as computational neuroscience has it."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.8 * h + 0.2 * torch.tanh(self.U(x) + self.W(h) + 0.1 * torch.randn_like(h))


class MGU(nn.Module):
    """Zhou et al. 2016, the minimal gated unit: one gate, which also resets."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.U_f, self.W_f = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_hidden, bias=False)
        self.U_h, self.W_h = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_hidden, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        f = torch.sigmoid(self.U_f(x) + self.W_f(h))
        return (1 - f) * h + f * torch.tanh(self.U_h(x) + self.W_h(f * h))


class MultiplicativeLSTM(nn.Module):
    """Krause et al. 2016: two products one after the other in every step."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.U_m, self.W_m = nn.Linear(n_in, n_hidden, bias=False), nn.Linear(n_hidden, n_hidden, bias=False)
        self.U, self.W = nn.Linear(n_in, 4 * n_hidden), nn.Linear(n_hidden, 4 * n_hidden)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        m = self.U_m(x) * self.W_m(h)
        i, f, g, o = (self.U(x) + self.W(m)).split(c.shape[1], 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class TwoLevelGRU(nn.Module):
    """Two layers in one step, so two cycles: the upper one is fed by the lower one's new state."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.lower, self.upper = nn.GRUCell(n_in, n_hidden), nn.GRUCell(n_hidden, n_hidden)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        low = self.lower(x, state[0])
        high = self.upper(low, state[1])
        return high, (low, high)


class CatRNN(nn.Module):
    """One Linear of the input and the state side by side, as many tutorials write it; the output is another Linear."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.to_hidden = nn.Linear(n_in + n_hidden, n_hidden)
        self.to_output = nn.Linear(n_in + n_hidden, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([x, h], 1)
        return torch.log_softmax(self.to_output(both), 1), torch.tanh(self.to_hidden(both))


class HandSlicedLSTM(Base):
    """Gates cut out by index ranges."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden, 4)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        n, a = self.hidden_size, self.U(x) + self.W(state[0])
        s = torch.sigmoid(a[:, : 3 * n])
        c = s[:, n : 2 * n] * state[1] + s[:, :n] * torch.tanh(a[:, 3 * n :])
        h = s[:, 2 * n :] * torch.tanh(c)
        return h, (h, c)


class InPlaceRNN(Base):
    """In-place operations, but on values made within the step only."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a = self.U(x)
        a += self.W(h)
        a.mul_(0.9).tanh_()
        out = torch.empty_like(h)
        out[:, :1] = a[:, :1]
        out[:, 1:] = 0.5 * (a[:, 1:] + h[:, 1:])
        return out


# --- constraints on weights: what depends on parameters alone ---------------------------------------------------------


class DaleRNN(Base):
    """Dale's law: every unit excites or inhibits, whatever the optimiser does (Song, Yang and Wang 2016)."""

    sign: Tensor

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.register_buffer("sign", (torch.arange(n_hidden) % 5 > 0).to(torch.get_default_dtype()) * 2 - 1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        W = self.W.weight.abs() * self.sign
        return 0.7 * h + 0.3 * torch.relu(self.U(x) + h @ W.t())


class AntisymmetricRNN(Base):
    """Chang et al. 2019: h + ε tanh((W - Wᵀ - γ 1) h + U x)."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        W = self.W.weight
        A = W - W.t() - 0.1 * torch.eye(self.hidden_size, dtype=W.dtype, device=W.device)
        return h + 0.1 * torch.tanh(F.linear(h, A) + self.U(x))


class WeightNormRNN(Base):
    """A parametrization of W, which torch recomputes whenever W is read."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.W = nn.utils.parametrizations.weight_norm(self.W)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h))


class TiedRNN(nn.Module):
    """One weight in two places: W also leads to the output, transposed, and stands in two submodules."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.U = nn.Linear(n_in, n_hidden)
        self.W, self.again = nn.Linear(n_hidden, n_hidden), nn.Linear(n_hidden, n_hidden, bias=False)
        self.again.weight = self.W.weight

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.U(x) + self.W(h) - 0.3 * self.again(h * h))
        return h @ self.W.weight, h


class IndRNN(nn.Module):
    """Li et al. 2018: no product in the loop, each unit has one recurrent weight of its own."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.U, self.w = nn.Linear(n_in, n_hidden), nn.Parameter(torch.empty(n_hidden).uniform_(-0.9, 0.9))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.relu(self.U(x) + self.w * h)


class TimeConstants(Base):
    """A continuous-time network whose time constants are learned; constants as buffer, attribute and plain tensor."""

    dt: Tensor

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.log_tau = nn.Parameter(torch.rand(n_hidden))
        self.register_buffer("dt", torch.tensor(0.25))
        self.gain = torch.linspace(0.5, 1.5, n_hidden)  # not registered: .to() leaves it alone
        self.rest = 0.1

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        alpha = self.dt / (self.dt + self.log_tau.exp())
        return h + alpha * (self.rest - h + torch.tanh(self.gain.to(h) * (self.U(x) + self.W(h))))


# --- what comes in, what is kept --------------------------------------------------------------------------------------


class DictInputRNN(Base):
    """Inputs by name; one of them is a gate."""

    def forward(self, x: dict[str, Tensor], h: Tensor) -> Tensor:
        gate = torch.sigmoid(x["open"])
        return gate * torch.tanh(self.U(x["signal"]) + self.W(h)) + (1 - gate) * h


class Memory(NamedTuple):
    """A state with named entries."""

    hidden: Tensor
    cell: Tensor


class NamedTupleLSTM(nn.Module):
    """The state is a NamedTuple."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.inner = nn.LSTMCell(n_in, n_hidden)

    def forward(self, x: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        h, c = self.inner(x, (state.hidden, state.cell))
        return h, Memory(h, c)


class DelayedRNN(Base):
    """The state also holds x(t-1) and x(t-2): delays that lie on no cycle."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.D, self.D2 = nn.Linear(n_in, n_hidden, bias=False), nn.Linear(n_in, n_hidden, bias=False)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = torch.tanh(self.U(x) + self.D(state["x1"]) + self.D2(state["x2"]) + self.W(state["h"]))
        return h, {"h": h, "x1": x, "x2": state["x1"]}


class TwinRNN(Base):
    """Two entries of the state become one tensor, though they start from different ones; the output is the older."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first, second = state
        h = torch.tanh(self.U(x) + self.W(first))
        return h - 0.5 * second, (h, h)


class Swing(nn.Module):
    """Autonomous: h = tanh(W h) alone, and what is seen of it is two numbers."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.W, self.V = nn.Linear(n_hidden, n_hidden), nn.Linear(n_hidden, 2)

    def forward(self, x: None, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.W(h))
        return self.V(h), h


class Henon(nn.Module):
    """Hénon 1976: p(t) = 1 - a p(t-1)² + q(t-1), q(t) = b p(t-1), where it settles instead of being chaotic."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.2)), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: None, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        p, q = state
        return 1 - self.a * p.square() + q, self.b * p


class ContextRNN(Base):
    """A decoder's condition: the same third argument at every step."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.C = nn.Linear(4, n_hidden)

    def forward(self, x: Tensor, h: Tensor, context: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h) + self.C(context))


class AttentionRNN(Base):
    """Bahdanau et al. 2015: the state looks at the places of an encoded sequence, some of them hidden by a mask."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.query, self.K = nn.Linear(n_hidden, 4), nn.Linear(4, 4, bias=False)
        self.score, self.C = nn.Linear(4, 1), nn.Linear(4, n_hidden)

    def forward(self, x: Tensor, h: Tensor, context: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        places = context["places"]
        energy = self.score(torch.tanh(self.K(places) + self.query(h).unsqueeze(1))).squeeze(-1)
        weight = energy.masked_fill(context["hide"], -1e9).softmax(-1)
        seen = torch.bmm(weight.unsqueeze(1), places).squeeze(1)
        h = torch.tanh(self.U(x) + self.W(h) + self.C(seen))
        return {"h": h, "weight": weight}, h


class SilentRNN(Base):
    """Nothing is kept per step: the output is None."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[None, Tensor]:
        return None, torch.tanh(self.U(x) + self.W(h))


class LossRNN(Base):
    """The output is the loss of the step; x holds the target too."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.V = nn.Linear(n_hidden, 6)

    def forward(self, x: tuple[Tensor, Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.U(x[0]) + self.W(h))
        return F.cross_entropy(self.V(h), x[1], reduction="none"), h


class TokenRNN(Base):
    """Integer input, looked up inside the step."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.embedding = nn.Embedding(6, n_in)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(self.embedding(x)) + self.W(h))


class DictOutputRNN(Base):
    """Mean and scale of the next value, by name; neither is the state."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.V = nn.Linear(n_hidden, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        h = torch.tanh(self.U(x) + self.W(h))
        mean, scale = self.V(h).chunk(2, -1)
        return {"mean": mean, "scale": F.softplus(scale)}, h


class LearnedStartRNN(Base):
    """The state that a sequence starts from is a parameter."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.start = nn.Parameter(torch.rand(n_hidden) - 0.5)

    def initial_state(self, batch: int) -> Tensor:
        return torch.tanh(self.start).expand(batch, -1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h))


class CountingRNN(Base):
    """A clock in the state, int64 [B]: the units move at every third step only (after Koutník et al. 2014)."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, count = state
        moves = (count % 3 == 0).unsqueeze(-1)
        h = torch.where(moves, torch.tanh(self.U(x) + self.W(h)), h)
        return h, (h, count + 1)


class LatchRNN(Base):
    """A bool in the state, [B, H]: a unit that was once above 0.9 stays as it is."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, latched = state
        h = torch.where(latched, h, torch.tanh(self.U(x) + self.W(h)))
        return h, (h, latched | (h > 0.9))
