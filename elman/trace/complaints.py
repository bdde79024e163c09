"""What PyTorch's exceptions mean, while a step is traced: the one place where its words are read."""

from __future__ import annotations

import enum
import traceback
from pathlib import Path

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)


class Complaint(enum.Enum):
    """What PyTorch complains of."""

    DATA = "a number or a decision is taken out of the data"
    SHAPE = "a shape depends on the data"
    OPERATOR = "an operator says nothing of its results"
    BATCH_SIZE = "a number is wanted where the batch size is not known"
    DISTRIBUTION = "torch.distributions looks at its arguments"
    GAMMA = "random numbers are made of a gamma distribution's"
    FROM = "random_(from, to) is drawn"
    DERIVATIVE = "an operation has no derivative"
    WRITE = "autograd refuses a write in place"
    ASSERTION = "an assertion of PyTorch's own fails"
    RESIZE = "autograd refuses another size in place"
    OTHER = "something else"


_WRITES = "modified by an inplace operation", "is being modified inplace", "used in an in-place operation"

_OF_GAMMA = "_standard_gamma", "_sample_dirichlet", "_dirichlet_grad"
_GAMMAS = {
    "beta",
    "chi2",
    "dirichlet",
    "fishersnedecor",
    "gamma",
    "inverse_gamma",
    "negative_binomial",
    "studentT",
}


def complaint(error: BaseException) -> Complaint:
    """What an exception means that the tracer raised."""
    # Imported here, with sympy behind it: a program that only imports elman should not wait for it.
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    if isinstance(error, (GuardOnDataDependentSymNode, DataDependentOutputException)):
        return Complaint.DISTRIBUTION if _of_distributions(error) else Complaint.DATA
    if isinstance(error, DynamicOutputShapeException):
        return Complaint.SHAPE
    text = str(error)
    if isinstance(error, UnsupportedOperatorException):
        return Complaint.GAMMA if any(name in text for name in _OF_GAMMA) else Complaint.OPERATOR
    if isinstance(error, SyntaxError) and str(error.filename).startswith("<eval_with_key>"):
        return (
            Complaint.FROM
        )  # the one operation that is called by a word of Python's, in code that PyTorch writes
    if "concrete integers" in text:
        return Complaint.BATCH_SIZE
    if "is not implemented" in text and "derivative for" in text:
        return Complaint.DERIVATIVE
    if any(words in text for words in _WRITES):
        return Complaint.WRITE
    if "INTERNAL ASSERT FAILED" in text:
        return Complaint.ASSERTION
    if "cannot resize variables" in text:
        return Complaint.RESIZE
    return Complaint.DISTRIBUTION if _of_distributions(error) else Complaint.OTHER


def _of_distributions(error: BaseException) -> bool:
    return any("distributions" in frame.filename for frame in traceback.extract_tb(error.__traceback__))


def draws_gamma(error: BaseException) -> bool:
    """Whether the distribution that looks at its arguments draws what is made of a gamma distribution's numbers."""
    frames = traceback.extract_tb(error.__traceback__)
    return any("distributions" in frame.filename and Path(frame.filename).stem in _GAMMAS for frame in frames)
