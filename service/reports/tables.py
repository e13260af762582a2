"""Names with their values, and frames, as tables in a terminal."""

from __future__ import annotations

import math
from typing import TypeAlias

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table

Facts: TypeAlias = list[tuple[str, str]]
"""Names and values, in the order in which they are shown."""


def show_facts(console: Console, title: str, facts: Facts) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, value in facts:
        table.add_row(name, value)
    console.print(table)


def show_frame(console: Console, frame: pd.DataFrame, title: str, most: int) -> None:
    """A frame's first rows as a table."""
    rows = len(frame)
    shown = f"{most} of {rows}" if rows > most else str(rows)
    heading = f"{title} ({shown})"
    table = Table(title=heading, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in frame.columns:
        justify: JustifyMethod = "left" if frame[column].dtype == object else "right"
        table.add_column(str(column), overflow="fold", justify=justify)
    for values in frame.head(most).itertuples(index=False):
        table.add_row(*map(cell, values))
    console.print(table)


def cell(value: object) -> str:
    """A value for people: four digits, a dash for none."""
    if value is None or value is pd.NA:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.4g}"
