"""Training and measuring sequence models, and the run folder that keeps them.

A model here is any `torch.nn.Module` with

    model.loss(x, y, state) -> (mean nats over all symbols of the window, state)         # x, y: [T, B]
"""

from elman.training.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from elman.training.evaluation import Evaluation, estimate, evaluate
from elman.training.files import write_atomically
from elman.training.fit import Diverged, Step, Training, detach, fit, pick_threads
from elman.training.keep import FolderGone, Keeper, Validation
from elman.training.lock import locked
from elman.training.loggers import Logger, TensorBoard
from elman.training.processes import Processes
from elman.training.reach import reach
from elman.training.run import CONFIG_SIZE, FORMAT, Run
from elman.training.stopwatch import Stages
from elman.training.weights import expect_room, shapes_in, weights_in

__all__ = [
    "CONFIG_SIZE",
    "FORMAT",
    "Checkpoints",
    "Diverged",
    "Evaluation",
    "FolderGone",
    "Keeper",
    "Logger",
    "Processes",
    "Run",
    "Stages",
    "Step",
    "TensorBoard",
    "Training",
    "Validation",
    "detach",
    "estimate",
    "evaluate",
    "expect_room",
    "fit",
    "load_checkpoint",
    "locked",
    "pick_threads",
    "reach",
    "save_checkpoint",
    "shapes_in",
    "weights_in",
    "write_atomically",
]
