"""Learning while it runs: the gradient carried forward, with memory that does not grow with time.

Back-propagation through time looks back. Here the influence of the parameters on the state, ∂s(t)/∂θ, goes along with
the state (Williams and Zipser 1989):

    ∂s(t)/∂θ = J(t) ∂s(t-1)/∂θ + ∂f/∂θ,     J(t) = ∂s(t)/∂s(t-1),     dL(t)/dθ = dL(t)/ds(t) ∂s(t)/∂θ
"""

from elman.online.feedback import RandomFeedback
from elman.online.learner import Cost, Online, cost

__all__ = ["Cost", "Online", "RandomFeedback", "cost"]
