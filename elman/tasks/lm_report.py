"""A language model's part of the report of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from elman.data.schema import each, number, truth, whole
from elman.report import Curve, Part, Point, Record, finite, lines
from elman.training.measure import percent

_figure = number(-1e30, 1e30, finite=False)
_DETAILS = {
    "nats_per_symbol": _figure,
    "bits_per_character": _figure,
    "symbols": whole(0, 10**18),
    "unknown": whole(0, 10**18),
    "whole": truth,
}


def _facts(record: Record) -> dict[str, str]:
    measured = record.measured if {"nats_per_symbol", "symbols", "unknown"} <= record.measured.keys() else {}
    # The exact figure, as `elman evaluate` says it; before the end of a run there are looks only.
    nats = measured["nats_per_symbol"] if measured else record.best.value if record.best else math.nan
    part = "" if measured else ", best look"
    if measured and not measured.get("whole", True):
        part = f", first {measured['symbols']:,.0f}"
    facts = {
        f"held out{part}, nats per symbol": f"{nats:.4f}" if nats == nats else "–",
        "bits per symbol": f"{nats / math.log(2):.4f}" if nats == nats else "–",
    }
    if "bits_per_character" in measured:
        facts["bits per character"] = f"{measured['bits_per_character']:.4f}"
        if facts["bits per character"] == facts["bits per symbol"]:  # symbols are characters
            del facts["bits per symbol"]
    if measured:
        facts["of its symbols are unknown"] = percent(measured["unknown"] / max(measured["symbols"], 1), 2)
    return facts


def _sections(record: Record) -> dict[str, str]:
    return {"How far back it learns": _reach(finite(record.more.get("reach", [])))}


def _reach(reach: Sequence[float]) -> str:
    points = [Point(k, value) for k, value in enumerate(reach, 1) if math.isfinite(value)]
    figure = lines([Curve("gradient", points, "first")], x="k, steps back", y="‖∂L(t)/∂h(t−k)‖", log=True)
    first = points[0].value if points else 0.0
    if not first:
        return figure
    clauses = []
    for share, name in ((0.1, "a tenth"), (0.01, "a hundredth")):
        # Of good, not for once: the norm may rise again.
        after = max((p.step for p in points if p.value > share * first), default=0)
        clauses.append(f"below {name} of that from k = {after + 1:.0f}" if after < len(points) else
                    f"not below {name} of that within {len(points)} steps")  # fmt: skip
    words = (
        f"How much the loss of one step still hangs on the state k steps before it: {first:.2g} at k = 1, "
    )
    return figure + f'<p class="note">{words}{", ".join(clauses)}.</p>'


PART = Part(
    unit="symbols", loss="nats per symbol", samples="What it wrote while it learned", details=_DETAILS,
    logged={"reach": each(_figure, 10_000)}, facts=_facts, sections=_sections,
)  # fmt: skip
