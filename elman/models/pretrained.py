"""A model as a folder that others read: `config.json` and `model.safetensors`, laid out as huggingface_hub does.

config.json         the arguments of the model's constructor, and the format's version
model.safetensors   its weights; of tensors that are one (tied weights), the first name
tokenizer.json      if there is one: Hugging Face's own format

A run folder is read as one too. Whoever wrote it: sizes are held against the header of the weights before anything is
made, and code that it names is not run (`find.allow`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elman.data import Tokenizer
from elman.data.files import read_file
from elman.data.schema import Odd, file_name, from_json, maybe, number, record, text, truth, whole
from elman.errors import DataError, InputError
from elman.models.find import SHIPPED
from elman.training import CONFIG_SIZE, FORMAT, shapes_in, weights_in, write_atomically

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"

_SIZE = 2**24  # of a vocabulary or a layer
SETTINGS = record(
    {"vocabulary": whole(1, _SIZE)},
    {
        "format": whole(1, FORMAT),
        "cell": file_name,
        "cell_digest": maybe(text(64)),
        "hidden": whole(1, _SIZE),
        "layers": whole(1, 2**16),
        "embedding": whole(1, _SIZE),
        "dropout": number(0, 1),
        "tie": truth,
        "condition": whole(0, _SIZE),
    },
)
_MEND = "restore the files of one model; a cell of your own must not have changed"


def save(folder: str | Path, settings: dict[str, Any], model: nn.Module, tokenizer: Tokenizer | None) -> None:
    """Write a model. Each file is written beside and renamed, the configuration last."""
    from safetensors.torch import save as to_bytes

    folder, weights, seen = Path(folder), {}, set()
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen or value.numel() == 0:
            weights[name] = value.detach().cpu().contiguous()
        seen.add(value.data_ptr())
    config = {"format": FORMAT, **settings}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, to_bytes(weights, metadata={"format": "pt"}))
        if tokenizer is not None:
            write_atomically(folder / TOKENIZER, tokenizer.to_json().encode())
        write_atomically(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    except OSError as error:
        raise DataError(
            what=f"the model cannot be saved: {error.strerror or error}",
            where=folder,
            mend="choose another folder",
        ) from error


def find(name: str | Path) -> Path:
    """The folder of that name, or of a model on the Hugging Face Hub if huggingface_hub is installed."""
    with contextlib.suppress(OSError):  # a name that is too long is no folder
        if Path(name).is_dir():
            return Path(name)
    return _downloaded(str(name))


def settings_in(folder: Path) -> dict[str, Any]:
    """The configuration of a folder. Raises DataError."""
    path, mend = folder / CONFIG, "give what save_pretrained was given"
    raw = read_file(path, CONFIG_SIZE, "the configuration", mend)
    return from_json(raw, record({}), what="there is no model that can be read", where=path, mend=mend)


def check(config: dict[str, Any], where: Path) -> None:
    """Raise DataError for settings that no model has."""
    try:
        SETTINGS(config, "")
    except Odd as odd:
        newer = odd.place == "format"
        raise DataError(
            what="the model was written by another version of elman" if newer else
            "this is no configuration of a language model", where=f"{where}, {odd.place}", got=odd.got,
            expected=odd.expected, mend=_MEND,
        ) from odd  # fmt: skip


def opened(make: Callable[[], nn.Module], settings: dict[str, Any], folder: Path) -> nn.Module:
    """The model that `make` makes by these settings, with the weights of a folder.

    settings: all of those that have a size. Nothing is made before the sizes are those of the weights, so that it takes
    no more memory than they do. Raises DataError where the two do not fit together, and for weights that are no
    numbers.
    """
    shapes = shapes_in(folder / WEIGHTS)
    expected = {
        "embedding.weight": [settings["vocabulary"], settings["embedding"]],
        "readout.weight": [settings["vocabulary"], settings["hidden"]],
    }
    tied = settings["tie"] and shapes.keys() & expected.keys()  # one of them is both
    if settings["condition"]:
        expected["condition.weight"] = [settings["embedding"], settings["condition"]]
    for name, shape in expected.items():
        there = shapes.get(name, shape if tied and name != "condition.weight" else None)
        if there != shape:
            raise _unfit(folder, f"{name} of shape {there}" if there else f"no {name}", f"shape {shape}")
    if settings["layers"] > max(len(shapes), 64):  # a cell of one's own may have no weights
        raise _unfit(folder, f"{len(shapes)} weights", f"those of {settings['layers']:,} layers")
    if settings["cell"] in SHIPPED:  # what others construct may be more than its weights
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
    problem: object = "no such folder"
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, TOKENIZER]))
        except ImportError:
            problem = "no such folder, and to ask the Hugging Face Hub, huggingface_hub has to be installed"
        except Exception as error:  # whatever the network or the Hub says
            problem = f"no such folder, and the Hugging Face Hub says: {type(error).__name__}: {error}"
    raise InputError(
        what="there is no such model",
        where=name,
        got=problem,
        mend="give a folder, or the name of a model on the Hub",
    )
