"""What all pictures share: a figure without a display, colours, and a place to be written to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from integrand.schemas.errors import SpecError
from integrand.service.terminal import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOR, AGAINST = "#b2182b", "#2166ac"
"""Of what pushes the output up and down: the ends of RdBu, told apart by colour-blind readers."""
GREY, QUIET, INK = "#9a9a9a", "#5c646b", "#222222"
SIGNED, MAGNITUDE, VALUES = "RdBu_r", "gray", "viridis"
"""Colour maps: of signed attributions around 0, of their absolute values, of feature values."""
CAP = 99.0
"""Percentile of |attribution| at which maps are capped, as Sturmfels, Lundberg & Lee 2020 do."""
SUFFIXES = (".png", ".svg", ".pdf")


def figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches. Raises SpecError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise SpecError(
            "picture",
            expected="matplotlib",
            seen="none installed",
            next_step="pip install 'integrand[report]'",
        ) from error
    margins = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    return Figure(figsize=(width, height), dpi=200, layout=margins)


def axes(made: Figure) -> Axes:
    """One pair of axes, without a frame above and to the right."""
    found = made.add_subplot()
    found.spines[["top", "right"]].set_visible(False)
    found.tick_params(labelsize=8, colors=INK)
    return found


def plain(text: str) -> str:
    """A name or title as it stands: dollars begin no formula, and control characters are spelt
    out.
    """
    return visible(text).replace("$", r"\$")


def caption(made: Figure, text: str) -> None:
    """A line below everything, which says how to read the picture."""
    made.supxlabel(text, fontsize=7, color=QUIET)


def save(made: Figure, file: Path) -> None:
    """Write the picture in the format of the file's suffix. Raises SpecError for another one."""
    if file.suffix.lower() not in SUFFIXES:
        raise SpecError(
            str(file), expected=f"a file of {', '.join(SUFFIXES)}", seen=file.suffix or "no suffix"
        )
    made.savefig(file, facecolor="white")
