"""The example of docs/sequences.md inside Lightning's own loop, where Lightning is installed."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import elman

PAGE = Path(__file__).parent.parent / "docs" / "sequences.md"


def test_a_stream_inside_lightnings_loop(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        lightning: Any = pytest.importorskip("lightning", reason="elman does not depend on it")
    page = PAGE.read_text("utf-8")
    (code,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    (source,) = re.findall(r"(def chunks\(\):.*?)\n\n", page, re.DOTALL)
    made: dict[str, Any] = {"torch": torch, "elman": elman}
    exec(f"{source}\n{code}", made)
    epochs = 2

    def plainly() -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = made["Streaming"]()
        optimizer = model.configure_optimizers()
        torch.manual_seed(2)
        for _ in range(epochs):
            for window in elman.truncated(model.rnn, made["loader"], k1=20, k2=50):
                o = model.readout(window.outputs[window.happens])
                optimizer.zero_grad()
                (o - window.y[window.happens]).square().mean().backward()
                optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    torch.manual_seed(1)
    model = made["Streaming"]()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the loader has no workers
        trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path, **quiet)
        torch.manual_seed(2)
        trainer.fit(model, made["loader"])
    assert trainer.global_step == epochs * 6  # Lightning does not count the last one, which no batch is for
    for got, expected in zip(model.parameters(), plainly(), strict=True):
        torch.testing.assert_close(got.detach(), expected)
