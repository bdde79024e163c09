"""A page of tables of which some rows are measured anew, and the others stay as they were."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

NOT_RUN = "not run"


@dataclass(frozen=True)
class Row:
    """cells: the first names the row. known: whether it was measured; otherwise what the page had is left."""

    cells: tuple[str, ...]
    known: bool = True

    def __str__(self) -> str:
        return f"| {' | '.join(self.cells)} |\n"


class Page:
    """before: the page as it was. again: whether any row of it stands in a table that was made."""

    def __init__(self, before: str) -> None:
        self.before, self.again = before.splitlines(keepends=True), False

    def table(self, head: str, rows: Iterable[Row]) -> str:
        """head: what stands before the rows, its last two lines those of the table; "" where there are none. Rows that
        are not known, and those of which nobody knows any more, are as they were."""
        *_, columns, _ = head.splitlines(keepends=True)
        found, rows = self._rows(columns), list(rows)
        made = [str(row) if row.known else found.get(row.cells[0], str(row)) for row in rows]
        names = {row.cells[0] for row in rows}
        left = [line for name, line in found.items() if name not in names]
        self.again |= bool(left) or any(not row.known and row.cells[0] in found for row in rows)
        return head + "".join(made + left) if made or left else ""

    def lines(self, beginning: str) -> list[str]:
        """Lines of the page as it was that begin so."""
        return [line for line in self.before if line.startswith(beginning)]

    def _rows(self, columns: str) -> dict[str, str]:
        if columns not in self.before:
            return {}
        found = {}
        for line in self.before[self.before.index(columns) + 2 :]:
            if not line.startswith("|"):
                break
            found[line.split(" | ")[0].removeprefix("| ")] = line
        return found


def spread(values: Sequence[float], said: Callable[[float], str]) -> str:
    """The mean, and in brackets the lowest and the highest; NOT_RUN of none."""
    if not values:
        return NOT_RUN
    ends = f" ({said(min(values))} … {said(max(values))})" if len(values) > 1 else ""
    return said(statistics.mean(values)) + ends
