"""A module as torch.export's file: PyTorch runs it, without elman."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from elman.data.files import writing
from elman.export.options import option
from elman.export.program import exported


@dataclass(frozen=True)
class Options:
    """Of `.pt2`."""

    lengths: bool = option(False, "Take lengths [B] as well.")
    state: bool = option(
        False, "Take the state to start from as well; without it, a call starts where the cell says."
    )


def write(module: torch.nn.Module, path: Path, options: Options) -> list[Path]:
    """Write it and return the paths.

    program = torch.export.load("rnn.pt2").module()
    output, final_state = program(x)                # or program(x, lengths, context, state), those that there are

    It computes no gradients, and its parameters want none.
    """
    program = exported(module, lengths=options.lengths, state=options.state).program
    for name, tensor in [*program.state_dict.items()]:
        if isinstance(tensor, torch.nn.Parameter):  # the module keeps its own
            program.state_dict[name] = torch.nn.Parameter(tensor.detach(), requires_grad=False)
    with writing(path) as file:
        torch.export.save(program, file)
    return [path]
