"""A table for a terminal or, as markdown, for the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Sheet:
    """A title, column names, rows of cells, and remarks below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...] = ()

    def show(self, *, markdown: bool) -> None:
        if markdown:
            print(f"\n{self.title}\n")
            for cells in (self.columns, ("---",) * len(self.columns), *self.rows):
                print(f"| {' | '.join(cells)} |")
            print("".join(f"\n{remark}" for remark in self.remarks), flush=True)
            return
        table = Table(title=self.title)
        for name in self.columns:
            table.add_column(name)
        for cells in self.rows:
            table.add_row(*cells)
        console = Console(width=190)
        console.print(table)
        for remark in self.remarks:
            console.print(remark)


def spread(values: Sequence[float], form: str, unit: str = "") -> str:
    """Median, and the range where there is more than one value."""
    middle = format(statistics.median(values), form) + unit
    return (
        middle
        if len(values) == 1
        else f"{middle} ({format(min(values), form)}–{format(max(values), form)})"
    )
