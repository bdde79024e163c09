"""A module as an ONNX graph: ONNX Runtime runs it, in any of its languages.

The program of torch.export is rewritten operation by operation: `operators` is the table, `pointwise`, `functions`,
`addressing` and `features` hold its rules, `graph` walks through a program, `nodes` writes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from elman.data.files import draft_prefix
from elman.errors import NotSupported
from elman.export.options import option
from elman.export.program import exported

OPSET, IR = 18, 8  # ONNX Runtime 1.14 and later
LARGE = 2**30  # bytes of weights; a file of protobuf ends at 2 GiB


@dataclass(frozen=True)
class Options:
    """Of `.onnx`."""

    lengths: bool = option(False, "Take lengths [B] as well.")
    external: bool = option(
        False, "Keep the weights in a file beside, as it is done with more than 1 GiB of them."
    )


def write(module: torch.nn.Module, path: Path, options: Options) -> list[Path]:
    """Write the graph, and where they are many the weights beside it; return the paths.

    Its inputs are the arguments' tensors under the user's words: x, lengths if wanted, context if there is one, then
    the state, which may be left out where the cell says what it starts from. Its outputs are outputs, then final
    states.
    """
    try:
        import onnx

        from elman.export.onnx.model import model_of
    except ImportError as error:
        raise NotSupported(
            what="writing ONNX needs the package onnx", where=path, mend='pip install "elman[onnx]"'
        ) from error
    model = model_of(exported(module, lengths=options.lengths, state=True), OPSET, IR)
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    external = options.external or size > LARGE
    beside = path.with_name(f"{path.name}.data")
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=draft_prefix(path)))
    try:
        draft = folder / path.name
        onnx.save_model(
            model, str(draft), save_as_external_data=external, location=beside.name, size_threshold=1024
        )
        onnx.checker.check_model(str(draft), full_check=True)
        written = [beside, path] if external and (folder / beside.name).exists() else [path]
        for one in written:
            with (folder / one.name).open("rb") as file:
                os.fsync(file.fileno())
            os.replace(folder / one.name, one)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return written[::-1]
