"""A model as a folder that others read: `config.json` and `model.safetensors`, laid out as huggingface_hub does.

config.json         the arguments of the model's constructor
model.safetensors   its weights; of tensors that are one (tied weights), the first name
tokenizer.json      if there is one: Hugging Face's own format
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from elman.data import Tokenizer
from elman.errors import DataError, InputError
from elman.training import write_atomically

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


def save(folder: str | Path, settings: dict[str, Any], model: nn.Module, tokenizer: Tokenizer | None) -> None:
    """Write a model. Each file is written beside and renamed, the configuration last."""
    from safetensors.torch import save as to_bytes

    folder, weights, seen = Path(folder), {}, set()
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen or value.numel() == 0:
            weights[name] = value.detach().cpu().contiguous()
        seen.add(value.data_ptr())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, to_bytes(weights, metadata={"format": "pt"}))
        if tokenizer is not None:
            write_atomically(folder / TOKENIZER, tokenizer.to_json().encode())
        write_atomically(folder / CONFIG, (json.dumps(settings, indent=2) + "\n").encode())
    except OSError as error:
        raise DataError(
            what=f"the model cannot be saved: {error.strerror or error}",
            where=folder,
            mend="choose another folder",
        ) from error


def load(name: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(configuration, weights) of a folder, or of a model on the Hugging Face Hub if huggingface_hub is installed."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    folder = Path(name)
    if not folder.is_dir():
        folder = _downloaded(str(name))
    try:
        return json.loads((folder / CONFIG).read_bytes()), from_bytes((folder / WEIGHTS).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(
            what=f"there is no model that can be read: {error}", where=folder, expected=f"{CONFIG} and {WEIGHTS}",
            mend="give what save_pretrained was given",
        ) from error  # fmt: skip


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


def fill(model: nn.Module, weights: dict[str, Tensor], where: object) -> None:
    """Load weights, in which tensors that are one have one name. Raises DataError where they are another model's."""
    missing, unexpected = model.load_state_dict(weights, strict=False)
    own = model.state_dict()
    there = {own[name].data_ptr() for name in weights if name in own}
    missing = [name for name in missing if own[name].data_ptr() not in there]
    if missing or unexpected:
        raise DataError(
            what="the weights are those of another model", where=where, got=f"unknown: {unexpected}" if unexpected
            else f"not there: {missing}", mend="restore the files of one model",
        )  # fmt: skip
