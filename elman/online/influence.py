"""The influence of the parameters on the state, ∂s/∂θ, stored and carried forward where it can be other than zero."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from elman.engines.base import Carrier, Engine
from elman.online.reach import Reach

Tensor = torch.Tensor
_SHAPES = 32  # of blocks; what is more irregular than that is one block


@dataclass(frozen=True)
class Blocks:
    """G blocks of one shape. units: [G, u], parameters: [G, q]: the parameters of a block reach its units and no other.

    at, of: for each pair that meets in a step, its place in [G, u, q], and in the immediate influence [C, P].
    through, there: [G, u, u], the place in the pulled Jacobian [C, n] of how unit j of a block reaches unit i, and
        whether it does.
    """

    units: Tensor
    parameters: Tensor
    at: Tensor
    of: Tensor
    through: Tensor
    there: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        G, u = self.units.shape
        return G, u, self.parameters.shape[1]


@dataclass(frozen=True)
class Pattern:
    """Where ∂s/∂θ is stored, and how the Jacobians of a step are found in fewer passes than there are units.

    n, P: units and parameters. colours: of each unit: units of one colour share no parameter in a step, so that one
    backward pass serves them all (Curtis, Powell and Reid, 1974). rows: the same, of units that no unit reaches in
    common. units: [n, n], whether what unit j does to unit i is carried.
    """

    n: int
    P: int
    blocks: tuple[Blocks, ...]
    colours: Tensor
    rows: Tensor
    units: Tensor

    def to(self, device: torch.device) -> Pattern:
        """The same, where the numbers will lie."""
        blocks = (Blocks(*(getattr(b, f.name).to(device) for f in fields(b))) for b in self.blocks)
        where = (t.to(device) for t in (self.colours, self.rows, self.units))
        return Pattern(self.n, self.P, tuple(blocks), *where)

    def same(self, other: Pattern) -> bool:
        """Whether what is stored by the one can be read by the other."""
        return (self.n, self.P, len(self.blocks)) == (other.n, other.P, len(other.blocks)) and all(
            map(torch.equal, self._tensors, other._tensors)
        )

    @property
    def _tensors(self) -> list[Tensor]:
        return [
            self.colours,
            self.rows,
            self.units,
            *(getattr(b, f.name) for b in self.blocks for f in fields(b)),
        ]

    @property
    def backward(self) -> tuple[int, int]:
        """Passes for what is immediate, and for the Jacobian."""
        return int(self.colours.max()) + 1, int(self.rows.max()) + 1

    def held(self, in_place: bool) -> int:
        """How many numbers there are for each row in all: M, and M again where it is not carried in place; what a step
        adds to it, by parameter and put together; the Jacobian as it is pulled back, and as it lies in blocks."""
        C, again = self.backward
        blocks = [b.shape for b in self.blocks]
        twice = sum(G * u * q for G, u, q in blocks if u > 1 and not in_place)
        return self.numbers + twice + 2 * C * self.P + again * self.n + sum(G * u * u for G, u, _ in blocks)

    @property
    def numbers(self) -> int:
        """How many numbers of ∂s/∂θ are stored for each row of a batch."""
        return sum(G * u * q for G, u, q in (b.shape for b in self.blocks))

    @property
    def products(self) -> int:
        """Multiplications for each row and step."""
        return sum(G * u * u * q for G, u, q in (b.shape for b in self.blocks))


def pattern(
    reach: Reach, parameters: int, onward: bool, units: Tensor | None = None, carried: Tensor | None = None
) -> Pattern:
    """onward: follow an influence from unit to unit, as the exact rule does; else it ends where it begins.

    units: [n, n], another Jacobian's pattern than the step's own. carried: [n, n], what of it is made use of.
    """
    through = reach.units if units is None else units
    n, carried = len(through), through if carried is None else carried
    closed = _closure(carried) if onward else torch.eye(n, dtype=torch.bool)
    unit, parameter = reach.pairs
    colours = _colours(unit, parameter, n)
    of = colours[unit] * parameters + parameter
    # Parameters that meet the same units have the same sum of random numbers; what they reach is found once for each.
    mark = torch.randint(2**62, (n,), generator=torch.Generator().manual_seed(1))
    marks = torch.zeros(parameters, dtype=torch.int64).index_add_(0, parameter, mark[unit])
    kinds, kind = torch.unique(marks, return_inverse=True)
    meets = torch.zeros(len(kinds), n, dtype=torch.bool)
    meets[kind[parameter], unit] = True
    reached, group = torch.unique(meets.float() @ closed.float().T > 0, dim=0, return_inverse=True)
    group = group[kind]
    members = [(group == g).nonzero().squeeze(1) for g in range(len(reached))]
    groups = [(r.nonzero().squeeze(1), m) for r, m in zip(reached, members, strict=True) if r.any()]
    shapes = {(len(u), len(m)) for u, m in groups}
    if len(shapes) > _SHAPES:
        every = torch.cat([m for _, m in groups])
        groups, shapes = [(torch.arange(n), every)], {(n, len(every))}
    to, from_ = through.nonzero().T
    rows = _colours(to, from_, n)
    blocks = []
    for u, q in sorted(shapes):
        same = [(us, ms) for us, ms in groups if (len(us), len(ms)) == (u, q)]
        here, mine = (torch.stack(part) for part in zip(*same, strict=True))
        i, j = here.unsqueeze(2), here.unsqueeze(1)
        at, pairs = _meeting(here, mine, unit, parameter, torch.argsort(of), n, parameters)
        blocks.append(Blocks(here, mine, at, of[pairs], rows[i] * n + j, carried[i, j]))
    return Pattern(n, parameters, tuple(blocks), colours, rows, carried)


def _meeting(
    units: Tensor, parameters: Tensor, unit: Tensor, parameter: Tensor, order: Tensor, n: int, count: int
) -> tuple[Tensor, Tensor]:
    """Of the pairs of unit and parameter that lie in blocks, in `order`: the place in [G, u, q], and the pair's
    number."""
    (G, u), q = units.shape, parameters.shape[1]
    block, place = (torch.full((count,), -1) for _ in range(2))
    block[parameters.reshape(-1)] = torch.arange(G).repeat_interleave(q)
    place[parameters.reshape(-1)] = torch.arange(q).repeat(G)
    row = torch.full((G, n), -1)
    row.scatter_(1, units, torch.arange(u).expand(G, u))
    mine = order[block[parameter[order]] >= 0]
    b = block[parameter[mine]]
    return (b * u + row[b, unit[mine]]) * q + place[parameter[mine]], mine


def _closure(units: Tensor) -> Tensor:
    """Whether unit j reaches unit i in any number of steps."""
    closed = (units | torch.eye(len(units), dtype=torch.bool)).float()
    while True:
        more = ((closed @ closed) > 0).float()
        if torch.equal(more, closed):
            return closed > 0
        closed = more


def _colours(item: Tensor, shared: Tensor, n: int) -> Tensor:
    """Colours for n items, so that no two of a colour have something shared: the first that is free, in order."""
    colours = torch.zeros(n, dtype=torch.int64)
    if len(item) == 0:
        return colours
    taken: list[Tensor] = []  # of each colour, what its items have
    order = torch.argsort(item, stable=True)
    of = torch.split(shared[order], torch.bincount(item, minlength=n).tolist())
    count = int(shared.max()) + 1
    for number, mine in enumerate(of):
        colour = next((c for c, has in enumerate(taken) if not bool(has[mine].any())), len(taken))
        if colour == len(taken):
            taken.append(torch.zeros(count, dtype=torch.bool))
        taken[colour][mine] = True
        colours[number] = colour
    return colours


class Influence:
    """∂s/∂θ of B rows: for each kind of block [B, G, u, q]."""

    def __init__(self, pattern: Pattern, batch: int, like: Tensor, engine: Engine | None) -> None:
        self.pattern, self.batch = pattern, batch
        self.values = [like.new_zeros(batch, *b.shape) for b in pattern.blocks]
        self._parts = [_Part(b, pattern, batch, like, engine) for b in pattern.blocks]
        twice = [p.carry is None and p.shape[1] > 1 for p in self._parts]
        self._spare = [torch.empty_like(v) if more else v for v, more in zip(self.values, twice, strict=True)]

    def forward(self, pulled: Tensor, immediate: Tensor) -> None:
        """M(t) = J M(t-1) + ∂s/∂θ of this step. pulled: [B, C, n], rows of ∂s_i/∂s_j added up by colour. immediate:
        [B, C, P], the same of ∂s/∂θ."""
        B = self.batch
        pulled, immediate = (t.reshape(B, -1).contiguous() for t in (pulled, immediate))
        for number, part in enumerate(self._parts):
            (G, u, q), before, after = part.shape, self.values[number], self._spare[number]
            mine = _chosen(pulled, part.through)
            mine = mine if part.there is None else mine * part.there
            if part.carry is not None:
                part.carry(before, mine, immediate)
                continue
            if u == 1:
                before.mul_(mine.view(B, G, 1, 1))
            else:
                torch.bmm(mine.reshape(B * G, u, u), before.view(B * G, u, q), out=after.view(B * G, u, q))
                self.values[number], self._spare[number] = after, before
            self.values[number].view(B, -1).index_add_(1, part.at, _chosen(immediate, part.of))

    def back(self, cotangents: Tensor) -> Tensor:
        """[P]: Mᵀ g, summed over the rows. cotangents: [B, n]."""
        gradient = None
        for part, value in zip(self._parts, self.values, strict=True):
            G, u, q = part.shape
            mine = _chosen(cotangents, part.units)
            if G == 1:
                pulled = mine.reshape(1, -1) @ value.view(-1, q)
            else:
                mine, value = (
                    mine.view(-1, G, u, 1).movedim(0, 3),
                    value.transpose(0, 1),
                )  # [G, u, 1, B], [G, B, …]
                pulled = torch.bmm(mine[:, 0], value[:, :, 0])
                for i in range(1, u):
                    pulled.baddbmm_(mine[:, i], value[:, :, i])
            if part.parameters is None:
                return pulled.view(-1)
            gradient = cotangents.new_zeros(self.pattern.P) if gradient is None else gradient
            gradient.index_copy_(0, part.parameters, pulled.view(-1))
        return cotangents.new_zeros(self.pattern.P) if gradient is None else gradient

    def restart(self, rows: Tensor) -> None:
        """Rows [B] of bools begin anew, from states that no parameter has an influence on."""
        for value in self.values:
            value[rows] = 0


class _Part:
    """What is chosen for a kind of block; None where it is everything, in order, and nothing has to be copied.

    carry: M = J M + D in place, where the engine has it.
    """

    def __init__(
        self, block: Blocks, pattern: Pattern, batch: int, like: Tensor, engine: Engine | None
    ) -> None:
        self.shape, self.at, (colours, rows) = block.shape, block.at, pattern.backward
        self.units, self.parameters = _choice(block.units, pattern.n), _choice(block.parameters, pattern.P)
        self.through, self.of = (
            _choice(block.through, rows * pattern.n),
            _choice(block.of, colours * pattern.P),
        )
        self.there = None if bool(block.there.all()) else block.there.reshape(-1).to(like)
        self.carry: Carrier | None = None
        if engine is not None and engine.carries(like) and self.shape[1] > 1:
            self.carry = engine.carrier(like, self.at, self.of, (batch, *self.shape, colours * pattern.P))


def _choice(places: Tensor, size: int) -> Tensor | None:
    places = places.reshape(-1)
    return None if torch.equal(places, torch.arange(size, device=places.device)) else places


def _chosen(values: Tensor, places: Tensor | None) -> Tensor:
    """[B, …], of values [B, …]."""
    return values if places is None else values.index_select(1, places)
