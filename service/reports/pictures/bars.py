"""Mean |attribution| of the features of a run, one bar each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from integrand.schemas.tables import PREFIX, places_column
from integrand.service.reports.pictures.style import GREY, INK, axes, caption, figure, plain
from integrand.service.reports.pictures.waterfall import MOST, OTHERS
from integrand.service.runs.frames import attribution_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from integrand.service.runs.query import Run

DARK = "#495057"
"""Of a size, which has no sign: neither red nor blue."""


@dataclass(frozen=True, eq=False)
class Bars:
    """Bars from the top down, the largest first; beyond `most` the rest is the last, summed.

    uncertain  most that the mean of one feature may be off by: the mean of the rows' error
               estimates times ‖a‖₁; NaN where there are none
    """

    title: str
    labels: tuple[str, ...]
    means: NDArray[np.float64]
    has_rest: bool
    uncertain: float


def bars_of(run: Run, title: str, most: int = MOST) -> Bars:
    """Of all rows that have attributions, whatever the shape of inputs. Reads one shard at a
    time.
    """
    features = sum(len(shape.columns) for shape in run.plan.inputs)
    elements = sum(int(np.prod(shape.shape)) for shape in run.plan.inputs)
    found = run.top_features(max(features, elements))
    means = found["mean_abs"].to_numpy(float)
    labels = found["feature"].tolist()
    shown = len(labels) if len(labels) <= most else most - 1
    rest = len(labels) - shown
    if rest:
        labels[shown:] = [OTHERS.format(rest)]
        means = np.append(means[:shown], means[shown:].sum())
    return Bars(title, tuple(labels), means, rest > 0, _uncertain(run))


def _uncertain(run: Run) -> float:
    fields = [field for field in run.schema if field.name.startswith(PREFIX)]
    if any(map(places_column, fields)):  # ‖a‖₁ is that of what is stored alone
        return np.nan
    total, rows = 0.0, 0
    for table in run.tables():
        estimated = table.filter(pc.is_valid(table["error_estimate"]))
        total += _bounds(estimated, [field.name for field in fields]).sum()
        rows += estimated.num_rows
    return total / rows if rows else np.nan


def _bounds(estimated: pa.Table, columns: list[str]) -> NDArray[np.float64]:
    """How far the attributions of each row may be off, `[rows]`."""
    sizes = np.abs(attribution_matrix(estimated.select(columns))).sum(axis=1)
    return np.asarray(sizes * estimated["error_estimate"].to_numpy(), np.float64)


def draw_bars(shown: Bars) -> Figure:
    """The rest in grey, and whiskers where the error is known."""
    count = len(shown.labels)
    made = figure(6.4, 1.4 + 0.32 * count)
    plot = axes(made)
    for place, mean in enumerate(shown.means):
        is_rest = shown.has_rest and place == count - 1
        plot.barh(place, mean, height=0.62, color=GREY if is_rest else DARK)
        if np.isfinite(shown.uncertain):
            plot.errorbar(mean, place, xerr=shown.uncertain, color=INK, lw=0.8, capsize=2)
        plot.annotate(
            f"{mean:.3g}",
            (mean + np.nan_to_num(shown.uncertain), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    plot.set_yticks(range(count), list(map(plain, shown.labels)))
    plot.invert_yaxis()
    plot.margins(x=0.12)
    plot.set_xlim(left=0)
    plot.set_xlabel("mean |attribution|, in units of f", fontsize=8)
    plot.set_title(plain(shown.title), fontsize=9, color=INK)
    caption(made, "whiskers: as far as one mean may be off, by the rows' error estimates")
    return made
