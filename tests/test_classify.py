"""Classification: figures, calibration, the command, and what it reaches on real data."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elman.data.labelled import Labelled, stratified
from elman.errors import InputError
from elman.models import Classifier
from elman.models.coding import Coding
from elman.models.scores import calibrated, calibration_error, figures
from elman.report import matrix, read_record
from elman.tasks.classify import Classify, HeldOut
from elman.training import Measure
from tests.speakers import SMALL, spelled, voices
from tests.strangers import elman
from tests.typed import expect_answers

NAMES = Path(__file__).resolve().parents[2] / "shared" / "data" / "names"


@pytest.fixture(scope="module")
def strings() -> tuple[list[str], list[str]]:
    return spelled()


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="its figures are compared with")
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (300,), generator=generator)
    logits = torch.randn(300, 4, generator=generator) + 1.5 * torch.nn.functional.one_hot(y, 4)
    probabilities = logits.double().softmax(1)
    said, found = figures(probabilities, y), probabilities.argmax(1)
    assert said["accuracy"] == pytest.approx(metrics.accuracy_score(y, found))
    assert said["balanced"] == pytest.approx(metrics.balanced_accuracy_score(y, found))
    assert said["nats"] == pytest.approx(metrics.log_loss(y, probabilities))
    assert said["confusion"] == metrics.confusion_matrix(y, found).tolist()
    expected = metrics.precision_recall_fscore_support(y, found)
    for name, values in zip(("precision", "recall", "f1", "examples"), expected, strict=True):
        assert said[name] == pytest.approx(values.tolist())


def test_a_temperature_undoes_what_made_logits_too_sure() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator) * 2
    y = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]  # true at temperature 1
    for factor in (0.5, 1.0, 4.0):
        warmth, _ = calibrated(factor * logits, y)
        assert warmth == pytest.approx(factor, rel=0.03)
        sure = (factor * logits / warmth).softmax(1)
        assert calibration_error(sure, y) < 0.015
    assert calibration_error((4 * logits).softmax(1), y) > 0.1
    # All of a few right: not for ever more sure.
    assert calibrated(torch.eye(3) * 5, torch.arange(3))[0] > 1


def test_class_weights() -> None:
    coding = Coding(["a", "b"], [90, 10], None)
    assert coding.weights(None).tolist() == [1, 1]
    assert coding.weights("balanced").tolist() == pytest.approx([100 / 180, 5])
    assert coding.weights({"b": 3}).tolist() == pytest.approx([100 / 120, 300 / 120])
    with pytest.raises(InputError, match="no such class weights"):
        coding.weights("rare")


def test_weights_of_labels_that_are_not_there_are_refused() -> None:
    coding = Coding(["a", "b"], [3, 1], "ab")
    with pytest.raises(InputError, match=r"(?s)labels that are not there.*got: nope.*expected: a, b"):
        coding.weights({"nope": 2, "a": 1})


@pytest.mark.parametrize(
    "weight",
    [
        math.inf,
        -math.inf,
        math.nan,
        -1,
        1e300,
        pytest.param(10**400, id="huge"),
        "2",
        None,
        np.float32("nan"),
        1j,
    ],
)
def test_weights_that_are_none_are_refused(weight: Any) -> None:
    with pytest.raises(InputError, match="no weight") as caught:
        Classifier(class_weight={"b": weight}, **SMALL).fit(["ab", "ba"] * 4, ["a", "b"] * 4)
    assert caught.value.where == "class_weight['b']"
    with pytest.raises(InputError, match="all class weights are 0"):
        Coding(["a", "b"], [3, 0], "ab").weights({"a": 0})


def test_weights_are_told_by_their_ratios() -> None:
    coding = Coding(["a", "b"], [90, 10], None)
    for size in (1, 1e90, 1e-90, np.float32(2), np.int64(3)):
        assert coding.weights({"a": size, "b": 3 * size}).tolist() == pytest.approx([100 / 120, 300 / 120])


@pytest.mark.conformance
def test_rare_labels_are_found_where_they_weigh_more() -> None:
    rng = np.random.default_rng(0)
    y = np.array([0] * 180 + [1] * 20)
    x = [rng.normal(size=(4, 1)) + 0.6 * label for label in y]
    how = {**SMALL, "steps": 80, "valid": 0}
    plain, even = (
        Classifier(class_weight=kind, **how).fit(x, y).evaluate(x, y) for kind in (None, "balanced")
    )
    assert even["recall"][1] > plain["recall"][1] + 0.2


def test_the_matrix_is_drawn_and_escaped() -> None:
    drawn = matrix([[3, 1], [0, 2]], ["<a>", "b"])
    assert drawn.count("<rect") == 4
    assert "&lt;a&gt; taken for b: 1 of 4, 25.0 %" in drawn
    assert "nothing" in matrix([], [])


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_regression_on_numbers_is_called_what_it_is() -> None:
    pytest.importorskip("sklearn", reason="it is scikit-learn's regression")
    x, y = voices(30, 0)
    examples = Labelled([torch.from_numpy(one) for one in x], y, y)
    task = Classify(Coding.of(examples.x, y))
    held_out = HeldOut(examples, *task.encoded(examples, 4), examples)
    shares = task._baselines(held_out)
    assert list(shares) == ["most frequent", "statistics"]
    figure = Measure(1.0, "accuracy", "%", details={"balanced": 1.0, "nats": 0.0, "calibration": 0.0})
    assert "logistic regression on mean, deviation, first and last " in task.said(figure, held_out)[-1]


@pytest.fixture(scope="module")
def run(strings: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classify")
    (folder / "data").mkdir()
    for label in sorted(set(strings[1])):
        mine = [x for x, y in zip(*strings, strict=True) if y == label]
        (folder / "data" / f"{label}.txt").write_text("\n".join(mine))
    how = (
        "--hidden",
        "8",
        "--layers",
        "1",
        "--steps",
        "40",
        "--lr",
        "0.02",
        "--batch",
        "16",
        "--one-direction",
        "--quiet",
    )
    said = elman("train", "classify", folder / "data", *how, "--quiet", "--out", folder / "run")
    assert said.status == 0, said.err
    assert "96 sequences to learn from, 12 to choose by, 12 to measure on (seed 0); 3 labels" in said.out
    return folder / "run"


def test_a_run_says_accuracy_first_and_what_lies_beside_it(run: Path) -> None:
    said = elman("evaluate", run)
    assert said.status == 0, said.err
    first, *rest = said.out.splitlines()
    assert first.startswith("accuracy ")
    assert "%" not in said.err
    more = "\n".join(rest)
    for words in (
        "balanced accuracy",
        "expected calibration error",
        "not in training: ",
        "most frequent label 33.3 %",
    ):
        assert words in more
    known = read_record(run, Classify.part).more[
        "baselines"
    ]  # as training has found, where scikit-learn is there
    beside = f"beside it: always the most frequent label {100 * known['most frequent']:.1f} %"
    if "n-grams" in known:
        beside += f", logistic regression on n-grams {100 * known['n-grams']:.1f} %"
    assert rest[-1].strip() == beside
    page = (run / "report.html").read_text()
    assert "Which labels are taken for which" in page
    assert " taken for " in page
    measured = read_record(run, Classify.part).measured
    assert f"accuracy {100 * measured['value']:.1f} %" in first
    assert sum(count for count, _ in measured["seen"].values()) == 12


def test_it_predicts_line_by_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lines.txt").write_text("abab\n\ncdcd\n")
    (tmp_path / "rows.csv").write_text("text\nabab\ncdcd\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "abab"}\n{"text": "cdcd"}\n')
    assert elman("predict", run, tmp_path / "lines.txt").out == "ab\n\ncd\n"
    assert elman("predict", run, tmp_path / "rows.csv").out == "ab\ncd\n"
    assert elman("predict", run, tmp_path / "rows.jsonl").out == "ab\ncd\n"
    assert expect_answers(run, [b"abab\n", b"\r\n", b"cdcd"], monkeypatch) == ["ab", "", "cd"]
    said = elman("predict", run, "-", text="abab\nabéb\ncdéd\n".encode())
    assert (said.out.splitlines()[::2], said.err.count("does not know 'é' (U+00E9)")) == (["ab", "cd"], 1)
    (tmp_path / "odd.txt").write_bytes(b"abab\n\xff\n")
    said = elman("predict", run, tmp_path / "odd.txt")
    assert said.status == 2
    assert "odd.txt:2" in said.err
    model = Classifier.from_pretrained(run)  # a run folder is one, too
    assert model.predict(["abab", "cdcd"]).tolist() == ["ab", "cd"]
    assert model.step("a")[0].shape == (3,)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda folder: (folder / "ab.txt").write_text("other\n" * 10), "not those that were learnt from"),
        (lambda folder: (folder / "ab.txt").unlink(), "not those that were learnt from"),
    ],
)
def test_data_that_changed_are_not_measured_on(
    run: Path, spoil: Callable[[Path], object], what: str, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(run.parent, tmp_path / "copy")
    config = tmp_path / "copy" / "run" / "config.json"
    config.write_text(config.read_text().replace(str(run.parent), str(tmp_path / "copy")))
    spoil(tmp_path / "copy" / "data")
    said = elman("evaluate", tmp_path / "copy" / "run")
    assert said.status == 2
    assert what in said.err
    (tmp_path / "test.csv").write_text("text,label\nabab,ab\ncdcd,cd\n")
    said = elman("evaluate", tmp_path / "copy" / "run", tmp_path / "test.csv")
    assert said.status == 0, said.err
    assert "not in training" not in said.out  # which is not known any more
    (tmp_path / "test.csv").write_text("text,label\nabab,unheard\n")
    said = elman("evaluate", run, tmp_path / "test.csv")
    assert "was not there in training" in said.err
    assert "test.csv:2" in said.err


def test_too_few_examples_to_hold_some_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nab,a\ncd,b\n")
    said = elman("train", "classify", tmp_path / "a.csv", "--steps", "1", "--out", tmp_path / "run")
    assert said.status == 2
    assert "--valid" in said.err
    (tmp_path / "b.csv").write_text("text,label\nab,a\n")
    said = elman(
        "train", "classify", tmp_path / "b.csv", "--valid", tmp_path / "a.csv", "--out", tmp_path / "run"
    )
    assert "nothing to tell apart" in said.err


# --- real data --------------------------------------------------------------------------------------------------------


def _digits() -> tuple[Any, Any, Any, Any]:
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits are scikit-learn's")
    found = datasets.load_digits()
    learnt, test = stratified(found.target.tolist(), (0.8, 0.2), seed=0)
    return found.images[learnt], found.target[learnt], found.images[test], found.target[test]


@pytest.mark.conformance  # that a temperature is found: test_it_is_fitted_kept_and_opened_again
def test_a_little_training_on_digits_and_what_the_temperature_is_for() -> None:
    """Of 360 examples that took no part; half-learnt, the network is not sure enough."""
    x, y, test_x, test_y = _digits()
    model = Classifier(hidden=32, layers=1, steps=60, lr=0.02, seed=0).fit(x, y)
    said = model.evaluate(test_x, test_y)
    assert said["accuracy"] > 0.75
    assert said["calibration"] < 0.06
    model.model_.temperature.fill_(1.0)
    assert model.evaluate(test_x, test_y)["calibration"] > said["calibration"] + 0.02


@pytest.mark.conformance
@pytest.mark.slow
def test_digits_row_by_row_and_their_probabilities_are_true() -> None:
    x, y, test_x, test_y = _digits()
    model = Classifier(hidden=64, layers=1, steps=600, seed=0).fit(x, y)
    said = model.evaluate(test_x, test_y)
    assert said["accuracy"] >= 0.95
    assert said["calibration"] < 0.04
    # Made too sure, they are less true; the temperature of the part that was put aside takes it back.
    logits = torch.from_numpy(np.log(model.predict_proba(test_x).clip(1e-12))) * 3
    labels = torch.from_numpy(test_y)
    warmth, _ = calibrated(logits[::2], labels[::2])
    sure = [calibration_error((logits[1::2] / t).softmax(1), labels[1::2]) for t in (1.0, warmth)]
    assert sure[1] <= sure[0] + 0.005


@pytest.mark.conformance
@pytest.mark.skipif(not NAMES.is_dir(), reason="the names are not part of the project")
def test_names_by_language(tmp_path: Path) -> None:
    how = ("--hidden", "32", "--layers", "1", "--steps", "300", "--quiet", "--out", tmp_path / "run")
    said = elman("train", "classify", NAMES, *how)
    assert said.status == 0, said.err
    measured = read_record(tmp_path / "run", Classify.part).measured
    assert measured["value"] > 0.55  # always Russian: 0.47
    assert measured["calibration"] < 0.06
    seen = measured["seen"]
    assert seen["in training with other labels only"][0] > 50
    assert seen["in training with other labels only"][1] < seen["not in training"][1]
