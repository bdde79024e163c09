"""Training sequence models, and the run folder that keeps them, whatever they are trained for.

A model here is any `torch.nn.Module`; what is minimised is a function

    loss(model, batch, state) -> (mean over what the batch counts, state to carry on)

by default `model.loss(*batch.values, state)`.
"""

from elman.training.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from elman.training.files import write_atomically
from elman.training.fit import Diverged, Loss, Step, Training, detach, fit
from elman.training.lock import locked
from elman.training.loggers import Logger, TensorBoard
from elman.training.measure import Measure, Validation
from elman.training.processes import Processes
from elman.training.run import CONFIG_SIZE, FORMAT, Run
from elman.training.stopwatch import Stages
from elman.training.threads import Threads, pick_threads
from elman.training.trainer import FolderGone, Trainer, fitted
from elman.training.weights import expect_room, shapes_in, weights_in

__all__ = [
    "CONFIG_SIZE",
    "FORMAT",
    "Checkpoints",
    "Diverged",
    "FolderGone",
    "Logger",
    "Loss",
    "Measure",
    "Processes",
    "Run",
    "Stages",
    "Step",
    "TensorBoard",
    "Threads",
    "Trainer",
    "Training",
    "Validation",
    "detach",
    "expect_room",
    "fit",
    "fitted",
    "load_checkpoint",
    "locked",
    "pick_threads",
    "save_checkpoint",
    "shapes_in",
    "weights_in",
    "write_atomically",
]
