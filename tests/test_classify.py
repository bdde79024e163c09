"""Classification: files, figures, calibration, the estimator, and what it reaches on real data."""

from __future__ import annotations

import json
import math
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elman import explain, models
from elman.data.labelled import Labelled, read_labelled, read_sequences, stratified
from elman.errors import DataError, InputError, InputTypeError, NotSupported
from elman.models import Classifier
from elman.models.coding import Coding
from elman.models.scores import calibrated, calibration_error, figures
from elman.models.sequence_classifier import POOLS, SequenceClassifier, logits_of
from elman.report import matrix, read_record
from elman.tasks.classify import Classify, HeldOut
from elman.training import Measure
from tests import pairwise
from tests.strangers import elman
from tests.typed import expect_answers

NAMES = Path(__file__).resolve().parents[2] / "shared" / "data" / "names"
SMALL: dict[str, Any] = {"hidden": 8, "layers": 1, "steps": 40, "lr": 0.02, "batch": 16}


def voices(count: int, seed: int) -> tuple[list[Any], list[str]]:
    """Three speakers: sequences [T, 4] of different lengths, each channel with its own place and size."""
    rng = np.random.default_rng(seed)
    x, y = [], []
    for k in range(count):
        t = np.linspace(0, 1, rng.integers(6, 15))[:, None]
        wave = np.sin(2 * np.pi * (1 + k % 3) * t + np.arange(4)) + 0.2 * rng.normal(size=(len(t), 4))
        x.append(wave * [1, 10, 100, 0.1] + [0, 5, -300, 2])
        y.append(f"speaker {k % 3}")
    return x, y


@pytest.fixture(scope="module")
def strings() -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    kinds = {"ab": "abx", "cd": "cdx", "ef": "efx"}
    names = [
        ("".join(rng.choice(list(k), rng.integers(3, 9))), label)
        for label, k in kinds.items()
        for _ in range(40)
    ]
    return [a for a, _ in names], [b for _, b in names]


@pytest.fixture(scope="module")
def fitted(strings: tuple[list[str], list[str]]) -> Classifier:
    return Classifier(**SMALL).fit(*strings)


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_same_examples_from_every_kind_of_file(tmp_path: Path) -> None:
    pairs = [("Abel", "French"), ("Doğan, A", "Turkish"), ("Öz", "Turkish")]
    for kind in ("lines", "files"):
        (tmp_path / kind).mkdir()
    for label in ("French", "Turkish"):
        mine = [text for text, other in pairs if other == label]
        (tmp_path / "lines" / f"{label}.txt").write_text("".join(f"{text}\r\n\n" for text in mine), "utf-8")
        (tmp_path / "files" / label).mkdir()
        for k, text in enumerate(mine):
            (tmp_path / "files" / label / f"{k}.txt").write_text(f"{text}\n", "utf-8")
    rows = "".join(f'"{text}",{label}\n' for text, label in pairs)
    (tmp_path / "a.csv").write_text("\ufefftext,label\n" + rows, "utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": a, "label": b}) + "\n\n" for a, b in pairs))
    for name in ("lines", "files", "a.csv", "a.jsonl"):
        found = read_labelled([tmp_path / name])
        assert list(zip(found.x, found.y, strict=True)) == pairs
    assert (
        len({read_labelled([tmp_path / name]).digest for name in ("lines", "files", "a.csv", "a.jsonl")}) == 1
    )


def test_numbers_from_every_kind_of_file(tmp_path: Path) -> None:
    series = {"one": [[1.0, 2.5], [3.0, 4.0]], "two": [[5.0, 6.0]]}
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": v, "label": k}) + "\n" for k, v in series.items())
    )
    (tmp_path / "a.csv").write_text("id,label,x,y\n7,one,1,2.5\n8,two,5,6\n7,one,3,4\n")
    for k, v in series.items():
        (tmp_path / "d" / k).mkdir(parents=True)
        (tmp_path / "d" / k / "0.csv").write_text("x,y\n" + "".join(f"{a},{b}\n" for a, b in v))
    for name in ("a.jsonl", "a.csv", "d"):
        found = read_labelled([tmp_path / name])
        assert found.y == ["one", "two"]
        assert [x.tolist() for x in found.x] == list(series.values())
    (tmp_path / "p.txt").write_text("[[1, 2], [3, 4]]\n\n[5, 6]\n")
    found = list(read_sequences(tmp_path / "p.txt", numbers=True))
    assert [x if x is None else x.tolist() for x in found] == [[[1, 2], [3, 4]], None, [[5], [6]]]


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("a.csv", b"name,label\nx,y\n", "a.csv:1", "no column 'text'"),
        ("a.csv", b"text,kind\nx,y\n", "a.csv:1", "no column 'label'"),
        ("a.csv", b"text,label\nx,y\nx\n", "a.csv:3", "fewer fields"),
        ("a.csv", b"text,label\nx,\n", "a.csv:2", "no label"),
        ("a.csv", b"text,label\n,y\n", "a.csv:2", "is empty"),
        ("a.csv", b"text,label\nx,y\n\xff,y\n", "a.csv:3", "not UTF-8"),
        ("a.csv", b"text,label\n" + b"x" * 1_000_000 + b",y\n", "a.csv:2", "longer than is read"),
        ("a.csv", b"id,label,v\n1,a,2\n1,b,3\n", "a.csv:3", "different labels"),
        ("a.csv", b"id,label,v\n1,a,2\n1,a,nan\n", "a.csv:3", "not what the others are"),
        ("a.csv", b"text,label\n", "a.csv", "no examples"),
        ("a.csv", b"", "a.csv", "is empty"),
        ("a.jsonl", b'{"text": "x", "label": "y"}\n{"text": "x"}\n', "a.jsonl:2", "no example: label"),
        ("a.jsonl", b'{"text": [1, [2]], "label": "y"}\n', "a.jsonl:1", "no sequence"),
        ("a.jsonl", b'{"text": [NaN], "label": "y"}\n', "a.jsonl:1", "no sequence"),
        ("a.jsonl", b'{"text": [1, 1%s], "label": "y"}\n' % (b"0" * 400), "a.jsonl:1", "no sequence"),
        ("a.jsonl", b'{"text": [1, 1e39], "label": "y"}\n', "a.jsonl:1", "no sequence"),
        ("a.csv", b"id,label,v\n1,a,2\n1,a,1e39\n", "a.csv:3", "not what the others are"),
        ("a.jsonl", b"nothing\n", "a.jsonl:1", "no example"),
        ("a.jsonl", b'{"text": "x", "label": "y"}\n{"text": [1], "label": "y"}\n', "a.jsonl:2", "another kind"),
        ("a.jsonl", b'{"text": "' + b"x" * 1_000_000 + b'", "label": "y"}\n', "a.jsonl:1", "longer than is read"),
        ("a.txt", b"x y\n", "a.txt", "no examples with labels"),
        ("d/a.txt", b"", "d/a.txt", "is empty"),
        ("d/a.txt", b"good\n\xc3(\n", "d/a.txt:2", "not UTF-8"),
        ("d/a.txt", b"x\n" + b"x" * 1_000_000, "d/a.txt:2", "longer than is read"),
        ("d/a/x.txt", b"\n \n", "d/a/x.txt", "is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_file_and_line(
    name: str, content: bytes, where: str, what: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        read_labelled([tmp_path / name.split("/")[0]])
    assert str(caught.value.where) == str(tmp_path / where)
    assert caught.value.mend


def test_a_split_has_its_share_of_every_class_and_hangs_on_the_seed() -> None:
    y = [0] * 100 + [1] * 40 + [2] * 10 + [3]
    parts = stratified(y, (0.8, 0.1, 0.1), seed=3)
    assert sorted(i for part in parts for i in part) == list(range(len(y)))
    assert [[sum(y[i] == k for i in part) for k in range(4)] for part in parts] == [
        [80, 32, 8, 1], [10, 4, 1, 0], [10, 4, 1, 0]
    ]  # fmt: skip
    assert parts == stratified(y, (0.8, 0.1, 0.1), seed=3)
    assert parts != stratified(y, (0.8, 0.1, 0.1), seed=4)


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


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.grid(1)
@pytest.mark.parametrize("pooling", [*POOLS, "max+mean+last"])
@pytest.mark.parametrize("both", [True, False])
def test_padding_changes_nothing_and_a_stream_is_the_whole(pooling: str, both: bool) -> None:
    model = SequenceClassifier(
        3, 4, False, "gru", 5, 2, pooling=pooling, both=both, residual=True, norm=True
    ).eval()
    x = [torch.randn(T, 3) for T in (7, 1, 4)]
    model.standardise(x)
    found = logits_of(model, x)
    for one, expected in zip(x, found, strict=True):
        torch.testing.assert_close(model(one[:, None])[0], expected, atol=1e-5, rtol=1e-4)
        if not both:
            state = None
            for k, row in enumerate(one):
                logits, state = model.step(row[None], state)
                torch.testing.assert_close(logits[0], model(one[: k + 1, None])[0], atol=1e-5, rtol=1e-4)
    if both:
        with pytest.raises(NotSupported, match="both directions"):
            model.step(x[0][:1])


def test_far_from_zero_numbers_are_told_apart_as_near_it(tmp_path: Path) -> None:
    x, y = voices(60, 0)
    far = [np.float64(one) + 1e8 for one in x]
    near, there = (Classifier(**SMALL, both=False).fit(some, y) for some in (x, far))
    expected = near.predict_proba(x)
    np.testing.assert_allclose(there.predict_proba(far), expected, atol=1e-4)
    assert there.evaluate(far, y)["nats"] == pytest.approx(near.evaluate(x, y)["nats"], abs=1e-4)
    state: Any = None
    for row in far[0]:
        found, state = there.step(row, state)
    np.testing.assert_allclose(found, expected[0], atol=1e-4)
    there.save_pretrained(tmp_path)
    np.testing.assert_allclose(Classifier.from_pretrained(tmp_path).predict_proba(far), expected, atol=1e-4)
    lines = [json.dumps({"text": one.tolist(), "label": label}) for one, label in zip(far, y, strict=True)]
    (tmp_path / "far.jsonl").write_text("\n".join(lines))
    for one, read in zip(far, read_labelled([tmp_path / "far.jsonl"]).x, strict=True):
        np.testing.assert_array_equal(read.numpy(), one)


def test_poolings_that_are_not_there() -> None:
    with pytest.raises(InputError, match="no such pooling"):
        SequenceClassifier(3, 4, pooling="max+median")


# --- the estimator ----------------------------------------------------------------------------------------------------


def test_it_is_fitted_kept_and_opened_again(
    fitted: Classifier, strings: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    x, y = strings
    assert fitted.score(x, y) > 0.9
    assert float(fitted.model_.temperature) != 1
    assert fitted.predict_proba(x).sum(1) == pytest.approx(np.ones(len(x)))
    assert fitted.classes_.tolist() == ["ab", "cd", "ef"]
    fitted.save_pretrained(tmp_path / "kept")
    again = Classifier.from_pretrained(tmp_path / "kept")
    assert np.array_equal(again.predict_proba(x), fitted.predict_proba(x))
    assert again.get_params()["hidden"] == 8
    assert Classifier(**SMALL).fit(x, y).predict_proba(x) == pytest.approx(fitted.predict_proba(x))
    labels = tmp_path / "kept" / "labels.json"
    for broken in ("{", '{"labels": ["a", "a"], "counts": [1, 1], "characters": "ab"}', '{"labels": []}'):
        labels.write_text(broken)
        with pytest.raises(DataError):
            Classifier.from_pretrained(tmp_path / "kept")


@pytest.mark.conformance
def test_numbers_are_standardised_and_lengths_may_differ() -> None:
    x, y = voices(120, 0)
    model = Classifier(hidden=16, layers=1, dropout=0.1, steps=120, lr=0.02).fit(x, y)
    assert model.score(*voices(60, 1)) > 0.9
    everything = np.concatenate(x)
    assert model.model_.deviation.numpy() == pytest.approx(everything.std(0), rel=0.2)


def test_random_numbers_go_on_as_if_nothing_was_drawn(strings: tuple[list[str], list[str]]) -> None:
    before = torch.get_rng_state()
    Classifier(**{**SMALL, "steps": 2}).fit(*strings)
    assert torch.equal(before, torch.get_rng_state())


def test_a_live_stream_is_classified_as_it_comes(strings: tuple[list[str], list[str]]) -> None:
    x, y = strings
    model, state = Classifier(both=False, pooling="max+mean+attention", **SMALL).fit(x, y), None
    word = "abxa"
    for k, character in enumerate(word):
        found, state = model.step(character, state)
        assert found == pytest.approx(model.predict_proba([word[: k + 1]])[0], abs=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "error", "what"),
    [
        ("abc", ["a"], InputTypeError, "one string"),
        ([], [], InputError, "0 sample"),
        (["ab", "cd"], ["a"], InputError, "one label for each"),
        (["ab", "cd"], ["a", "a"], InputError, "greater than one"),
        (["ab", ""], ["a", "b"], InputError, "a string is empty"),
        ([[1.0, float("nan")], [2.0]], [0, 1], InputError, "NaN"),
        ([[[1.0, 2.0]], [[1.0]]], [0, 1], InputError, "more or fewer numbers"),
        ([np.zeros((0, 2)), np.zeros((1, 2))], [0, 1], InputError, "a step at least"),
        (np.zeros(4), [0, 1, 0, 1], InputError, "Expected 2D array"),
        ([[1.0], [2.0]], [0.5, 1.0], InputError, "Unknown label type"),
        ([[1.0], [2.0]], None, InputError, "requires y"),
        (["ab", "cd"], ["x", None], InputError, r"(?s)a label is missing.*where: y\[1\].*got: None"),
        (["ab", "cd"], [float("nan"), "x"], InputError, r"(?s)a label is missing.*where: y\[0\].*got: nan"),
        (["ab", "cd"], np.array(["x", None], object), InputError, r"(?s)a label is missing.*where: y\[1\]"),
        (
            ["ab", "cd"],
            np.array(["x", 1], object),
            InputTypeError,
            r"(?s)labels are of one kind.*got: str, int",
        ),
        (["ab", "cd"], [[1], [2, 3]], InputError, "one label for each"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(x: Any, y: Any, error: type, what: str) -> None:
    with pytest.raises(error, match=what):
        Classifier(**SMALL).fit(x, y)


def test_what_was_not_there_in_training_is_refused(fitted: Classifier) -> None:
    with pytest.raises(DataError, match="not of the kind"):
        fitted.predict([[1.0, 2.0]])
    with pytest.raises(DataError, match="label was not there"):
        fitted.evaluate(["ab"], ["other"])
    with pytest.raises(AttributeError, match="not fitted"):
        Classifier().predict(["ab"])
    with pytest.raises(InputError, match="no such parameter"):
        Classifier().set_params(width=3)
    assert fitted.predict(["\u3042"]).shape == (1,)  # a character never seen


def test_a_step_is_checked_as_a_sequence_is(strings: tuple[list[str], list[str]]) -> None:
    how = {**SMALL, "both": False, "steps": 2}
    numbers = Classifier(**how).fit([[[1.0, 2.0]] * 3, [[0.0, 1.0]] * 2] * 2, ["a", "b"] * 2)
    texts = Classifier(**how).fit(*strings)
    for model, x, error, what in (
        (numbers, [1.0], InputError, "(?s)as many numbers as.*got: 1.*expected: 2"),
        (numbers, [1.0, 2.0, 3.0], InputError, "(?s)as many numbers as.*got: 3.*expected: 2"),
        (numbers, [1.0, float("nan")], InputError, "NaN or infinity"),
        (numbers, [1.0, 1e39], InputError, "NaN or infinity"),
        (numbers, ["a", "b"], InputError, "no numbers"),
        (numbers, "a", InputTypeError, "(?s)not of the kind.*got: a text"),
        (texts, 1.0, InputTypeError, "(?s)not of the kind.*got: float"),
        (texts, None, InputTypeError, "(?s)not of the kind.*got: NoneType"),
    ):
        with pytest.raises(error, match=what):
            model.step(x)
    found, _ = numbers.step((1, 2))
    np.testing.assert_allclose(found, numbers.predict_proba([[[1.0, 2.0]]])[0], rtol=1e-5)


def test_a_gap_of_pandas_is_no_label() -> None:
    pandas = pytest.importorskip("pandas", reason="its series are taken as labels")
    for gap in (None, pandas.NA, float("nan")):
        with pytest.raises(InputError, match=r"(?s)a label is missing.*where: y\[1\]"):
            Classifier(**SMALL).fit(["ab", "cd"], pandas.Series(["x", gap], dtype=object))


@pytest.mark.parametrize("seed", ["a", 1.5, None, 2**64, -(2**63) - 1])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    learnt: list[Callable[[], Any]] = [
        lambda: Classifier(seed=seed).fit(["ab", "cd"], ["x", "y"]),
        lambda: models.Autoencoder(seed=seed).fit(["ab", "cd"]),
        lambda: models.Tagger(seed=seed).fit([["a"], ["b"]], [["X"], ["Y"]]),
        lambda: models.Forecaster(horizon=2, seed=seed).fit(list(range(40))),
        lambda: models.Forecaster(distribution="bernoulli", horizon=2, seed=seed).fit([np.eye(4)]),
    ]
    if seed is not None:  # that draws as torch goes on
        learnt.append(lambda: models.LanguageModel(5, hidden=4, embedding=4).generate([1], 3, seed=seed))
    for fit in learnt:
        with pytest.raises((InputError, InputTypeError), match=r"(?s)a seed is a whole number.*where: seed"):
            fit()


# What does not hold, and why: docs/classify.md.
NOT_HELD = {
    "check_classifiers_train": "a list of lists is no table: what it holds may be of other lengths the next time",
}
LONG = {  # for `make conformance`: each fits several times
    "check_classifiers_train", "check_fit_score_takes_y", "check_estimators_dtypes", "check_classifiers_classes",
    "check_classifier_data_not_an_array", "check_estimators_nan_inf", "check_pipeline_consistency",
    "check_dtype_object",
}  # fmt: skip


@pytest.mark.conformance
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore"
)  # what scikit-learn warns of: not derived from its base, too few in a class
def test_it_passes_the_checks_of_scikit_learn() -> None:
    checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="they are scikit-learn's")
    model = Classifier(hidden=8, layers=1, steps=60, valid=0, dropout=0.0, lr=0.03, average=0.0)
    failed: dict[str, Any] = {}
    out = set() if pairwise.exhaustive else LONG
    for estimator, check in checks.estimator_checks_generator(model):
        if check.func.__name__ in out:
            continue
        try:
            check(estimator)
        except unittest.SkipTest:  # pandas, the array API: of no concern here
            continue
        except Exception as error:
            failed[check.func.__name__] = error
    assert set(failed) == NOT_HELD.keys() - out, failed


def test_it_is_cloned_searched_and_piped() -> None:
    sklearn = pytest.importorskip("sklearn", reason="its tools take ours")
    from sklearn.model_selection import cross_val_score

    x, y = voices(45, 0)
    model = Classifier(**{**SMALL, "steps": 20, "lr": 0.04})
    assert sklearn.clone(model).get_params() == model.get_params()
    assert cross_val_score(model, x, y, cv=2, error_score="raise").mean() > 0.4


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


def test_it_explains_itself(fitted: Classifier, strings: tuple[list[str], list[str]]) -> None:
    fitted.predict(strings[0][:2])
    assert "in the loop" in str(explain(fitted))
