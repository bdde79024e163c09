"""What is said of probabilities of labels: calibration, and figures of each label."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

_BINS = 15
_MATRIX = 300  # labels of a confusion matrix
_GOLDEN = (math.sqrt(5) - 1) / 2


def calibrated(logits: Tensor, y: Tensor) -> tuple[float, float]:
    """(the T > 0 at which softmax(logits / T) gives labels y the highest likelihood, nats per example there).

    Of few examples, all of which are right, that would be T = 0. So each label is taken for as sure as N examples can
    make it, (N + 1) / (N + 2), and the rest is shared by the others, which changes nothing where there are many.

    logits: `[N, K]`. y: int64 `[N]`. T lies in 0.05 … 20.
    Source: Guo et al., On calibration of modern neural networks, 2017; Platt, Probabilistic outputs for support vector
    machines, 1999 (the targets).
    """
    logits, rest = logits.double(), 1 / (len(y) + 2)
    # torch spreads its share over all labels, the right one included.
    smoothing = rest * logits.shape[1] / max(logits.shape[1] - 1, 1)

    def nats(log: float) -> float:
        return float(cross_entropy(logits / math.exp(log), y, label_smoothing=min(smoothing, 1.0)))

    low, high = math.log(0.05), math.log(20)  # convex in 1 / T: one valley
    for _ in range(40):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if nats(left) < nats(right) else (left, high)
    return math.exp((low + high) / 2), nats((low + high) / 2)


def calibration_error(probabilities: Tensor, y: Tensor, bins: int = _BINS) -> float:
    """Expected calibration error: the mean over bins of |share that is right - mean probability|, by examples.

    probabilities: `[N, K]`. Bins are of the likeliest label's probability, equally wide.
    """
    sure, predicted = probabilities.double().max(1)
    right = (predicted == y).double()
    place = (sure * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - sure)
    return float(gaps.abs().sum() / max(len(y), 1))


def confusion(predicted: Tensor, y: Tensor, labels: int) -> Tensor:
    """int64 [K, K]: how many examples of a label (row) were given which (column)."""
    return torch.bincount(y * labels + predicted, minlength=labels * labels).view(labels, labels)


def by_label(right: Tensor, there: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, recall and F1 of each label, float64 [K], 0 where there is none.

    right: how many of its examples were given it. there: how many are of it. given: how many were given it. [K] each.
    """
    right, there, given = right.double(), there.double(), given.double()
    return (
        right / given.clamp(min=1),
        right / there.clamp(min=1),
        2 * right / (there + given).clamp(min=1),
    )


def figures(probabilities: Tensor, y: Tensor) -> dict[str, Any]:
    """accuracy, balanced accuracy (mean recall of the labels there are), nats, calibration error, confusion matrix (of
    at most 300 labels); for each label precision, recall, f1 and examples: lists of K, as JSON values."""
    predicted, labels = probabilities.argmax(1), probabilities.shape[1]
    right, there, given = (
        torch.bincount(some, minlength=labels) for some in (y[predicted == y], y, predicted)
    )
    precision, recall, f1 = by_label(right, there, given)
    chosen = probabilities.double()[torch.arange(len(y)), y]
    return {
        "accuracy": float(right.sum() / max(len(y), 1)),
        "balanced": float(recall[there > 0].mean()),
        "nats": float(-chosen.clamp(min=1e-30).log().mean()),
        "calibration": calibration_error(probabilities, y),
        "confusion": confusion(predicted, y, labels).tolist() if labels <= _MATRIX else [],
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "examples": there.tolist(),
    }
