"""plan: from a circuit to what runs once, before, in and after its loop.

`regions` finds what is sequential, `rewrite` moves work out of it, `stages` cuts the step apart by way of `builders`,
`cut` chooses what a backward pass needs from the forward pass, `cost` counts, `pace` tells the time, `explain` shows.
"""

from elman.plan.cost import Cost, cost
from elman.plan.cut import Pair, pair
from elman.plan.explain import Explanation, explain
from elman.plan.form import Loop, LoopState, Plan, Stage
from elman.plan.pace import Machine
from elman.plan.stages import plan

__all__ = [
    "Cost",
    "Explanation",
    "Loop",
    "LoopState",
    "Machine",
    "Pair",
    "Plan",
    "Stage",
    "cost",
    "explain",
    "pair",
    "plan",
]
