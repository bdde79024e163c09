"""Streams on NumPy arrays, and the short ways of a step where a PyTorch or an array is another than usual."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from torch._C._dynamo import guards

from elman.engines.native import extension, stepping
from elman.errors import ElmanError
from elman.models import LanguageModel
from tests.recurrent.test_stream import gru

PLACE = "_torchinductor_pyobject_tensor_data_ptr"


@torch.no_grad()
def test_arrays_and_memory_for_the_output() -> None:
    rnn, x = gru(), torch.randn(4, 2, 6)
    outputs = rnn(x)[0].numpy()
    stream, other = rnn.stream(batch=2), rnn.stream(batch=2)
    for t in range(4):
        made = stream.step(x[t].numpy())
        assert isinstance(made, np.ndarray)
        np.testing.assert_array_equal(made, outputs[t])
    for t, out in enumerate([np.empty((2, 8), np.float32), torch.empty(2, 8), torch.empty(2, 16)[:, ::2]]):
        assert other.step(x[t].numpy(), out=out) is out
        np.testing.assert_array_equal(np.asarray(out), outputs[t])
    state = other.state
    both = torch.cat([x[3], torch.zeros(2, 2)], 1)  # what is read lies where the output goes
    assert torch.equal(other.step(both[:, :6], out=both), torch.from_numpy(outputs[3]))
    other.state = state
    with torch.autocast("cpu", dtype=torch.bfloat16):  # it runs in the precision of its weights
        assert other.step(x[3].bfloat16()).dtype is torch.float32
    other.state = state
    turned = x[3].T.contiguous().T
    assert torch.equal(other.step(turned), torch.from_numpy(outputs[3]))


@pytest.mark.parametrize("dtype", ["int32", "uint32", ">f4", "float64", [("a", "f4")]], ids=str)
@torch.no_grad()
def test_arrays_of_other_numbers_are_refused(dtype: Any) -> None:
    """Some have as many bytes as those that are read."""
    rnn = gru()
    stream, x = rnn.stream(), np.ones((1, 6), np.float32)
    stream.step(x)
    state, out = stream.state, np.zeros((1, 8), dtype)
    with pytest.raises(ElmanError):
        stream.step(np.ones((1, 6), dtype))
    if dtype != "float64":
        with pytest.raises(ElmanError):
            stream.step(x, out=out)
    assert torch.equal(stream.state, state)
    np.testing.assert_array_equal(stream.step(x), rnn.step(torch.from_numpy(x), state)[0])


@torch.no_grad()
def test_masks_are_not_lost_silently() -> None:
    stream, x = gru().stream(), np.ma.array(np.ones((1, 6), np.float32))
    before = stream.step(x)
    assert before.shape == (1, 8)
    state = stream.state
    x[0, 2] = np.ma.masked
    with pytest.raises(ElmanError, match="masked"):
        stream.step(x)
    assert torch.equal(stream.state, state)


@torch.no_grad()
def test_dtypes_that_are_the_same_by_another_name() -> None:
    rnn = gru()
    stream, other = rnn.stream(), rnn.stream()
    x = np.linspace(-1, 1, 6, dtype=np.float32)[None]
    named = x.astype(np.dtype("f4", metadata={"of": "somebody"}))
    for _ in range(3):
        np.testing.assert_array_equal(stream.step(x), other.step(named))
    model = LanguageModel(5, hidden=4).eval()
    one, two = model.stream(), model.stream()
    for symbol in (1, 4, 2):
        logits = one.step(np.array([symbol], np.int64))
        np.testing.assert_array_equal(logits, two.step(np.array([symbol], np.longlong)))


def elsewhere(_: Any) -> int:
    return 64


@pytest.mark.parametrize("which", ["missing", "another thing", "a liar"])
@torch.no_grad()
def test_weights_are_watched_with_any_pytorch(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch's own compiled code calls may be gone some day, or do something else."""
    liar = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(elsewhere)
    if which == "missing":
        monkeypatch.delattr(guards, PLACE)
    else:
        monkeypatch.setattr(
            guards, PLACE, ctypes.cast(liar, ctypes.c_void_p).value if which == "a liar" else print
        )
    asked: list[torch.dtype] = []

    def counted(sizes: Any, strides: Any, dtype: torch.dtype) -> torch.Tensor:
        asked.append(dtype)
        return extension.empty_by_torch(sizes, strides, dtype)

    monkeypatch.setattr(stepping, "empty_strided", counted)
    rnn, x = gru(), torch.randn(1, 6)
    stream, state = rnn.stream(), None
    for change in (None, None, "data", None, "in place", None):
        weight = rnn.cell.W
        if change == "data":
            weight.data = torch.randn_like(weight)
        elif change == "in place":
            weight.mul_(2)
        o, state = rnn.step(x, state)
        assert torch.equal(stream.step(x), o)
    assert torch.float32 in asked
