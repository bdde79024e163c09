"""The backward of a matrix exponential, which is linear although no operation of it is.

The derivative of exp at A in the direction G is the upper right block of

    exp([[A, G],
         [0, A]])

(Higham, Functions of matrices, 2008, theorem 3.6), and autograd computes it so. Operation by operation that is not a
linear function of G, but the block is. So a G that is summed over all steps may go in, and an orthogonal matrix that
is parametrized by an exponential costs one exponential per call rather than one per step.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from elman.circuit.graphs import aten
from elman.circuit.linear import is_zero


def blocks(nodes: list[fx.Node], constant: Callable[[fx.Node], bool]) -> dict[fx.Node, fx.Node]:
    """Every node between such a G and its block, both ends of the block included -> G.

    constant: whether a node does not depend on time. Nothing is found where any other use is made of what lies between.
    """
    directions: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node.target is aten.linalg_matrix_exp.default:
            directions |= _block(node, constant)
    return directions


def _block(exponential: fx.Node, constant: Callable[[fx.Node], bool]) -> dict[fx.Node, fx.Node]:
    whole = exponential.args[0]
    upper, lower = _joined(whole, -2)
    a, g = _joined(upper, -1)
    zero, again = _joined(lower, -1)
    if (
        not isinstance(whole, fx.Node) or not isinstance(upper, fx.Node) or g is None or a is None or zero is None
        or again is None or not constant(a) or not constant(again) or not is_zero(zero)
        or list(whole.users) != [exponential] or list(upper.users) != [whole]
    ):  # fmt: skip
        return {}
    size = a.meta["val"].shape[-1]
    if any(part.meta["val"].shape != (size, size) for part in (a, g, zero, again)):
        return {}
    between = [upper, whole, exponential]
    for rows in exponential.users:
        if _slice(rows) != (0, 0, size):
            return {}
        for columns in rows.users:
            if _slice(columns) != (1, size, 2 * size):
                return {}
            between.append(columns)
        between.append(rows)
    return dict.fromkeys(between, g)


def _joined(node: object, dim: int) -> tuple[fx.Node | None, fx.Node | None]:
    """The two matrices that a node joins."""
    if isinstance(node, fx.Node) and node.target is aten.cat.default and len(node.args) == 2:
        parts, along = node.args
        if along in (dim, dim + 2) and isinstance(parts, (list, tuple)) and len(parts) == 2:
            one, other = parts
            if isinstance(one, fx.Node) and isinstance(other, fx.Node):
                return one, other
    return None, None


def _slice(node: fx.Node) -> tuple[object, ...]:
    """(dim, start, stop) of a slice with step 1."""
    if node.target is not aten.slice.Tensor or len(node.args) != 4:
        return ()
    return node.args[1:]
