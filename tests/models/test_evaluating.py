"""Measuring a model in the middle of its training leaves no trace in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elman.models.evaluating import evaluating


def test_every_module_is_as_it_was_also_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2)).train()
    model[1].eval()  # one that somebody keeps from dropping out
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    with pytest.raises(RuntimeError), evaluating(model):
        model(torch.zeros(1, 3))
    assert [module.training for module in model.modules()] == modes
