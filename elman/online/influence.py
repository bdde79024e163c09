"""The influence of the parameters on the state, ∂s/∂θ, stored and carried forward where it can be other than zero."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from elman.online.reach import Reach

Tensor = torch.Tensor
_SHAPES = 32  # of blocks; what is more irregular than that is one block


@dataclass(frozen=True)
class Blocks:
    """G blocks of one shape. units: [G, u], parameters: [G, q]: the parameters of a block reach its units and no other.

    at, of: for each pair that meets in a step, its place in [G, u, q], and in the immediate influence [C, P].
    """

    units: Tensor
    parameters: Tensor
    at: Tensor
    of: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        G, u = self.units.shape
        return G, u, self.parameters.shape[1]


@dataclass(frozen=True)
class Pattern:
    """Where ∂s/∂θ is stored, and how the Jacobians of a step are found in fewer passes than there are units.

    n, P: units and parameters. colours: of each unit: units of one colour share no parameter in a step, so that one
    backward pass serves them all (Curtis, Powell and Reid, 1974). rows: the same, of units that no unit reaches in
    common. units: [n, n], whether unit j reaches unit i.
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

    @property
    def numbers(self) -> int:
        """How many numbers of ∂s/∂θ are stored for each row of a batch."""
        return sum(G * u * q for G, u, q in (b.shape for b in self.blocks))

    @property
    def products(self) -> int:
        """Multiplications for each row and step."""
        return sum(G * u * u * q for G, u, q in (b.shape for b in self.blocks))


def pattern(reach: Reach, parameters: int, onward: bool, units: Tensor | None = None) -> Pattern:
    """onward: follow an influence from unit to unit, as the exact rule does; else it ends where it begins.

    units: [n, n], another Jacobian's pattern than the step's own.
    """
    through = reach.units if units is None else units
    n = len(through)
    closed = _closure(through) if onward else torch.eye(n, dtype=torch.bool)
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
    blocks = []
    for u, q in sorted(shapes):
        same = [(us, ms) for us, ms in groups if (len(us), len(ms)) == (u, q)]
        blocks.append(
            _blocks(
                torch.stack([us for us, _ in same]),
                torch.stack([ms for _, ms in same]),
                unit,
                parameter,
                of,
                n,
                parameters,
            )
        )
    to, from_ = through.nonzero().T
    return Pattern(n, parameters, tuple(blocks), colours, _colours(to, from_, n), through)


def _blocks(
    units: Tensor, parameters: Tensor, unit: Tensor, parameter: Tensor, of: Tensor, n: int, count: int
) -> Blocks:
    G, u = units.shape
    q = parameters.shape[1]
    block, place = (torch.full((count,), -1) for _ in range(2))
    block[parameters.reshape(-1)] = torch.arange(G).repeat_interleave(q)
    place[parameters.reshape(-1)] = torch.arange(q).repeat(G)
    row = torch.full((G, n), -1)
    row.scatter_(1, units, torch.arange(u).expand(G, u))
    mine = (block[parameter] >= 0).nonzero().squeeze(1)
    b = block[parameter[mine]]
    at = (b * u + row[b, unit[mine]]) * q + place[parameter[mine]]
    return Blocks(units, parameters, at, of[mine])


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

    def __init__(self, pattern: Pattern, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        self.pattern, self.batch = pattern, batch
        self.values = [torch.zeros(batch, *b.shape, dtype=dtype, device=device) for b in pattern.blocks]
        self._spare = [torch.empty_like(v) if v.shape[2] > 1 else v for v in self.values]

    def forward(self, jacobian: Tensor, immediate: Tensor) -> None:
        """M(t) = J M(t-1) + ∂s/∂θ of this step. jacobian: [B, n, n], [b, i, j] = ∂s_i/∂s_j. immediate: [B, C, P]."""
        flat = immediate.reshape(self.batch, -1)
        for number, block in enumerate(self.pattern.blocks):
            mine = jacobian[:, block.units.unsqueeze(2), block.units.unsqueeze(1)]  # [B, G, u, u]
            before, after = self.values[number], self._spare[number]
            if before.shape[2] == 1:
                before.mul_(mine)
            else:
                torch.matmul(mine, before, out=after)
                self.values[number], self._spare[number] = after, before
            self.values[number].view(self.batch, -1).index_add_(1, block.at, flat[:, block.of])

    def back(self, cotangents: Tensor) -> Tensor:
        """[P]: Mᵀ g, summed over the rows. cotangents: [B, n]."""
        gradient = cotangents.new_zeros(self.pattern.P)
        for block, value in zip(self.pattern.blocks, self.values, strict=True):
            mine, (G, u, q) = cotangents[:, block.units], block.shape
            if G == 1:
                pulled = mine.reshape(1, -1) @ value.view(-1, q)
            elif u == 1:
                pulled = (mine * value.squeeze(2)).sum(0)
            else:
                pulled = torch.einsum("bgu,bguq->gq", mine, value)
            gradient[block.parameters] = pulled
        return gradient

    def restart(self, rows: Tensor) -> None:
        """Rows [B] of bools begin anew, from states that no parameter has an influence on."""
        for value in self.values:
            value[rows] = 0
