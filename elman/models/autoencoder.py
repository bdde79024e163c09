"""The auto-encoder: a sequence becomes a vector, and the vector becomes the sequence again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from elman.data.batches import Batches
from elman.data.files import read_file
from elman.data.invented import Invented, written
from elman.data.schema import Odd, number, truth, whole
from elman.data.sequences import LONGEST, UNKNOWN, Form
from elman.errors import DataError, InputError, StateError
from elman.models import pretrained
from elman.models.asked import expect_seed
from elman.models.autoencoding import AutoencoderNetwork, together
from elman.models.evaluating import evaluating
from elman.models.stack import Cells, learning_rate
from elman.plan.explain import Explanation
from elman.training import Loss, Measure, Step, Training, Validation, fitted

FORM = "sequences.json"  # beside the weights
DECAY, AVERAGE = 0.01, 0.998  # of AdamW; of the mean of the weights that is kept
LOOKED_AT = 400  # sequences of a quick look
_SURE = 1e-5  # of a figure, what a nat more is worth: less than one sequence of any number that is looked at
_MEND = "restore the files of one model"
_NEEDED = {"symbols": whole(0, pretrained.SIZE), "channels": whole(0, pretrained.SIZE), "binary": truth}
_KNOWN = {
    "embedding": whole(1, pretrained.SIZE),
    "noise": number(0, 1),
    "teacher": number(0, 1),
    "longest": whole(1, 10 * LONGEST),
}


class Autoencoder:
    """Sequences -> vectors -> sequences.

        model = Autoencoder(hidden=128, minutes=5).fit(names)
        z = model.encode(["Albers", "Moreau"])       # [2, 128]
        model.decode(z)                              # ["Albers", "Moreau"]
        model.interpolate("Albers", "Moreau", 5)     # five names, from the one to the other
        model.score(others)                          # the share that comes back exactly

    Sequences are texts, lists of symbols (strings), or arrays [T, I] of numbers, or of 0 and 1 alone such as the rolls
    of a player piano; all of one kind.

    hidden: H, the width of a vector. cell, layers, embedding, dropout, residual, norm, noise, teacher: see
    `AutoencoderNetwork`. plain: learn from what is given alone, without the invented sequences of
    `elman.data.invented`. steps, or minutes by the clock: of training. batch: sequences in a step, the invented ones
    included. lr: highest learning rate; None: by cell and width. patience: stop after so many looks, of which there
    are 16, without a better one. seed: of everything that is drawn.

    network: the trained `AutoencoderNetwork`, once there is one.
    """

    def __init__(
        self, hidden: int = 128, *, cell: Cells = "gru", layers: int | None = None, embedding: int = 64,
        dropout: float = 0.0, residual: bool = False, norm: bool = False, noise: float = 0.0, teacher: float = 1.0,
        plain: bool = False, steps: int | None = None, minutes: float | None = None, batch: int = 64,
        lr: float | None = None, patience: int | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.model = {
            "cell": cell, "hidden": hidden, "layers": layers, "embedding": embedding, "dropout": dropout,
            "residual": residual, "norm": norm, "noise": noise, "teacher": teacher,
        }  # fmt: skip
        self.plain, self.batch, self.lr, self.patience, self.seed = plain, batch, lr, patience, seed
        self.steps, self.minutes = steps, 5.0 if steps is None and minutes is None else minutes
        self._form: Form | None = None
        self._network: AutoencoderNetwork | None = None

    # --- learning ----------------------------------------------------------------------------------------------------

    def fit(
        self, sequences: Sequence[Any], *, valid: Sequence[Any] | None = None, loss: Loss | None = None,
        watch: Callable[[Step | Validation], None] = lambda event: None, progress: bool | None = None,
    ) -> Autoencoder:  # fmt: skip
        """Learn from sequences; returns itself.

        valid: what the best weights are chosen by; None: one in twenty of them, 10 … 400, which are then not learnt
        from. loss: what is minimised, (network, batch of (x, lengths), None) -> (loss, None). watch: is shown each step
        and each look. progress: a bar on standard error with the time left; None: where that is a terminal.

        Raises InputError for what are no sequences of one kind.
        """
        expect_seed(self.seed)
        with _complaining():
            form = Form.of(sequences)
            x = [form.encode(one, str(i)) for i, one in enumerate(sequences)]
            looked_at = [form.encode(one, str(i)) for i, one in enumerate(valid or ())]
        if not looked_at:
            x, looked_at = parted(x, looks(len(x)), self.seed)
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            network = network_of(form, x, **self.model)
            training = Training(
                network, batches_of(form, x, self.batch, self.seed, plain=self.plain), loss=loss, steps=self.steps,
                minutes=self.minutes, lr=self.lr or learning_rate(network.encoder, network.settings["hidden"]),
                weight_decay=DECAY, average=AVERAGE, seed=self.seed,
            )  # fmt: skip
            chosen_by = looked_at[:LOOKED_AT] or x[:LOOKED_AT]
            fitted(
                training,
                lambda: looked(network, chosen_by),
                patience=self.patience,
                watch=watch,
                progress=progress,
            )
        self._form, self._network = form, network.eval()
        return self

    # --- what it is for ----------------------------------------------------------------------------------------------

    def encode(self, sequences: Sequence[Any]) -> Tensor:
        """The vectors [N, H] of N sequences. A symbol that was not there in training is read as unknown."""
        return encoded(self.network, self._encoded(sequences))

    def decode(self, z: Tensor, longest: int | None = None) -> list[Any]:
        """The sequences of vectors [N, H]. longest: steps after which one ends; None: twice the longest learnt from."""
        z, width = torch.as_tensor(z), self.network.settings["hidden"]
        if z.ndim != 2 or z.shape[1] != width or not z.is_floating_point():
            raise InputError(
                what="sequences are made of vectors", where="decode(z)", got=f"{z.dtype} {list(z.shape)}",
                expected=f"floats [N, {width}]", mend="encode gives them",
            )  # fmt: skip
        return [self.form.decode(one) for one in self.network.decode(z, longest)]

    def reconstruct(self, sequences: Sequence[Any]) -> list[Any]:
        """What comes back of sequences that go through their vectors."""
        return self.decode(self.encode(sequences))

    def interpolate(self, a: Any, b: Any, count: int = 7) -> list[Any]:
        """`count` sequences on the straight line between the vectors of two, both ends included."""
        if count < 2:
            raise InputError(what="both ends are included", where="count", got=count, expected="2 or more")
        first, last = self.encode([a, b])
        share = torch.linspace(0, 1, count, dtype=first.dtype)[:, None]
        return self.decode(first + share * (last - first))

    def score(self, sequences: Sequence[Any]) -> float:
        """The share of sequences that come back exactly, 0 … 1; of arrays of numbers, R²: 1 - the mean squared error in
        variances."""
        figures = self.evaluate(sequences)
        return figures.exact if self.form.size or self.form.binary else 1 - figures.error**2

    def evaluate(self, sequences: Sequence[Any]) -> Compared:
        """Sequences beside what comes back of them."""
        return compared(self.network, self._encoded(sequences))

    # --- keeping -----------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder. Raises InputError where a cell has no name by which it would be found again."""
        pretrained.save(folder, self.network.settings, self.network, {FORM: self.form.to_json()})

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, trust: bool = False, cell: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Autoencoder:  # fmt: skip
        """The model of a folder by `save_pretrained`, or of a run folder: see `LanguageModel.from_pretrained`."""
        folder = pretrained.find(name)
        form, network = opened(
            pretrained.settings_in(folder, "autoencode"), folder, trust=trust, cell=cell, notify=notify
        )
        autoencoder = cls()
        autoencoder.model = {
            name: network.settings.get(name, value) for name, value in autoencoder.model.items()
        }
        autoencoder._form, autoencoder._network = form, network
        return autoencoder

    @property
    def network(self) -> AutoencoderNetwork:
        return self._there(self._network)

    def explain(self) -> Explanation:
        """What of its recurrences runs once, before, in and after the loop; after a call. See `elman.explain`."""
        return self.network.explain()

    @property
    def form(self) -> Form:
        """What its sequences are made of."""
        return self._there(self._form)

    def _there(self, part: Any) -> Any:
        if part is None:
            raise StateError(
                what="the auto-encoder has learnt nothing yet", where="Autoencoder", mend="call fit first"
            )
        return part

    def _encoded(self, sequences: Sequence[Any]) -> list[Tensor]:
        form = self.form
        with _complaining():
            return [form.encode(one, str(i)) for i, one in enumerate(sequences)]


@contextmanager
def _complaining() -> Iterator[None]:
    """Of what is no sequence, in the words of a call."""
    try:
        yield
    except Odd as odd:
        raise InputError(
            what="the sequences are not of one kind, or are none", where=f"sequences[{odd.place}]" if odd.place else
            "sequences", got=odd.got, expected=odd.expected,
            mend="give texts, lists of strings, or arrays [T, I] of finite numbers, none of them empty",
        ) from odd  # fmt: skip


# --- what an estimator and a task have in common ----------------------------------------------------------------------


def network_of(form: Form, x: Sequence[Tensor], **how: Any) -> AutoencoderNetwork:
    """A network for sequences of a form, such as x."""
    longest = 2 * max(map(len, x))
    network = AutoencoderNetwork(form.size, form.channels, form.binary, longest=longest, **how)
    network.standardise(x)
    return network


def batches_of(form: Form, x: Sequence[Tensor], batch: int, seed: int, *, plain: bool = False) -> Batches:
    """What is learnt from. plain: without what is invented."""
    if plain:
        return written(x, batch, seed)
    return Invented(x, batch, seed, (UNKNOWN + 1, form.size - 1) if form.size else None)


def looks(count: int) -> int:
    """Of so many sequences, how many are put aside to choose the best weights by."""
    return min(LOOKED_AT, max(count // 20, min(10, count // 4)))


def parted(x: Sequence[Any], count: int, seed: int) -> tuple[list[Any], list[Any]]:
    """(the others, `count` of them), drawn."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).tolist()
    return [x[i] for i in sorted(order[count:])], [x[i] for i in order[:count]]


def _batch(x: Sequence[Tensor], rows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(x[i]) for i in rows], device=device)
    return pad_sequence([x[i] for i in rows]).to(device), lengths


@torch.no_grad()
def encoded(network: AutoencoderNetwork, x: Sequence[Tensor]) -> Tensor:
    """The vectors [N, H] of sequences."""
    z = network.condition.weight.new_empty(len(x), network.settings["hidden"])
    with evaluating(network):
        for rows in together(list(map(len, x))):
            z[rows] = network.encode(*_batch(x, rows, z.device))
    return z


@dataclass(frozen=True)
class Compared:
    """Sequences beside what came back of them.

    exact: the share that came back exactly. symbols: the share of symbols (of frames) that did, each in its place.
    by_length: length -> (exact ones, all). error: of arrays of numbers, root mean square, in standard deviations.
    pairs: (given, made), as `Form.encode` has them.
    """

    exact: float
    symbols: float
    by_length: dict[int, tuple[int, int]]
    error: float
    pairs: list[tuple[Tensor, Tensor]]
    numbers: bool = False

    @property
    def measure(self) -> Measure:
        if self.numbers:
            return Measure(self.error, "error", "standard deviations")
        return Measure(self.exact, "exact reconstruction", "%", lower_is_better=False)


def compared(network: AutoencoderNetwork, x: Sequence[Tensor]) -> Compared:
    """Sequences beside what the network makes of their vectors, by itself."""
    if not len(x):
        raise InputError(what="there is nothing to measure on", where="sequences", expected="at least one")
    z = encoded(network, x)
    decoded: dict[int, Tensor] = {}
    for rows in together(list(map(len, x))):
        # One step more than there are: it has to end by itself.
        decoded |= dict(zip(rows, network.decode(z[rows], len(x[rows[0]]) + 1), strict=True))
    outputs = [decoded[i].cpu() for i in range(len(x))]
    by_length: dict[int, tuple[int, int]] = {}
    same = most = 0
    square, frames = 0.0, 0
    for given, own in zip(x, outputs, strict=True):
        both = min(len(given), len(own))
        right = given[:both] == own[:both]
        right = int((right if right.ndim == 1 else right.all(1)).sum())
        if network.symbols:  # what it does not know, it cannot have read
            right -= int(((given[:both] == own[:both]) & (given[:both] == UNKNOWN)).sum())
        exact = len(own) == len(given) == right
        good, count = by_length.get(len(given), (0, 0))
        by_length[len(given)] = (good + exact, count + 1)
        same, most = same + right, most + max(len(given), len(own))
        if network.channels and not network.binary:
            mean, scale = network.mean.cpu(), network.scale.cpu()
            off = (given - mean) / scale
            off[:both] -= (own[:both] - mean) / scale
            square, frames = square + float(off.square().sum()), frames + off.numel()
    exact = sum(good for good, _ in by_length.values()) / len(x)
    numbers = bool(network.channels and not network.binary)
    error = (square / max(frames, 1)) ** 0.5
    return Compared(
        exact, same / max(most, 1), dict(sorted(by_length.items())), error, list(zip(x, outputs, strict=True)), numbers
    )  # fmt: skip


@torch.no_grad()
def looked(network: AutoencoderNetwork, x: Sequence[Tensor]) -> Measure:
    """`compared`'s figure, by which the best weights are chosen: of equally exact ones those that are surer."""
    measure = compared(network, x).measure
    if measure.lower_is_better:
        return measure
    device = network.condition.weight.device
    counts, nats = [len(one) + 1 for one in x], 0.0
    with evaluating(network):
        for rows in together(counts):
            mean, _ = network.loss(*_batch(x, rows, device))
            nats += float(mean) * sum(counts[i] for i in rows) / sum(counts)
    return replace(measure, value=measure.value * (1 - _SURE * min(nats, 10.0)))


def opened(config: dict[str, Any], folder: Path, **opening: Any) -> tuple[Form, AutoencoderNetwork]:
    """The form and the network of a folder, whoever wrote it. Raises DataError and InputError."""
    path = folder / FORM
    try:
        form = Form.from_json(read_file(path, 2**25, "what its sequences are made of", _MEND))
    except Odd as odd:
        raise DataError(
            what="this does not say what sequences are made of", where=f"{path}, {odd.place}", got=odd.got,
            expected=odd.expected, mend=_MEND,
        ) from odd  # fmt: skip
    network = pretrained.load(
        AutoencoderNetwork, "an auto-encoder", _NEEDED, _shapes, config, folder, known=_KNOWN, **opening
    )
    if (network.symbols, network.channels, network.binary) != (form.size, form.channels, form.binary):
        raise DataError(
            what="the symbols and the model are not of one run", where=path,
            got=f"{form.size} symbols, {form.channels} channels",
            expected=f"{network.symbols} symbols, {network.channels} channels", mend=_MEND,
        )  # fmt: skip
    return form, network


def _shapes(settings: dict[str, Any], there: dict[str, list[int]]) -> dict[str, list[int] | None]:
    width, out = settings["embedding"], settings["symbols"] or settings["channels"] + 1
    read = [settings["symbols"], width] if settings["symbols"] else [width, settings["channels"]]
    return {
        "condition.weight": [width, settings["hidden"]],
        "readout.weight": [out, settings["hidden"]],
        "read.weight": read,
        "written.weight": read,
    }
