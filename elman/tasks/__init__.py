"""The tasks, by name: what a command knows of each before anything of it is imported.

A further task is a file beside these, and a line in `TASKS`: docs/write_a_task.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from elman.errors import DataError

if TYPE_CHECKING:
    from elman.tasks.task import Task
    from elman.training import Run

# name -> (where its class `Task` is, what it is in a line)
TASKS: dict[str, tuple[str, str]] = {
    "lm": (
        "elman.tasks.lm:Language",
        "A language model: predict the next symbol of a text from all before it.",
    ),
    "tag": ("elman.tasks.tag:Tag", "A tag for each word of a sentence: parts of speech, names."),
    "autoencode": (
        "elman.tasks.autoencode:Autoencode",
        "An auto-encoder: a line becomes a vector, and the vector the line again.",
    ),
    "classify": ("elman.tasks.classify:Classify", "A classifier: one label for a sequence."),
    "forecast": (
        "elman.tasks.forecast:Forecast",
        "A forecaster: what comes next in series, as a distribution.",
    ),
}


def task_of(name: str) -> type[Task]:
    """The task of that name, imported now."""
    module, _, cls = TASKS[name][0].partition(":")
    return getattr(importlib.import_module(module), cls)


def task_in(run: Run) -> type[Task]:
    """The task of a run. Raises DataError for one that this elman does not know."""
    name = run.config.get("task", "lm")  # the first runs said nothing else
    if name not in TASKS:
        raise DataError(
            what="the run is of a task that this elman does not know", where=f"{run.folder / 'config.json'}, task",
            got=name[:100], expected=" or ".join(TASKS), mend="use the elman that wrote it",
        )  # fmt: skip
    return task_of(name)
