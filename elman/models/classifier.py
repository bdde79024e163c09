"""A classifier of sequences with scikit-learn's manners, which needs no scikit-learn."""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elman.data import ragged
from elman.data.labelled import stratified
from elman.errors import InputError, InputTypeError, NotYet
from elman.models import pretrained
from elman.models.asked import expect_seed, is_gap
from elman.models.coding import END, FILE, Coding
from elman.models.scores import calibrated, figures
from elman.models.sequence_classifier import KNOWN, SETTINGS, SequenceClassifier, logits_of, shapes
from elman.plan.explain import Explanation
from elman.training import Measure, Training, fitted

PASSES, STEPS = 20, 1000  # over the data, and at least
DECAY, AVERAGE = 0.05, 0.998
_CHOOSING = 100  # examples put aside, at least, to choose weights by
_LEFT_OUT = 0.2  # of a symbol's vector; of numbers there may be one only


def batch_for(examples: int) -> int:
    """B: 64, less of little data, so that a pass has some steps."""
    return max(min(64, examples // 16), 8)


def input_dropout_for(given: float | None, symbols: bool) -> float:
    return given if given is not None else _LEFT_OUT if symbols else 0.0


class Classifier:
    """One label for each sequence.

        model = Classifier(seed=0).fit(x, y)                # x: arrays [T, I] of any lengths, or strings; y: labels
        model.predict(x), model.predict_proba(x), model.score(x, y)

    A network of elman (`SequenceClassifier`), trained until a part of the data that is put aside, stratified, says no
    better for `patience` looks, of 16 in a run, or to the end of `steps` (default: 20 passes, at least 1000 steps) or
    `minutes`. The weights of the best look are kept; the temperature that makes probabilities true comes from the same
    part. Fewer than 100 examples put aside say too little to choose by: then looks are at what is learnt from. Numbers
    are standardised by mean and deviation of what is learnt from.

    cell, hidden, layers, embedding, pooling, both, dropout, input_dropout, symbol_dropout: see `SequenceClassifier`.
    class_weight: of each label in the loss: None, "balanced", or {label: weight}. valid: the share put aside, 0 for
    none. batch, lr, weight_decay, average, seed: see `elman.training.Training`. watch: is shown what training yields.
    progress: a bar on standard error with the time left; None: where that is a terminal.

    Where a table `[N, T]` is given, each row is a sequence of T numbers; `[N, T, I]` are N sequences.
    classes_: labels in the order of the probabilities. model_: the network.

    Raises InputError for what is no sequence, or NaN. scikit-learn's check_estimator: docs/classify.md.
    """

    _estimator_type = "classifier"

    def __init__(
        self, *, cell: Any = "lstm", hidden: int = 128, layers: int = 2, embedding: int = 64,
        pooling: str = "max+mean", both: bool = True, dropout: float = 0.4, input_dropout: float | None = None,
        symbol_dropout: float = 0.05, class_weight: Any = None, standardise: bool = True, valid: float = 0.1,
        steps: int | None = None, minutes: float | None = None, batch: int | None = None, lr: float | None = None,
        weight_decay: float = DECAY, average: float = AVERAGE, patience: int | None = 5, seed: int = 0,
        watch: Callable[[Any], None] | None = None, progress: bool | None = None,
    ) -> None:  # fmt: skip
        self.cell, self.hidden, self.layers, self.embedding = cell, hidden, layers, embedding
        self.pooling, self.both, self.dropout, self.input_dropout = pooling, both, dropout, input_dropout
        self.symbol_dropout, self.class_weight, self.standardise = symbol_dropout, class_weight, standardise
        self.valid, self.steps, self.minutes, self.batch, self.lr = valid, steps, minutes, batch, lr
        self.weight_decay, self.average, self.patience = weight_decay, average, patience
        self.seed, self.watch, self.progress = seed, watch, progress

    # --- as scikit-learn has it ---------------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, as they are set."""
        return {name: getattr(self, name) for name in _parameters()}

    def set_params(self, **params: Any) -> Classifier:
        """Raises InputError for a name that the constructor does not know."""
        for name, value in params.items():
            if name not in _parameters():
                raise InputError(
                    what="there is no such parameter", where="set_params", got=name, expected=", ".join(_parameters()),
                    mend="choose one",
                )  # fmt: skip
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(Classifier).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not defaults[name].default
        ]
        return f"Classifier({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        return "model_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier", target_tags=TargetTags(required=True), transformer_tags=None,
            regressor_tags=None, classifier_tags=ClassifierTags(), input_tags=InputTags(three_d_array=True),
        )  # fmt: skip

    # --- what it is for -----------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> Classifier:
        """X: N sequences: arrays `[T, I]`, or `[T]`; strings; or one array `[N, T]` or `[N, T, I]`. y: N labels.

        The random numbers of torch go on as if nothing had been drawn.
        """
        expect_seed(self.seed)
        x, width = _sequences(X)
        labels = _labels(y, len(x))
        self.classes_ = np.unique(labels)
        coding = Coding.of(x, labels.tolist())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._fit(x, coding.numbers(labels.tolist(), "y"), coding)
        vars(self).pop("n_features_in_", None)
        if width is not None:
            self.n_features_in_ = width
        return self

    def _fit(self, x: Any, y: Tensor, coding: Coding) -> None:
        symbols = coding.characters is not None
        encoded = coding.sequences(x, 0 if symbols else x[0].shape[1], "X")
        aside, learnt = (
            stratified(y.tolist(), (self.valid, 1 - self.valid), self.seed) if self.valid else ([], [])
        )
        if not aside or not learnt:
            aside, learnt = [], list(range(len(encoded)))
        # A few examples say too little to choose weights by; what is learnt from, at least when there is no more in it.
        chosen = aside if len(aside) >= _CHOOSING else learnt
        held_x, held_y = [encoded[i] for i in chosen], y[chosen]
        learnt_x = [encoded[i] for i in learnt]
        model = SequenceClassifier(
            coding.inputs if symbols else x[0].shape[1], len(coding.labels), symbols, self.cell, self.hidden,
            self.layers, self.embedding, self.pooling, self.both, self.dropout,
            input_dropout_for(self.input_dropout, symbols), self.symbol_dropout,
        )  # fmt: skip
        model.weight.copy_(coding.weights(self.class_weight))
        if not symbols and self.standardise:
            model.standardise(learnt_x)
        batches = ragged(learnt_x, y[learnt], self.batch or batch_for(len(learnt)), self.seed)
        steps = self.steps
        if steps is None and self.minutes is None:
            steps = max(math.ceil(PASSES * batches.size / batches.count), STEPS)
        training = Training(
            model, batches, steps=steps, minutes=self.minutes, lr=self.lr or model.learning_rate,
            weight_decay=self.weight_decay, average=self.average, seed=self.seed,
        )  # fmt: skip
        watch = self.watch or (lambda event: None)
        fitted(
            training,
            lambda: look(model, held_x, held_y),
            patience=self.patience,
            watch=watch,
            progress=self.progress,
        )
        if aside:
            look(model, [encoded[i] for i in aside], y[aside])
        else:  # what is learnt by heart says nothing of how sure to be
            model.temperature.fill_(1.0)
        self.model_, self.coding_ = model.eval(), coding
        model.coding = coding

    def predict(self, X: Any) -> Any:
        """The likeliest label of each sequence, `[N]`."""
        best = self._logits(X).argmax(1).numpy()
        return self.classes_[best]

    def predict_proba(self, X: Any) -> Any:
        """Probabilities `[N, K]`, float64, in the order of `classes_`."""
        logits = self._logits(X).double()
        return (logits / self.model_.temperature.double()).softmax(1).numpy()

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of labels that are right."""
        right = self.predict(X) == np.asarray(y)
        return float(np.average(right, weights=sample_weight))

    def evaluate(self, X: Any, y: Any) -> dict[str, Any]:
        """What `elman.models.scores.figures` says: balanced accuracy, calibration error, figures of each label."""
        labels = _labels(y, None)
        return figures(torch.from_numpy(self.predict_proba(X)), self.coding_.numbers(labels.tolist(), "y"))

    def step(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        """One element of a live stream: (probabilities `[K]` of the stream so far, the state to go on from).

        x: numbers `[I]`, or a character. The probabilities are those of `predict_proba` for the stream so far.
        Raises NotSupported for a model of both directions, InputError and InputTypeError for what is no such element.
        """
        model = self._fitted()
        if isinstance(x, str) != model.symbols:
            raise InputTypeError(
                what="a step is not of the kind that the model learnt from", where="x",
                got="a text" if isinstance(x, str) else type(x).__name__,
                expected="a character" if model.symbols else f"{model.settings['inputs']} numbers",
                mend="give steps of sequences as in training",
            )  # fmt: skip
        with torch.no_grad():
            if not model.symbols:
                logits, state = model.step(_element(x, model.settings["inputs"]), state)
            else:
                for symbol in self.coding_.sequence(x)[int(state is not None) : -1]:
                    _, state = model.step(symbol[None], state)
                logits, _ = model.step(torch.tensor([END]), state)
        return (logits[0].double() / model.temperature.double()).softmax(0).numpy(), state

    # --- kept ---------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and labels.json. Raises DataError; InputError for a nameless cell."""
        model = self._fitted()
        pretrained.save(folder, model.settings, model, {FILE: self.coding_.kept()})

    @classmethod
    def from_pretrained(cls, name: str | Path, *, trust: bool = False, cell: str | None = None) -> Classifier:
        """What `save_pretrained` wrote, or the run folder of `elman train classify`. trust, cell: as of
        `LanguageModel.from_pretrained`."""
        folder = pretrained.find(name)
        return cls._of(
            opened(folder, pretrained.settings_in(folder, "classify"), trust=trust, cell=cell),
            Coding.load(folder),
        )

    @classmethod
    def _of(cls, model: SequenceClassifier, coding: Coding) -> Classifier:
        classifier = cls(**{name: value for name, value in model.settings.items() if name in _parameters()})
        classifier.model_, classifier.coding_, classifier.classes_ = model, coding, np.array(coding.labels)
        model.coding = coding
        return classifier

    def explain(self) -> Explanation:
        """What of its recurrences runs once, before, in and after the loop; after a call. See `elman.explain`."""
        return self._fitted().explain()

    def _fitted(self) -> SequenceClassifier:
        if "model_" not in vars(self):
            raise _not_fitted()
        return self.model_

    def _logits(self, X: Any) -> Tensor:
        model = self._fitted()
        x, width = _sequences(X)
        expected = vars(self).get("n_features_in_")
        if None not in (width, expected) and width != expected:
            raise InputError(
                what=f"X has {width} features, but Classifier is expecting {expected} features as input", where="X",
                mend="for sequences of other lengths give a list of them",
            )  # fmt: skip
        return logits_of(model, self.coding_.sequences(x, model.settings["inputs"], "X"))


def opened(folder: Path, config: dict[str, Any], **opening: Any) -> SequenceClassifier:
    """The network of a folder, whoever wrote it. Raises DataError."""
    return pretrained.load(
        SequenceClassifier, "a classifier", SETTINGS, shapes, config, folder, known=KNOWN, **opening
    )


def look(model: SequenceClassifier, x: list[Tensor], y: Tensor) -> Measure:
    """Nats per sequence on data that are held out, at the temperature that is best there, which the model keeps; the
    share that is right is in "accuracy"."""
    logits = logits_of(model, x)
    warmth, nats = calibrated(logits, y)
    model.temperature.fill_(warmth)
    right = (logits.argmax(1) == y).double().mean()
    return Measure(nats, "cross entropy", "nats", details={"accuracy": float(right)})


def _parameters() -> list[str]:
    return [name for name in inspect.signature(Classifier).parameters if name != "self"]


def _not_fitted() -> Exception:
    kinds: tuple[type, ...] = (NotYet,)
    if "sklearn" in sys.modules:  # whose tools ask for its own
        from sklearn.exceptions import NotFittedError

        kinds = (NotYet, NotFittedError)
    return type("NotFitted", kinds, {})(
        what="this classifier is not fitted yet", where="Classifier", mend="call fit(X, y) first"
    )


def _sequences(X: Any) -> tuple[list[Any], int | None]:
    """(strings, or float64 tensors [T, I]; of a table [N, T] its width)."""
    if isinstance(X, str) or hasattr(X, "toarray"):
        raise InputTypeError(
            what="X is a sparse matrix" if hasattr(X, "toarray") else "X is one string", where="X",
            got=type(X).__name__, expected="sequences", mend="give a dense array, or a list of strings",
        )  # fmt: skip
    whole = X if isinstance(X, (list, tuple)) else np.asarray(X)
    if (
        isinstance(whole, np.ndarray)
        and whole.ndim < 2
        and (whole.ndim == 0 or whole.dtype.kind not in "OUST")
    ):
        raise InputError(
            what="Expected 2D array, got 1D array instead: this is no list of sequences", where="X",
            got=f"an array {list(whole.shape)}", expected="[N, T] or [N, T, I], or a list of [T, I]",
            mend="Reshape your data: array.reshape(1, -1) for one sequence, (-1, 1) for sequences of one step",
        )  # fmt: skip
    if len(whole) == 0:
        raise InputError(
            what="there are no sequences: 0 sample(s) (shape=(0,)) while a minimum of 1 is required", where="X",
            mend="give at least one",
        )  # fmt: skip
    if isinstance(whole, np.ndarray) and 0 in whole.shape:
        words = f"0 feature(s) (shape={whole.shape}) while a minimum of 1 is required."
        raise InputError(
            what=f"the sequences have no steps: {words}", where="X", mend="give at least one step"
        )
    each = list(whole)
    if all(isinstance(one, str) for one in each):
        if "" in each:
            raise InputError(what="a string is empty", where=f"X[{each.index('')}]", mend="leave it out")
        return each, None
    tensors = [_sequence(one, i) for i, one in enumerate(each)]
    if len({one.shape[1] for one in tensors}) > 1:
        odd = next(i for i, one in enumerate(tensors) if one.shape[1] != tensors[0].shape[1])
        raise InputError(
            what="a sequence has more or fewer numbers a step than the first", where=f"X[{odd}]",
            got=tensors[odd].shape[1], expected=tensors[0].shape[1],
        )  # fmt: skip
    return tensors, whole.shape[1] if isinstance(whole, np.ndarray) and whole.ndim == 2 else None


def _sequence(one: Any, row: int) -> Tensor:
    where = f"X[{row}]"
    array = _numbers(one, where, "this is no sequence of numbers", "give an array [T, I]")
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            what="a sequence is [T, I], with a step at least",
            where=where, got=list(array.shape), expected="[T, I] or [T]", mend="leave out what is empty",
        )  # fmt: skip
    _expect_finite(array, where, "fill gaps in, or leave the sequence out")
    return torch.from_numpy(array)


def _element(x: Any, inputs: int) -> Tensor:
    """[1, I] of a step of a stream."""
    array = _numbers(x, "x", "these are no numbers", f"give {inputs} numbers").reshape(1, -1)
    if array.shape[1] != inputs:
        raise InputError(
            what="a step has as many numbers as those learnt from", where="x", got=array.shape[1], expected=inputs,
            mend="give one step, with all of its numbers",
        )  # fmt: skip
    _expect_finite(array, "x", "fill the gap in, or leave the step out")
    return torch.from_numpy(array)


def _numbers(one: Any, where: str, what: str, mend: str) -> Any:
    """A float64 array. what, mend: of the error where it cannot be one."""
    try:
        array = np.asarray(one.detach().cpu() if isinstance(one, Tensor) else one)
        if array.dtype.kind == "c":
            raise InputError(what="Complex data not supported", where=where, mend="give two numbers for each")
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        kind = InputTypeError if isinstance(error, TypeError) else InputError
        raise kind(what=f"{what}: {error}", where=where, mend=mend) from error


def _expect_finite(array: Any, where: str, mend: str) -> None:
    """Raise InputError for what is no number in float32."""
    if not np.isfinite(array).all() or abs(array).max() > np.finfo(np.float32).max:
        raise InputError(what="Input X contains NaN or infinity", where=where, mend=mend)


def _labels(y: Any, count: int | None) -> Any:
    if y is None:
        raise InputError(
            what="this Classifier requires y to be passed, but the target y is None",
            where="y",
            mend="give labels",
        )
    try:
        labels = np.asarray(y)
    except ValueError as error:  # lists of different lengths
        raise InputError(
            what="there is one label for each sequence",
            where="y",
            got="lists of several lengths",
            expected=[count],
        ) from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        _warn_of_a_column()
        labels = labels[:, 0]
    if labels.ndim != 1 or (count is not None and len(labels) != count):
        raise InputError(
            what="there is one label for each sequence", where="y", got=list(labels.shape), expected=[count],
        )  # fmt: skip
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise InputError(what="Input y contains NaN or infinity", where="y", mend="leave those out")
        if (labels != labels.round()).any():
            raise InputError(
                what="Unknown label type: continuous", where="y", got=f"{labels[labels != labels.round()][0]}",
                expected="texts or whole numbers", mend="make classes of them",
            )  # fmt: skip
    if labels.dtype.kind in "OUT":
        _expect_names(labels, y if isinstance(y, (list, tuple)) else labels)
    return labels


def _expect_names(labels: Any, given: Any) -> None:
    """Raise InputError for gaps, InputTypeError for labels that have no order. given: before numpy made texts of it."""
    for k, label in enumerate(given):
        if is_gap(label):
            raise InputError(
                what="a label is missing", where=f"y[{k}]", got=f"{label}", mend="leave the sequence out"
            )
    try:
        sorted(set(labels))
    except TypeError as error:
        kinds = dict.fromkeys(type(label).__name__ for label in labels)
        raise InputTypeError(
            what="labels are of one kind", where="y", got=", ".join(kinds), expected="texts or whole numbers",
            mend="make texts of them",
        ) from error  # fmt: skip


def _warn_of_a_column() -> None:
    words, kind = "A column-vector y was passed when a 1d array was expected", UserWarning
    if "sklearn" in sys.modules:
        from sklearn.exceptions import DataConversionWarning as kind
    warnings.warn(words, kind, stacklevel=4)
