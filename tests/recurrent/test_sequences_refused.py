"""Arguments of a call over sequences that do not fit, and what such calls cannot do: refused, and said where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import elman
from elman.errors import InputError, InputTypeError, NotSupported
from tests import zoo
from tests.recurrent.small import layer

Tensor = torch.Tensor
YES = torch.ones(4, 3, dtype=torch.bool)
X, H = torch.zeros(4, 3, 5, dtype=torch.float64), torch.zeros(3, 7, dtype=torch.float64)
PACKED = pack_padded_sequence(X, torch.tensor([4, 3, 1]))

BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "x of one dimension": ({"x": torch.zeros(4)}, InputError, "where: x"),
    "x too wide": ({"x": torch.zeros(4, 3, 6, dtype=torch.float64)}, elman.ElmanError, "GRU"),
    "x in another precision": ({"x": X.float()}, elman.ElmanError, "GRU"),
    "x elsewhere": ({"x": X.to("meta")}, InputError, "where: x"),
    "x no tensor": ({"x": [1.0, object()]}, InputTypeError, r"where: x\[1\]"),
    "a state elsewhere": ({"state": H.to("meta")}, InputError, "where: state"),
    "a state of another batch": ({"state": H[:2]}, InputError, "where: state"),
    "a state without a batch": ({"state": H[0, 0]}, InputError, "where: state"),
    "a state of another width": ({"state": H[:, :6]}, elman.ElmanError, "GRU|state"),
    "a state of another structure": ({"state": (H, H)}, elman.ElmanError, "GRU|state"),
    "a cut state of another structure": ({"state": (H, H), "reset": YES}, InputTypeError, "where: state"),
    "a cut state of another width": ({"state": H[:, :6], "reset": YES}, InputError, "where: state"),
    "a cut state in another precision": ({"state": H.float(), "reset": YES}, InputError, "float64"),
    "lengths of floats": ({"lengths": torch.tensor([1.0, 2, 3])}, InputTypeError, "where: lengths="),
    "lengths of bools": ({"lengths": YES[0]}, InputTypeError, "where: lengths="),
    "too many lengths": ({"lengths": torch.tensor([1, 2, 3, 4])}, InputError, r"expected: \[3\]"),
    "a single length": ({"lengths": torch.tensor(3)}, InputError, r"expected: \[3\]"),
    "lengths too long": ({"lengths": torch.tensor([1, 5, 3])}, InputError, r"at \[1\]\n  got: 5\n  expected: 0 … 4"),
    "a negative length": ({"lengths": torch.tensor([-1, 2, 3])}, InputError, r"at \[0\]\n  got: -1"),
    "a mask of numbers": ({"mask": YES.long()}, InputTypeError, r"mask.bool\(\)"),
    "a mask of the wrong shape": ({"mask": YES[:2]}, InputError, r"expected: \[4, 3\]"),
    "a mask lying down": ({"mask": YES.t()}, InputError, "looks transposed"),
    "a mask that is none": ({"mask": [True]}, InputTypeError, "got: list"),
    "resets of numbers": ({"reset": YES.double()}, InputTypeError, "where: reset="),
    "resets of the wrong rank": ({"reset": YES[0]}, InputError, "where: reset="),
    "a weight without a teacher": ({"teacher_weight": YES}, InputError, "where: teacher_weight="),
    "a weight of integers": ({"teacher": X[..., :1].expand(4, 3, 7), "teacher_weight": YES.long()}, InputTypeError,
                             "where: teacher_weight="),
    "a teacher elsewhere": ({"teacher": torch.zeros(4, 3, 7, dtype=torch.float64, device="meta")}, InputError,
                            "on meta"),
    "a weight that is a number": ({"teacher": X[..., :1].expand(4, 3, 7), "teacher_weight": 0.5}, InputTypeError,
                                  "where: teacher_weight="),
    "a weight that is a list": ({"teacher": X[..., :1].expand(4, 3, 7), "teacher_weight": [[True] * 3] * 4},
                                InputTypeError, "where: teacher_weight="),
    "a weight of the wrong shape": ({"teacher": X[..., :1].expand(4, 3, 7), "teacher_weight": YES[0]}, InputError,
                                    r"expected: \[4, 3\]"),
    "a weight beyond one": ({"teacher": X[..., :1].expand(4, 3, 7), "teacher_weight": 50 * YES.double()}, InputError,
                            "got: numbers in 50 … 50"),
    "a weight that is no number": ({"teacher": X[..., :1].expand(4, 3, 7), "teacher_weight": torch.nan * YES.float()},
                                   InputError, "got: numbers in nan"),
    "a sparse x": ({"x": X.to_sparse()}, NotSupported, "where: x\n  got: a tensor that is torch.sparse_coo"),
    "a state of oneDNN's": ({"state": H.float().to_mkldnn()}, NotSupported, "where: state"),
    "an x of numbers": ({"x": X.tolist()}, InputTypeError, "where: x"),
    "a context of another batch": ({"context": H[:2]}, InputError, "where: context"),
    "steps twice": ({"steps": 4}, InputError, "where: steps="),
    "a packed sequence with lengths": ({"x": PACKED, "lengths": [1, 1, 1]}, InputError, "where: lengths="),
    "a packed sequence with resets": ({"x": PACKED, "reset": YES}, InputError, "where: reset="),
    "a packed sequence with steps": ({"x": PACKED, "steps": 4}, InputError, "where: steps="),
    "a packed sequence and another state": ({"x": PACKED, "state": H[:2]}, InputError, "where: state"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_refused(what: str) -> None:
    given, kind, words = BAD[what]
    rnn = layer()
    for warm in (False, True):
        if warm:  # a call that is known may take a shorter way
            for _ in range(2):
                rnn(X, H)
        with pytest.raises(kind, match=words) as caught:
            rnn(**({"x": X, "state": H} | given))
        assert isinstance(caught.value, elman.ElmanError)


class SharedNoise(zoo.Base):
    """Draws the same numbers for all rows."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h) + torch.rand(self.hidden_size))


def test_what_belongs_to_all_rows_at_once_is_refused() -> None:
    x = torch.randn(4, 3, 5)
    rnn = elman.Recurrent(SharedNoise(5, 6))
    rnn(x, lengths=torch.tensor([1, 2, 3]))
    with pytest.raises(NotSupported, match="for all rows at once"):
        rnn(x, reset=YES)
