"""Training and measuring sequence models, and the run folder that keeps them.

A model here is any `torch.nn.Module` with

    model.loss(x, y, state) -> (mean nats over all symbols of the window, state)         # x, y: [T, B]
"""

from elman.training.evaluation import Evaluation, evaluate
from elman.training.files import write_atomically
from elman.training.fit import Step, detach, fit, means, pick_threads
from elman.training.run import FORMAT, Run

__all__ = [
    "FORMAT",
    "Evaluation",
    "Run",
    "Step",
    "detach",
    "evaluate",
    "fit",
    "means",
    "pick_threads",
    "write_atomically",
]
