"""The bar that `fit` draws from Python."""

from __future__ import annotations

from typing import Any

import pytest

from elman.models import (
    Autoencoder,
    Classifier,
    Forecaster,
    Tagger,
    autoencoder,
    classifier,
    forecaster,
    frame_forecaster,
    tagger,
)
from elman.training import Measure, Step, Validation
from elman.training.progress import Bar

STEPS = [Step(k + 1, (k + 1) / 4, 2.0 - k, 0.01, 1.0, k, 30.0 * (k + 1)) for k in range(4)]
LOOK = Validation(2, 60.0, Measure(0.936, "accuracy", "%", lower_is_better=False), True)


def drawn(shown: bool | None, capsys: pytest.CaptureFixture[str]) -> str:
    with Bar(shown) as bar:
        for event in (*STEPS[:2], LOOK, *STEPS[2:]):
            bar.show(event)
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_a_bar_on_a_terminal_a_line_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drawn(None, capsys) == drawn(False, capsys) == ""
    (line,) = drawn(True, capsys).splitlines()
    assert line.replace(" ", "") == "━" * 20 + "50%1:00leftstep2loss1.0000accuracy93.6%"
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich takes anything for a terminal
    assert drawn(False, capsys) == ""
    for shown in (None, True):
        said = drawn(shown, capsys)
        assert all(f"step {k}" in said for k in range(1, 5))
        assert "0:30" in said


class Reached(Exception):
    pass


@pytest.mark.parametrize("progress", [None, False, True])
def test_all_models_hand_it_on(progress: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fitted(*_: Any, progress: bool | None = False, **__: Any) -> None:
        raise Reached(progress)

    for module in (autoencoder, classifier, forecaster, frame_forecaster, tagger):
        monkeypatch.setattr(module, "fitted", fitted)
    words, how = ["ab", "ba", "aab"] * 10, {"hidden": 4, "layers": 1}
    waves: Any = [float(k % 5) for k in range(60)]
    frames: Any = [[[0, 1], [1, 0], [0, 1]]] * 20
    fits = (
        lambda: Autoencoder(4).fit(words, progress=progress),
        lambda: Tagger(**how).fit([["a", "b"]] * 20, [["A", "B"]] * 20, progress=progress),
        lambda: Classifier(**how, progress=progress).fit(words, [len(word) for word in words]),
        lambda: Forecaster(3, **how, season=5, progress=progress).fit(waves),
        lambda: Forecaster(3, **how, distribution="bernoulli", progress=progress).fit(frames),
        lambda: Forecaster(3, **how, season=5, progress=progress).backtest(waves),
    )
    for fit in fits:
        with pytest.raises(Reached) as found:
            fit()
        assert found.value.args == (progress,)
