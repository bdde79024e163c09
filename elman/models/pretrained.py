"""A model as a folder that others read: `config.json` and `model.safetensors`, laid out as huggingface_hub does.

config.json         the arguments of the model's constructor, and the format's version
model.safetensors   its weights; of tensors that are one (tied weights), the first name
tokenizer.json      if there is one: Hugging Face's own format

A run folder is read as one too. Whoever wrote it: sizes are held against the header of the weights before anything is
made, and code that it names is not run (`find.allow`).
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elman.data.files import read_file, refusing
from elman.data.schema import Check, Odd, file_name, from_json, maybe, number, record, text, truth, whole
from elman.errors import DataError, InputError
from elman.models.find import SHIPPED, allow, names_of
from elman.training import CONFIG_SIZE, FORMAT, shapes_in, weights_in, write_atomically

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"

SIZE = 2**24  # of a vocabulary or a layer


def _cell(value: Any, place: str) -> None:
    """A name; or several, a cell for each layer, all of them elman's own."""
    if not isinstance(value, list):
        return file_name(value, place)
    for name in value:
        if not isinstance(name, str) or name not in SHIPPED:
            raise Odd(place, str(name)[:100], f"of several cells, each one of {', '.join(SHIPPED)}")
    return None


# (settings, shapes of the weights that are there) -> those that the settings say
Shapes = Callable[[dict[str, Any], dict[str, list[int]]], Mapping[str, list[int] | None]]

# Of a stack: what the settings of any model hold. A model adds its own.
STACK: dict[str, Check] = {
    "format": whole(1, FORMAT),
    "cell": _cell,
    "cell_digest": maybe(text(64)),
    "hidden": whole(1, SIZE),
    "layers": whole(1, 2**16),
    "dropout": number(0, 1),
    "residual": truth,
    "norm": truth,
    "both": truth,
}
_MEND = "restore the files of one model; a cell of your own must not have changed"


def save(
    folder: str | Path, settings: dict[str, Any], model: nn.Module, files: Mapping[str, bytes] | None = None
) -> None:
    """Write a model. files: what stands beside its weights. Each is written beside and renamed, the configuration last.

    Raises InputError where a cell has no name by which it would be found again.
    """
    from safetensors.torch import save as to_bytes

    expect_names(settings["cell"])
    folder, weights, seen = Path(folder), {}, set()
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen or value.numel() == 0:
            weights[name] = value.detach().cpu().contiguous()
        seen.add(value.data_ptr())
    config = {"format": FORMAT, **settings}
    with refusing("the model cannot be saved", folder, "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, to_bytes(weights, metadata={"format": "pt"}))
        for name, content in (files or {}).items():
            write_atomically(folder / name, content)
        write_atomically(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def find(name: str | Path) -> Path:
    """The folder of that name, or of a model on the Hugging Face Hub if huggingface_hub is installed."""
    with contextlib.suppress(OSError):  # a name that is too long is no folder
        if Path(name).is_dir():
            return Path(name)
    return _downloaded(str(name))


# task -> (whose run it is, the class that opens it, the file that only it has beside the weights)
_MODELS = {
    "lm": ("a language model", "LanguageModel", TOKENIZER),
    "tag": ("a tagger", "Tagger", "lexicon.json"),
    "classify": ("a classifier", "Classifier", "labels.json"),
    "autoencode": ("an auto-encoder", "Autoencoder", "sequences.json"),
    "forecast": ("a forecaster", "Forecaster", "series.json"),
}


def settings_in(folder: Path, task: str) -> dict[str, Any]:
    """The configuration of a folder with a model of a task. Raises DataError, also for a model of another one."""
    path, mend = folder / CONFIG, "give what save_pretrained was given"
    raw = read_file(path, CONFIG_SIZE, "the configuration", mend)
    config = from_json(raw, record({}), what="there is no model that can be read", where=path, mend=mend)
    beside = [name for name, (_, _, file) in _MODELS.items() if (folder / file).is_file()]
    there = config.get("task", task if task in beside or not beside else beside[0])
    if there in _MODELS and there != task:
        whose, opens, _ = _MODELS[there]
        raise DataError(
            what=f"this is {whose}'s run", where=folder, got=whose, expected=_MODELS[task][0],
            mend=f"{opens}.from_pretrained({str(folder)!r}) opens it",
        )  # fmt: skip
    return config


def load(
    cls: Callable[..., Any], kind: str, needed: Mapping[str, Check], shapes: Shapes, config: dict[str, Any],
    folder: Path, *, trust: bool = False, cell: str | None = None, notify: Callable[[str], None] | None = None,
    known: Mapping[str, Check] | None = None,
) -> Any:  # fmt: skip
    """The one way from files to a model, whoever wrote them: `cls(**settings)` with the weights of a folder.

    kind: what it is, "a language model". config: what the folder says. needed, known: checks of its settings besides
    those of `STACK`; known ones may be missing. shapes: of the settings, by name, the weights whose sizes they say;
    None for one that may be missing. trust, cell, notify: see `LanguageModel.from_pretrained`.

    Nothing is made before the sizes are those of the weights, so that it takes no more memory than they do. Raises
    DataError where the two do not fit together, and for weights that are no numbers.
    """
    where = folder / CONFIG
    try:
        record(needed, {**STACK, **(known or {})})(config, "")
    except Odd as odd:
        newer = "the model was written by another version of elman"
        raise DataError(
            what=newer if odd.place == "format" else f"this is no configuration of {kind}",
            where=f"{where}, {odd.place}", got=odd.got, expected=odd.expected, mend=_MEND,
        ) from odd  # fmt: skip
    settings = {
        name: config.get(name, argument.default)
        for name, argument in inspect.signature(cls).parameters.items()
        if name in config or argument.default is not argument.empty
    }
    settings["cell"] = cell or settings["cell"]
    settings["layers"] = settings["layers"] or len(names_of(settings["cell"]))
    for name in names_of(settings["cell"]):
        allow(name, config.get("cell_digest"), trust=trust, notify=notify, where=where)
    there = shapes_in(folder / WEIGHTS)
    return _opened(lambda: cls(**settings), settings, folder, there, shapes(settings, there))


def _opened(
    make: Callable[[], nn.Module], settings: dict[str, Any], folder: Path, shapes: dict[str, list[int]],
    expected: Mapping[str, list[int] | None],
) -> nn.Module:  # fmt: skip
    for name, shape in expected.items():
        there = shapes.get(name)
        if there != shape:
            raise _unfit(folder, f"{name} of shape {there}" if there else f"no {name}", f"shape {shape}")
    if settings["layers"] > max(len(shapes), 64):  # a cell of one's own may have no weights
        raise _unfit(folder, f"{len(shapes)} weights", f"those of {settings['layers']:,} layers")
    if all(
        name in SHIPPED for name in names_of(settings["cell"])
    ):  # what others construct may be more than its weights
        with torch.device("meta"):
            like = make().state_dict()
        for name, shape in shapes.items():
            if name in like and list(like[name].shape) != shape:
                raise _unfit(folder, f"{name} of shape {shape}", f"shape {list(like[name].shape)}")
        if like.keys() - shapes.keys() - set(expected):
            raise _unfit(
                folder, f"no {', '.join(sorted(like.keys() - shapes.keys()))}"[:200], "all of the model's"
            )
    try:
        model = make()
        _fill(model, weights_in(folder / WEIGHTS), folder)
    except (TypeError, RuntimeError) as error:
        raise _unfit(folder, str(error)[:1000], "weights of this model") from error
    return model.eval()


def expect_names(cell: Any) -> None:
    """Raise InputError where the cells of a model have no names by which they would be found again."""
    names = names_of(cell)
    for k, name in enumerate(names):
        if name is None or (len(names) > 1 and name not in SHIPPED):
            raise InputError(
                what="the model cannot be saved: its cell has no name by which it is found again" if name is None
                else "the model cannot be saved: of a list of cells, all are elman's own, or none has a name",
                where="cell", got=f"layer {k}: {name or 'a cell by itself'}",
                expected='"path.py:Class", or a class of a module that can be imported, for all layers',
                mend='write the class into a file and construct the model with its name, cell="path.py:Class"; '
                "or save model.state_dict() and construct the model yourself",
            )  # fmt: skip


def _fill(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Load weights, in which tensors that are one have one name. Raises DataError where they are another model's."""
    own, first = model.state_dict(), {}
    for name, value in weights.items():
        one = first.setdefault(own[name].data_ptr(), name) if name in own and value.numel() else name
        if one != name and not torch.equal(weights[one], value):
            raise _unfit(folder, f"{one} other than {name}", "one tensor: they are tied")
        if name in own and _kind(value) != _kind(own[name]):
            raise _unfit(folder, f"{name} of {value.dtype}", str(own[name].dtype))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    there = {own[name].data_ptr() for name in weights if name in own}
    missing = [name for name in missing if own[name].data_ptr() not in there]
    if missing or unexpected:
        raise _unfit(folder, f"unknown: {unexpected}" if unexpected else f"not there: {missing}", None)
    for name, value in model.named_parameters():
        if not torch.isfinite(value).all():
            raise DataError(
                what="the weights are no numbers", where=folder / WEIGHTS, got=f"{name} holds NaN or infinity",
                mend="restore the file, or train again",
            )  # fmt: skip


def _kind(value: Tensor) -> object:
    """What a tensor's numbers are, whatever their precision."""
    return "floating point" if value.is_floating_point() else value.dtype


def _unfit(folder: Path, got: str, expected: str | None) -> DataError:
    return DataError(
        what="the configuration and the weights do not fit together: they are of another model, or one was changed",
        where=folder, got=got, expected=expected, mend=_MEND,
    )  # fmt: skip


def _downloaded(name: str) -> Path:
    """The folder of a model on the Hub."""
    problem: object = None
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(name, allow_patterns=["*.json", WEIGHTS]))
        except ImportError:
            problem = (
                "to ask the Hugging Face Hub for a model of that name, huggingface_hub has to be installed"
            )
        except Exception as error:  # whatever the network or the Hub says
            problem = f"the Hugging Face Hub, asked for a model of that name: {type(error).__name__}: {error}"
    raise InputError(
        what="there is no such folder",
        where=name,
        got=problem,
        mend="give a folder, or the name of a model on the Hub",
    )
