"""What a page of any model is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from elman.data.words import plain
from elman.errors import NotSupported
from elman.export.step.flat import Flat
from elman.export.step.single import Single
from elman.recurrent import Bidirectional
from elman.trace.initial import initial_state


@dataclass(frozen=True)
class Content:
    """programs: steps by name. arrays: further ones that its script reads, by name; those of two dimensions may be kept
    in fewer bits. script: its file. body: HTML. about: what its script knows."""

    programs: dict[str, Flat]
    arrays: dict[str, Tensor]
    script: str
    body: str
    about: dict[str, Any]


def facts(module: nn.Module, words: str, more: str = "") -> str:
    """A paragraph: what the model is, in `words`, how large it is, and more."""
    count = sum(p.numel() for p in module.parameters())
    settings: Any = module.settings
    cell = settings.get("cell")
    kind = cell if isinstance(cell, str) else "recurrent"
    layers = f"{settings['layers']} layer" + ("s" if settings["layers"] > 1 else "")
    return (
        f'<p class="soft">{words} of {count:,} weights: {plain(kind)}, {layers} of {settings["hidden"]} units. '
        f"It runs in this page; what you type stays here.{more}</p>\n"
    )


class Normed(nn.Module):
    """A cell behind a norm."""

    def __init__(self, norm: nn.Module, cell: nn.Module) -> None:
        super().__init__()
        self.norm, self.cell = norm, cell

    def forward(self, x: Tensor, state: Any) -> Any:
        return self.cell(self.norm(x), state)


def layers_of(stack: Any, x: Tensor, name: str) -> tuple[dict[str, Flat], list[dict[str, Any]], int]:
    """(the step of each layer in each direction, what the page knows of the layers, the width of what they give)."""
    programs, layers, width = {}, [], x.shape[1]
    for k in range(len(stack)):
        layer = stack.part(k)
        one = [layer.forward_layer, layer.backward_layer] if isinstance(layer, Bidirectional) else [layer]
        names = []
        for direction, own in zip("fb", one, strict=False):
            state = initial_state(own.cell, x)
            cell = (
                Normed(stack.norms_between()[k - 1], own.cell).eval()
                if k and len(stack.norms_between())
                else own.cell
            )
            flat = Flat.of(Single.of(type(own.cell).__name__, cell, x, state))
            if flat.ids or flat.kept:
                raise NotSupported(
                    what="a layer of whole numbers has no form in a page", where=type(own.cell).__name__
                )
            names.append(f"{name}_{direction}{k}")
            programs[names[-1]] = flat
        flats = [programs[one] for one in names]
        residual = bool(stack.residual and stack.residual[k])
        layers.append({"names": names, "width": flats[0].states[0].width, "residual": residual})
        width = sum(flat.outs for flat in flats)
        x = x.new_zeros(1, width)
    return programs, layers, width
