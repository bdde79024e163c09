"""A classifier from Python: its network, the estimator with scikit-learn's tools, and what is refused."""

from __future__ import annotations

import json
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elman import explain, models
from elman.data.labelled import read_labelled
from elman.errors import DataError, InputError, InputTypeError, NotSupported
from elman.models import Classifier
from elman.models.sequence_classifier import POOLS, SequenceClassifier, logits_of
from tests import pairwise
from tests.speakers import SMALL, spelled, voices


@pytest.fixture(scope="module")
def strings() -> tuple[list[str], list[str]]:
    return spelled()


@pytest.fixture(scope="module")
def fitted(strings: tuple[list[str], list[str]]) -> Classifier:
    return Classifier(**SMALL).fit(*strings)


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


def test_it_explains_itself(fitted: Classifier, strings: tuple[list[str], list[str]]) -> None:
    fitted.predict(strings[0][:2])
    assert "in the loop" in str(explain(fitted))
