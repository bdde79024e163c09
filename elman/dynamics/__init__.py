"""dynamics: a recurrence as a dynamical system. Jacobians, fixed points, Lyapunov exponents, how gradients flow.

`flow` opens a layer and pushes directions along it, by planned calls of its circuit and of its tangent; `fixed`,
`exponents` and `reaching` ask it; `factors` parts directions again; `pictures` is how `elman.draw` draws what is found.
"""

from elman.dynamics import pictures as _pictures  # noqa: F401  `elman.draw` knows them from here on
from elman.dynamics.exponents import Lyapunov, lyapunov
from elman.dynamics.fixed import FixedPoints, fixed_points
from elman.dynamics.flow import jacobian, trajectory
from elman.dynamics.reaching import GradientFlow, gradient_flow

__all__ = [
    "FixedPoints",
    "GradientFlow",
    "Lyapunov",
    "fixed_points",
    "gradient_flow",
    "jacobian",
    "lyapunov",
    "trajectory",
]
