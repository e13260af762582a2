"""All rows of a table: the features of largest mean |attribution|, a dot for each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from integrand.schemas.tables import CONVERGED, PREFIX
from integrand.service.reports.pictures.style import GREY, INK, VALUES, axes, caption, figure, plain
from integrand.service.reports.pictures.waterfall import MOST, OTHERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
DOTS = 500
"""Rows drawn at most: more hide each other."""
SEED = 0


@dataclass(frozen=True, eq=False)
class Line:
    """One feature: attributions of the rows drawn, and their values' ranks from 0 to 1, NaN where
    there are none; mean |attribution| of all rows.
    """

    label: str
    attributions: Floats
    ranks: Floats
    mean_abs: float


@dataclass(frozen=True, eq=False)
class Swarm:
    """Lines from the top down, the largest first.

    certified  which of the rows drawn are
    rows       how many the means are of
    total      how many the run has
    """

    title: str
    lines: tuple[Line, ...]
    certified: NDArray[np.bool_]
    rows: int
    total: int


def swarm_of(frame: pd.DataFrame, title: str, total: int | None = None, most: int = MOST) -> Swarm:
    """Of output rows with the source's columns beside them. Beyond `most` features the rest is one
    line, of sums, whose dots have no value.
    """
    columns = [name for name in frame.columns if name.startswith(PREFIX)]
    known = frame[frame[columns].notna().all(axis=1)]
    values = known[columns].to_numpy(float)
    mean_abs = np.abs(values).mean(0)
    order = np.argsort(-mean_abs, kind="stable")
    drawn = _some(len(known))
    shown = order if len(order) <= most else order[: most - 1]
    lines = []
    for place in shown:
        name = columns[place].removeprefix(PREFIX)
        ranks = _ranks(known, name)[drawn]
        lines.append(Line(name, values[drawn, place], ranks, float(mean_abs[place])))
    rest = order[len(shown) :]
    if len(rest):
        sums = values[:, rest].sum(1)
        unknown = np.full(len(drawn), np.nan)
        label = OTHERS.format(len(rest))
        lines.append(Line(label, sums[drawn], unknown, float(np.abs(sums).mean())))
    certified = known["status"].isin(CONVERGED).to_numpy()[drawn]
    return Swarm(title, tuple(lines), certified, len(known), total or len(frame))


def _some(count: int) -> NDArray[np.int64]:
    """Numbers of the rows that are drawn, the same every time."""
    if count <= DOTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, DOTS, replace=False))


def _ranks(frame: pd.DataFrame, name: str) -> Floats:
    """Of a feature's values, from 0 to 1; NaN where they are no numbers or not there."""
    column = f"input.{name}" if f"input.{name}" in frame.columns else name
    if column not in frame.columns:
        return np.full(len(frame), np.nan)
    numbers = pd.to_numeric(frame[column], errors="coerce")
    found: Any = (numbers.rank() - 1) / max(1, numbers.notna().sum() - 1)
    return np.asarray(found, float)


def draw_swarm(shown: Swarm) -> Figure:
    """Dots along 0, spread where many rows have one attribution; hollow where a row is not
    certified.
    """
    made = figure(6.8, 1.4 + 0.42 * len(shown.lines))
    plot = axes(made)
    plot.axvline(0, color=GREY, lw=0.8)
    marks = None
    for place, line in enumerate(reversed(shown.lines)):
        heights = place + _spread(line.attributions)
        colours = np.where(np.isnan(line.ranks), 0.5, line.ranks)
        grey = bool(np.isnan(line.ranks).all())
        for sure in (True, False):
            which = shown.certified == sure
            if not which.any():
                continue
            dots = plot.scatter(
                line.attributions[which],
                heights[which],
                c=None if grey else colours[which],
                color=GREY if grey else None,
                cmap=None if grey else VALUES,
                vmin=None if grey else 0,
                vmax=None if grey else 1,
                s=9,
                linewidths=0 if sure else 0.8,
                alpha=0.85,
            )
            if not sure:
                made.draw_without_rendering()  # edges take the colours that values got
                dots.set_edgecolor(dots.get_facecolor())
                dots.set_array(None)
                dots.set_facecolor("none")
            marks = marks if grey or not sure else dots
    labels = [f"{plain(line.label)}\n{line.mean_abs:.3g}" for line in reversed(shown.lines)]
    plot.set_yticks(range(len(shown.lines)), labels)
    plot.set_xlabel("attribution, in units of f", fontsize=8)
    plot.set_title(plain(shown.title), fontsize=9, color=INK)
    if marks is not None:
        bar = made.colorbar(marks, ax=plot, pad=0.02, aspect=30)
        bar.set_ticks([0, 1], labels=["low", "high"])
        bar.set_label("rank of the feature's value", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    drawn = f"{len(shown.certified):,} of {shown.total:,} rows"
    caption(made, f"{drawn}; beside names: mean |attribution| of {shown.rows:,}")
    return made


def _spread(values: Floats, bins: int = 80, reach: float = 0.38) -> Floats:
    """Heights that keep dots of one place apart, alternately above and below."""
    width = np.ptp(values) or 1.0
    cells = ((values - values.min()) / width * bins).astype(int)
    heights = np.zeros(len(values))
    fullest = max(2, int(np.bincount(cells).max(initial=1)))
    for cell in np.unique(cells):
        members = np.flatnonzero(cells == cell)
        number = np.arange(len(members))
        side = np.where(number % 2, 1, -1)
        heights[members] = side * ((number + 1) // 2) * 2 * reach / fullest
    return heights
