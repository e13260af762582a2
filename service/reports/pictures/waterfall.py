"""One row of a table: from f at its baseline to f at the row, feature by feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from integrand.schemas.tables import CONVERGED
from integrand.service.reports.pictures.style import (
    AGAINST,
    FOR,
    GREY,
    INK,
    axes,
    caption,
    figure,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 10
OTHERS = "{} other features"


@dataclass(frozen=True)
class Step:
    """One bar: what it is of, where it starts and how far it goes."""

    label: str
    start: float
    size: float
    is_rest: bool = False


@dataclass(frozen=True)
class Waterfall:
    """Bars from the bottom up, the smallest first.

    uncertain  most that one attribution may be off by: the row's error estimate times ‖a‖₁
    """

    title: str
    steps: tuple[Step, ...]
    f_baseline: float
    f_input: float
    uncertain: float
    certified: bool


def waterfall_of(
    record: pd.Series[Any], largest: pd.DataFrame, baseline: str, most: int = MOST
) -> Waterfall:
    """Of an output row and its attributions, the largest first: beyond `most` bars the rest is
    one.
    """
    values = largest["attribution"].to_numpy(float)
    names = largest["feature"].tolist()
    shown = len(names) if len(names) <= most else most - 1
    bars = [(name, float(a), False) for name, a in zip(names[:shown], values[:shown], strict=True)]
    if shown < len(names):
        label = OTHERS.format(len(names) - shown)
        bars.append((label, float(values[shown:].sum()), True))
    steps, place = [], float(record["f_baseline"])
    for label, size, is_rest in reversed(bars):
        steps.append(Step(label, place, size, is_rest))
        place += size
    error = float(record["error_estimate"])
    target = "" if pd.isna(record["target"]) else f", target {record['target']}"
    return Waterfall(
        title=f"row {record['row_id']}{target}: {record['status']}, against {baseline}",
        steps=tuple(steps),
        f_baseline=float(record["f_baseline"]),
        f_input=float(record["f_input"]),
        uncertain=error * float(np.abs(values).sum()) if np.isfinite(error) else np.nan,
        certified=record["status"] in CONVERGED,
    )


def draw_waterfall(shown: Waterfall) -> Figure:
    """Red pushes f up and blue down; bars of rows that are not certified are hollow."""
    made = figure(6.4, 1.5 + 0.32 * len(shown.steps))
    plot = axes(made)
    for place, step in enumerate(shown.steps):
        colour = GREY if step.is_rest else FOR if step.size >= 0 else AGAINST
        fill = colour if shown.certified else "none"
        plot.barh(place, step.size, left=step.start, height=0.62, color=fill, edgecolor=colour)
        end = step.start + step.size
        if np.isfinite(shown.uncertain):
            plot.errorbar(end, place, xerr=shown.uncertain, color=INK, lw=0.8, capsize=2)
        aside = "left" if step.size >= 0 else "right"
        plot.annotate(
            f"{step.size:+.3g}",
            (end, place),
            xytext=(5 if step.size >= 0 else -5, 0),
            textcoords="offset points",
            ha=aside,
            va="center",
            fontsize=8,
            color=INK,
        )
    plot.set_yticks(range(len(shown.steps)), [plain(step.label) for step in shown.steps])
    for value, label in ((shown.f_baseline, "f(x')"), (shown.f_input, "f(x)")):
        plot.axvline(value, color=GREY, lw=0.8, ls=":")
        plot.annotate(
            f"{label} = {value:.3g}",
            (value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )
    plot.use_sticky_edges = False  # bars would end at the frame
    plot.margins(x=0.15)
    plot.set_title(plain(shown.title), fontsize=9, pad=18, color=INK)
    caption(made, "whiskers: as far as one attribution may be off, by the row's error estimate")
    return made
