"""Files of torch.export, run in a process that cannot have elman."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

# Programs, and calls of them with the tensors that have to come out. A result that is None is none.
LOAD = """
import sys
class Nobody:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "elman":
            raise ImportError("there is no elman here")
sys.meta_path.insert(0, Nobody())
import torch
tolerance = float(sys.argv[1])
for path in sys.argv[2:]:
    program = torch.export.load(path).module()
    for given, right in torch.load(path + ".numbers"):
        found = [v for v in torch.utils._pytree.tree_leaves(program(*given)) if v is not None]
        for mine, its in zip(found, right, strict=True):
            torch.testing.assert_close(mine, its, rtol=tolerance, atol=tolerance)
assert not any(name.partition(".")[0] == "elman" for name in sys.modules)
print("ran", len(sys.argv) - 2)
"""


def noted(path: Path, calls: list[tuple[tuple[Any, ...], Any]]) -> Path:
    """A file's path, with (arguments, results) of calls beside it."""
    found = [(given, [v for v in pytree.tree_leaves(results) if v is not None]) for given, results in calls]
    torch.save(found, f"{path}.numbers")
    return path


def expect_alone(paths: list[Path], tolerance: float) -> None:
    """Run files whose calls are noted: the same numbers come out."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, str(tolerance), *map(str, paths)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == f"ran {len(paths)}\n", done.stderr
