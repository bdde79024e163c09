"""Exported files, run as those who have them run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch.utils import _pytree as pytree

from tests.cases import Case

Tensor = torch.Tensor
onnxruntime.set_default_logger_severity(3)  # it warns of every input that may be left out


def session(path: Path) -> onnxruntime.InferenceSession:
    """A graph on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def names(graph: onnxruntime.InferenceSession) -> list[str]:
    """Of its inputs, those that may be left out last."""
    return [one.name for one in (*graph.get_inputs(), *graph.get_overridable_initializers())]


def run(graph: onnxruntime.InferenceSession, *given: Any) -> list[np.ndarray]:
    """Its results for arguments in order, nested as they are; further inputs are left out."""
    leaves = tensors(given)
    return graph.run(None, {name: leaf.numpy() for name, leaf in zip(names(graph), leaves, strict=False)})


def tensors(value: Any) -> list[Tensor]:
    """Those of nested values, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def close(
    found: Sequence[Any], right: Sequence[Tensor], what: object = "", exact: Sequence[Tensor] | None = None
) -> None:
    """float32 to 1e-5; or, where float64 is given, to eight times the error that elman's own float32 has against it."""
    assert len(found) == len(right)
    for mine, its, truth in zip(found, right, exact or right, strict=True):
        assert tuple(mine.shape) == tuple(its.shape), what
        if its.numel() == 0:
            continue
        one, other = torch.as_tensor(np.asarray(mine)).double(), truth.double()
        scale = max(1.0, float(other.abs().max()))
        error, own = float((one - other).abs().max()), float((its.double() - other).abs().max())
        assert error <= max(1e-5 * scale, 8 * own), (
            f"{what}: off by {error:.1e}, elman's float32 by {own:.1e}"
        )


def drawn(case: Case, T: int, B: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """(x, state, context) of a case, float32."""
    generator = torch.Generator().manual_seed(seed)
    kinds = case.x(T, B, generator, torch.float32), case.state(B, generator, torch.float32)
    return *kinds, case.context(B, generator, torch.float32)


def double(value: Any) -> Any:
    """The same in float64."""
    return pytree.tree_map(
        lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, value
    )
