"""Fixed and slow points: where a layer that is shown one input for ever comes to rest, or nearly."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from elman.circuit.structure import fill, flatten
from elman.dynamics.flow import Flow, jacobian_of, stepped, trajectory
from elman.errors import ElmanError, InputError

Tensor = torch.Tensor
_RATES = 10.0 ** torch.arange(
    -4, 1, dtype=torch.float64
)  # of damping, tried together as rows, around the last one
_NEAR = 0.1  # of a step, at which its bend is measured
_VAGUE = 30.0  # how much further apart slow points may lie and be one: a valley has no sharp end
_ROOM = 2**24  # numbers of the matrices that are there at a time


@dataclass(frozen=True, eq=False)
class FixedPoints:
    """Points, fixed ones first, each with the least residual of those that were merged.

    points: `[P, n]`, flattened states. residual: `[P]`, ‖F(h, x) - h‖. eigenvalues: `[P, n]`, complex, of ∂F/∂h there,
    from the largest in size. modes: `[P, n]`, the direction of the largest, or the real part of it. stable: `[P]`,
    whether all of them lie inside the unit circle, by more than rounding. slow: `[P]`, whether the residual is small
    and not zero. count: `[P]`, how many starts came there. lost: how many came to no point.
    """

    points: Tensor
    residual: Tensor
    eigenvalues: Tensor
    modes: Tensor
    stable: Tensor
    slow: Tensor
    count: Tensor
    lost: int

    def __len__(self) -> int:
        return len(self.points)

    @property
    def unstable(self) -> Tensor:
        """`[P]`, in how many directions neighbours move away."""
        return (self.eigenvalues.abs() > 1 + _rounding(self.eigenvalues)).sum(-1)

    def kinds(self) -> list[str]:
        """Of each point: "stable", "saddle", "unstable" in every direction, "neutral" where neighbours move away in
        none and do not come back in some; with "slow" before it where it is one."""
        n = self.points.shape[1]
        words = [
            "stable" if stable else "neutral" if not ways else "unstable" if ways == n else "saddle"
            for stable, ways in zip(self.stable.tolist(), self.unstable.tolist(), strict=True)
        ]
        return [f"slow {word}" if slow else word for word, slow in zip(words, self.slow, strict=True)]

    def __str__(self) -> str:
        lines = [
            f"{'':>4}  {'kind':14}{'residual':>9}{'largest |eigenvalue|':>22}{'unstable':>10}{'starts':>8}"
        ]
        rows = zip(
            self.kinds(), self.residual.tolist(), self.eigenvalues[:, 0].abs().tolist(), self.unstable.tolist(),
            self.count.tolist(), strict=True,
        )  # fmt: skip
        for i, (kind, residual, largest, unstable, count) in enumerate(rows):
            lines.append(f"{i:>4}  {kind:14}{residual:>9.1e}{largest:>22.4f}{unstable:>10}{count:>8}")
        return "\n".join([*lines, f"{self.lost} starts came to no point"] if self.lost else lines)


@torch.no_grad()
def fixed_points(
    rnn: Any, x: Any = None, starts: Any = None, *, count: int | None = None, noise: float = 0.0,
    tolerance: float = 1e-8, slow: float = 1e-2, merge: float = 1e-3, iterations: int = 200,
    dtype: torch.dtype | None = torch.float64, context: Any = None,
) -> FixedPoints:  # fmt: skip
    """Points where F(h, x) = h, and slow points, local minima of ‖F(h, x) - h‖ (Sussillo and Barak 2013).

    Newton's method with Levenberg and Marquardt's damping, all starts at once as rows of one call: a step d solves
    (AᵀA + μ) d = -Aᵀ(F(h) - h), A = ∂F/∂h - 1, where μ falls with the residual, and rises where that would not fall.

    rnn: a `Recurrent`, or a `Stack` that reads forward. x: the input that is held, `[…]` without time or rows, nested
        or not; None for an autonomous cell. context: likewise.
    starts: states in the cell's structure, `[…, N, *width]`: leading dimensions are all rows, so that the states of a
        `trajectory` `[T, B, …]` will do. count: how many of them are taken, at random (torch's generator) and more
        than once if they are fewer; by default all. noise: the standard deviation of what is added to each.
    tolerance: the residual below which a point is fixed. slow: that below which one is a slow point: a minimum, or as
        far as so many iterations came.
    merge: points closer than that, in units of the mean length of the starts, are one; 30 times as far where one of
        them is slow.
    iterations: of the search, at most. dtype: of a copy of the layer to search with; None for the layer's own.

    Raises InputError for starts that do not fit, and what `jacobian` raises.
    """
    flow, h = _opened(rnn, x, starts, count, noise, dtype, context)
    scale = float(h.square().sum(-1).mean().sqrt())
    rows = max(1, _ROOM // (len(_RATES) * flow.n**2))
    parts = [_searched(flow, part, tolerance, iterations) for part in h.split(rows)]
    h, residual = (torch.cat(part) for part in zip(*parts, strict=True))
    fixed = residual < tolerance
    is_slow = ~fixed & (residual < slow)
    kept = fixed | is_slow
    h, residual, is_slow = h[kept], residual[kept], is_slow[kept]
    h, residual, is_slow, counts = _merged(h, residual, is_slow, merge * scale)
    j = jacobian_of(flow.repeated(len(h)), h) if len(h) else h.new_zeros(0, flow.n, flow.n)
    values, vectors = torch.linalg.eig(j)
    order = values.abs().argsort(dim=-1, descending=True)
    values, vectors = values.gather(-1, order), vectors.gather(-1, order.unsqueeze(1).expand_as(vectors))
    stable = (values.abs() < 1 - _rounding(values)).all(-1)
    return FixedPoints(
        h, residual, values, vectors[..., :1].real.squeeze(-1), stable, is_slow, counts, int((~kept).sum())
    )


def _rounding(eigenvalues: Tensor) -> float:
    """How far from the unit circle ones on it may be found."""
    return 8 * torch.finfo(eigenvalues.dtype).eps * max(eigenvalues.shape[-1], 1)


def _opened(
    rnn: Any, x: Any, starts: Any, count: int | None, noise: float, dtype: torch.dtype | None, context: Any
) -> tuple[Flow, Tensor]:
    """The flow of one row of one step, and the starts as `[N, n]`."""
    tensors, structure = flatten(starts, "starts")
    if not tensors:
        raise InputError(
            what="there is nowhere to start from", where="fixed_points(starts=)",
            expected="states [N, …] in the cell's structure", mend="elman.dynamics.trajectory(rnn, x) gives some",
        )  # fmt: skip

    def row(value: Tensor) -> Tensor:
        return value.unsqueeze(0)

    held = None if x is None else pytree.tree_map(lambda v: row(row(v)), x)
    lead = _leading(rnn, held, tensors, structure)
    given = None if context is None else pytree.tree_map(row, context)
    first = fill(structure, [t.flatten(0, lead - 1)[:1] for t in tensors])

    def of(held: Any) -> Flow:
        return Flow.of(rnn, held, first, steps=1, context=given, dtype=dtype, where="fixed_points")

    try:
        flow = of(held)
    except ElmanError as error:
        sizes = [] if x is None else [list(leaf.shape) for leaf in flatten(x, "x")[0]]
        one = False
        with contextlib.suppress(ElmanError):
            one = bool(sizes and all(sizes) and of(pytree.tree_map(lambda v: v[:, :, 0], held)))
        if one:
            raise InputError(
                what="x is held for all starts, so it has neither time nor rows", where="fixed_points(x=)",
                got=" and ".join(map(str, sizes)), mend="give one row of one step: x[0]",
            ) from error  # fmt: skip
        raise
    real = [t for t in tensors if t.is_floating_point()]
    h = torch.cat([t.flatten(0, lead - 1).flatten(1) for t in real], 1).detach().to(flow.start)
    if count is not None:
        h = h[torch.randint(len(h), (count,))] if count > len(h) else h[torch.randperm(len(h))[:count]]
    return flow, h + noise * torch.randn_like(h)


def _leading(rnn: Any, held: Any, tensors: list[Tensor], structure: Any) -> int:
    """How many dimensions of the starts are rows: those before the widths of the state that the cell starts from."""
    lead = tensors[0].dim() - 1
    if held is not None:
        with contextlib.suppress(
            ElmanError
        ):  # it does not say where it starts: the last dimension is the width
            own = trajectory(rnn, held)
            lead = tensors[0].dim() - flatten(own, "state")[0][0].dim() + 2
    if lead < 1:
        raise InputError(
            what="starts have no rows", where="fixed_points(starts=)", got=list(tensors[0].shape),
            expected="states [N, …] in the cell's structure",
        )  # fmt: skip
    return lead


def _searched(flow: Flow, h: Tensor, tolerance: float, iterations: int) -> tuple[Tensor, Tensor]:
    """(where each start came, its residual)."""
    h = h.clone()
    gap = stepped(flow.repeated(len(h)), h) - h
    residual = gap.norm(dim=-1)
    damping = torch.full_like(residual, 1e-2)
    settled = torch.zeros_like(residual, dtype=torch.bool)
    eye = torch.eye(flow.n, dtype=h.dtype, device=h.device)
    rates = _RATES.to(h)
    for _ in range(iterations):
        going = (~settled & (residual > 1e-3 * tolerance)).nonzero()[:, 0]
        if not len(going):
            break
        here, off = h[going], gap[going]
        a = jacobian_of(flow.repeated(len(going)), here) - eye
        gram, slope = a.mT @ a, (a.mT @ off.unsqueeze(-1)).squeeze(-1)
        # Every row tries several dampings at once, which are more rows.
        tried = damping[going, None] * rates * 10
        lu = torch.linalg.lu_factor(gram.unsqueeze(1) + tried[..., None, None] * eye)
        steps = torch.linalg.lu_solve(*lu, -slope[:, None, :, None].expand(-1, len(rates), -1, 1)).squeeze(-1)
        # How the gap bends along each step: second order follows a curved valley, along which slow points lie.
        bent = (_gaps(flow, here.unsqueeze(1) + _NEAR * steps) - off.unsqueeze(1)) / _NEAR - steps @ a.mT
        turn = torch.linalg.lu_solve(*lu, -(a.mT.unsqueeze(1) @ (bent / _NEAR).unsqueeze(-1))).squeeze(-1)
        small = turn.norm(dim=-1) < 0.75 * steps.norm(dim=-1)
        there = here.unsqueeze(1) + steps + torch.where(small.unsqueeze(-1), turn, 0)
        gaps = _gaps(flow, there)
        norms = gaps.norm(dim=-1).nan_to_num(nan=torch.inf)
        best = norms.argmin(-1)
        rows = torch.arange(len(going), device=h.device)
        better = norms[rows, best] < residual[going]
        # A minimum: no step makes it smaller any more, by more than a rounding of what is left.
        gain = 1 - norms[rows, best] / residual[going]
        damping[going] = torch.where(better, tried[rows, best], tried[:, -1] * 10).clamp(1e-15, 1e8)
        flat = slope.norm(dim=-1) <= 1e-5 * residual[going]
        settled[going] = flat | (better & (gain < 1e-9)) | (damping[going] >= 1e8)
        moved = going[better]
        h[moved], gap[moved] = there[rows, best][better], gaps[rows, best][better]
        residual[moved] = norms[rows, best][better]
    return h, residual


def _gaps(flow: Flow, states: Tensor) -> Tensor:
    """F(h) - h of states `[N, R, n]`."""
    rows = states.flatten(0, 1)
    return (stepped(flow.repeated(len(rows)), rows) - rows).view_as(states)


def _merged(h: Tensor, residual: Tensor, slow: Tensor, merge: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One of all that lie together: that with the least residual."""
    if not len(h):
        return h, residual, slow, residual.long()
    order = (residual + slow).argsort()
    h, residual, slow = h[order], residual[order], slow[order]
    near = torch.cdist(h, h) <= merge * torch.where(slow[:, None] | slow, _VAGUE, 1.0)
    owner = torch.full((len(h),), -1, device=h.device)
    for i in range(len(h)):
        if owner[i] < 0:
            owner[near[i] & (owner < 0)] = i
    kept, counts = owner.unique(return_counts=True)
    return h[kept], residual[kept], slow[kept], counts
