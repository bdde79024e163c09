"""Forecasting vectors of 0 and 1, such as piano rolls: the estimator, its command, and chorales."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elman.data.rolls import read_rolls
from elman.errors import DataError, InputError
from elman.models import Forecaster
from elman.models.frame_network import guesses
from tests.pairwise import with_more
from tests.strangers import elman
from tests.typed import expect_answers

MUSIC = Path(__file__).resolve().parents[2] / "shared" / "data" / "music" / "JSB_Chorales.mat"


def songs(count: int = 40, seed: int = 0) -> list[np.ndarray]:
    """Two notes that go up together, one of them now and then left out, on six keys."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        t, start = np.arange(rng.integers(12, 30)), rng.integers(6)
        one = np.zeros((len(t), 6), np.uint8)
        one[t, (t + start) % 6] = 1
        one[t, (t + start + 2) % 6] = rng.random(len(t)) < 0.8
        found.append(one)
    return found


FRAMES: dict[str, Any] = {
    "distribution": "bernoulli",
    "hidden": 16,
    "layers": 1,
    "dropout": 0.0,
    "steps": 150,
    "lr": 0.02,
}


@pytest.fixture(scope="module")
def singer() -> Forecaster:
    return Forecaster(4, **FRAMES).fit(songs())


def test_vectors_are_forecast_key_by_key(singer: Forecaster, tmp_path: Path) -> None:
    test = songs(20, 1)
    # The second note is a coin that falls on one side in 80 %; the rest is known from the second frame on.
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert entropy < -singer.score(test) < entropy + 0.25
    said = singer.predict(4, test[0])
    assert said.shape == (4, 6)
    key = int(test[0][-1].argmax()) if test[0][-1].sum() == 1 else int(np.flatnonzero(test[0][-2])[0])
    assert said.max(1).min() > 0.8
    assert 0 <= key < 6
    drawn = singer.paths(4, test[0], count=400)[""]
    assert set(np.unique(drawn)) == {0.0, 1.0}
    state = None
    for row in test[0]:
        likely, state = singer.step(row, state)
    assert drawn[:, 0].mean(0) == pytest.approx(likely, abs=0.08)
    singer.save_pretrained(tmp_path / "kept")
    again = Forecaster.from_pretrained(tmp_path / "kept")
    assert np.array_equal(again.predict(3), singer.predict(3))
    assert again.score(test) == pytest.approx(singer.score(test))
    with pytest.raises(InputError, match="measured by score"):
        again.evaluate(test)
    (tmp_path / "kept" / "series.json").write_text('{"frames": {"channels": 6, "tail": [[7]]}}')
    with pytest.raises(DataError):
        Forecaster.from_pretrained(tmp_path / "kept")


def test_nats_of_a_frame_are_those_of_torch_and_padding_changes_nothing(singer: Forecaster) -> None:
    frames = singer._frames
    assert frames is not None
    x = [torch.from_numpy(one).float() for one in songs(5, 2)]
    total, count = 0.0, 0
    for one in x:
        logits = frames.network(one[:-1, None])[0][:, 0]
        total -= float(torch.distributions.Bernoulli(logits=logits.detach()).log_prob(one[1:]).sum())
        count += len(one) - 1
    assert -singer.score([one.numpy() for one in x]) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (np.zeros((5, 3)), "several sequences"),
        ([], "no sequences"),
        ([[[0, 1], [1, 2]]], "no sequence of vectors"),
        ([[[0, 1]]], "no sequence of vectors"),
        ([[[0, 1], [1, 0]], [[0], [1]]], "different numbers"),
        (["abc"], "no sequence of vectors"),
        ([[[0], [10**400]]], "no sequence of vectors"),
    ],
)
def test_what_are_no_vectors_of_0_and_1_is_refused(given: Any, what: str) -> None:
    with pytest.raises(InputError, match=what):
        Forecaster(4, **FRAMES).fit(given)


@pytest.mark.parametrize("kind", with_more([".mat"], [".jsonl"]))
def test_a_run_of_vectors(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, every = tmp_path / f"songs{kind}", songs(40)
    if kind == ".mat":
        io = pytest.importorskip("scipy.io", reason="it reads .mat")
        cells = {}
        for name, part in (("traindata", every[:30]), ("validdata", every[30:35]), ("testdata", every[35:])):
            cells[name] = np.empty((1, len(part)), object)
            cells[name][0, :] = part
        io.savemat(path, cells)
    else:
        path.write_text("".join(json.dumps(one.tolist()) + "\n" for one in every))
    how = ("--hidden", "16", "--layers", "1", "--steps", "10", "--lr", "0.02", "--horizon", "3", "--quiet")
    said = elman("train", "forecast", path, *how, "--out", tmp_path / "run")
    assert said.status == 0, said.err
    assert "sequences of 6 channels" in said.out
    measured = elman("evaluate", tmp_path / "run")
    assert measured.out.startswith("negative log-likelihood ")
    assert " nats per frame, of " in measured.out
    assert "%" not in measured.out + measured.err
    assert "what happened (above)" in (tmp_path / "run" / "report.html").read_text()
    lines = elman("predict", tmp_path / "run").out.splitlines()
    assert lines[0] == "unique_id,ds,0,1,2,3,4,5"
    assert len(lines) == 4
    assert len(elman("predict", tmp_path / "run", path).out.splitlines()) > 12
    stream = elman("predict", tmp_path / "run", "-", text=b"[0,1,0,1,0,0]\n[0,0,1,0,1,0]\n")
    assert [len(json.loads(line)) for line in stream.out.splitlines()] == [6, 6]
    assert len(expect_answers(tmp_path / "run", [b"[0,1,0,1,0,0]\n", b"[0,0,1,0,1,0]\n"], monkeypatch)) == 2
    for text in (b"[0,1]\n", b"[0,1,0,1,0,2]\n", b"x\n"):
        said = elman("predict", tmp_path / "run", "-", text=text)
        assert said.status == 2
        assert "standard input:1" in said.err
    assert Forecaster.from_pretrained(tmp_path / "run").predict(2).shape == (2, 6)
    refused = elman("train", "forecast", path, "--season", "3", "--out", tmp_path / "other")
    assert "no such setting" in refused.err


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.mat", b"none", "cannot be read"),
        ("a.jsonl", b"[[0, 1], [1, 0]]\n", "too few sequences"),
        ("a.jsonl", b"[[0, 1], [1, 3]]\n", "no sequence of vectors"),
        ("a.jsonl", b"[[0, 1], [1, 0]]\n[[0], [1]]\n" * 10, "different numbers"),
    ],
)
def test_files_that_hold_no_vectors(name: str, content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    said = elman("train", "forecast", tmp_path / name, "--out", tmp_path / "run")
    assert said.status == 2
    assert what in said.err
    assert name in said.err


@pytest.mark.conformance  # of an invented song: test_a_run_of_vectors, test_vectors_are_forecast_key_by_key
@pytest.mark.slow
@pytest.mark.skipif(not MUSIC.exists(), reason="the piano rolls are not there")
def test_chorales_are_more_than_how_each_key_was_before() -> None:
    pytest.importorskip("scipy", reason="it reads .mat")
    rolls = read_rolls([MUSIC], 0)
    assert [len(part) for part in (rolls.learnt, rolls.chosen, rolls.test)] == [229, 76, 77]
    said = guesses(rolls.learnt, rolls.test)
    model = Forecaster(4, distribution="bernoulli", hidden=32, layers=1, steps=100, lr=0.01, patience=None)
    x = [[one.numpy() for one in part] for part in (rolls.learnt, rolls.chosen, rolls.test)]
    assert -model.fit(x[0], x[1]).score(x[2]) < said["by what each was before"] - 0.5
