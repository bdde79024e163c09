"""What becomes of directions at the end of a stretch: A = Q R, a basis Q of the same spans, and how far they grew.

Growth is volume: the first j columns of A span |r₁ … r_j| times what those of Q do. So where one stretch begins with
the basis that another has left, log |diag R| add up, whatever kind of basis it is, and an orthonormal one, at the end,
settles the account. Elimination with rows exchanged, A = (P L) U, is such a basis for a third of the time of a QR.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor
_FLAT = 100.0  # what a basis may be, in the sense of `Factors.flat`


class Factors(NamedTuple):
    """basis: `[B, n, k]`. log: log |diag R|, `[B, k]`. flat: how much nearer to each other than at right angles its
    columns may lie, 1 for not at all: it takes of the precision what directions that part by as much take."""

    basis: Tensor
    log: Tensor
    flat: float = 1.0


def orthonormal(pushed: Tensor) -> Factors:
    """Of `[B, n, k]`, by Householder's reflections."""
    basis, r = torch.linalg.qr(pushed)
    return Factors(basis, _log(r))


def eliminated(pushed: Tensor, probes: Tensor) -> Factors | None:
    """Of `[B, n, k]`, by elimination; None where the basis P L is too flat to go on with, or no basis.

    probes: random `[k, some]` of norm 1 on average, on which L⁻¹ is tried: its norm, over √k.
    """
    packed, pivots, _ = torch.linalg.lu_factor_ex(pushed)
    k = pushed.shape[-1]
    tried = torch.linalg.solve_triangular(packed[:, :k], probes, upper=False, unitriangular=True)
    flat = float(torch.linalg.vector_norm(tried, dim=-2).max())
    if not flat <= _FLAT:
        return None
    log = _log(packed)
    rows = torch.lu_unpack(packed, pivots, unpack_data=False)[0].argmax(-1)
    lower = packed.mT.triu_(1)  # turned, as LAPACK lays matrices out, and the next stretch wants its rows
    lower.diagonal(dim1=-2, dim2=-1).fill_(1)
    return Factors(lower.gather(-1, rows.unsqueeze(-2).expand_as(lower)).mT, log, max(flat, 1.0))


def _log(triangle: Tensor) -> Tensor:
    return triangle.diagonal(dim1=-2, dim2=-1).abs().log()
