"""One picture as input: beside it how much each place counts, and which way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from integrand.service.reports.pictures.style import (
    CAP,
    INK,
    MAGNITUDE,
    SIGNED,
    caption,
    figure,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Heat:
    """Maps over the two last axes of an input.

    picture  the input itself, `[height, width]` or `[height, width, 3]` from 0 to 1; None where it
             cannot be shown
    signed   Σ attributions over channels, `[height, width]`
    limit    both maps are capped there: the 99th percentile of |signed|
    """

    title: str
    picture: Floats | None
    signed: Floats
    limit: float


def heat_of(record: pd.Series[Any], values: Floats, pixels: Floats | None, baseline: str) -> Heat:
    """Of the attributions of an input `[..., height, width]` and, if known, its pixels of that
    shape.
    """
    signed = values.reshape(-1, *values.shape[-2:]).sum(0)
    limit = float(np.percentile(np.abs(signed), CAP)) or 1.0
    target = "" if pd.isna(record["target"]) else f", target {record['target']}"
    error = record["error_estimate"]
    told = "" if pd.isna(error) else f" (error {error:.1g})"
    return Heat(
        title=f"row {record['row_id']}{target}: {record['status']}{told}, against {baseline}",
        picture=None if pixels is None else _shown(pixels),
        signed=signed,
        limit=limit,
    )


def _shown(pixels: Floats) -> Floats:
    """Scaled from its least to its greatest value; colours where there are three channels."""
    flat = pixels.reshape(-1, *pixels.shape[-2:])
    low, high = float(flat.min()), float(flat.max())
    scaled = (flat - low) / ((high - low) or 1.0)
    if len(scaled) == 3:
        return np.moveaxis(scaled, 0, -1)
    return np.asarray(scaled.mean(0))


def draw_heat(shown: Heat) -> Figure:
    """The input, |Σ channels| in grey, and the signed sums around 0, both capped."""
    count = 2 if shown.picture is None else 3
    made = figure(2.4 * count + 0.5, 2.9)
    panels: list[tuple[str, Floats, dict[str, Any]]] = []
    if shown.picture is not None:
        panels.append(("input", shown.picture, {"cmap": "gray", "vmin": 0, "vmax": 1}))
    limits = {"vmin": 0, "vmax": shown.limit}
    panels.append(("|Σ channels|", np.abs(shown.signed), {"cmap": MAGNITUDE, **limits}))
    around = {"vmin": -shown.limit, "vmax": shown.limit}
    panels.append(("signed", shown.signed, {"cmap": SIGNED, **around}))
    plots = made.subplots(1, count)
    for plot, (name, values, how) in zip(plots, panels, strict=True):
        drawn = plot.imshow(values, interpolation="nearest", **how)
        plot.set_title(name, fontsize=8, color=INK)
        plot.set_axis_off()
        if name == "signed":
            bar = made.colorbar(drawn, ax=plot, shrink=0.8)
            bar.ax.tick_params(labelsize=7)
    made.suptitle(plain(shown.title), fontsize=9, color=INK)
    caption(made, f"capped at the {CAP:g}th percentile of |Σ channels|; red pushes f up, blue down")
    return made
