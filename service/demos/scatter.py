"""Scatter plots as PNG, drawn with Pillow: points in panels with axes, ticks and the line of the
truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from integrand.service.demos.picture import INK, MARGIN, QUIET, RULE, WHITE, font, write_header

Floats = npt.NDArray[np.float64]
Colour = tuple[int, int, int]

FINE = 3
"""Marks are drawn this much larger and then scaled down, because Pillow does not smooth edges."""
WIDTH, HEIGHT = 500, 420
LEFT, BETWEEN, TOP, BOTTOM = 58, 96, 140, 62
PADDING = 0.04
GRID, LINE = (233, 236, 239), (73, 80, 87)


@dataclass(frozen=True)
class Series:
    """Points of one colour; `radius` in pixels. The name stands in the panel's key."""

    name: str
    colour: Colour
    x: Floats
    y: Floats
    radius: float = 1.5


@dataclass(frozen=True)
class Panel:
    """One plot: its titles, its ticks from end to end, the true line, and points."""

    title: str
    x_title: str
    y_title: str
    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]
    truth: tuple[tuple[float, float], ...]
    series: tuple[Series, ...]

    def place(self, x: Floats, y: Floats) -> Floats:
        """Pixels `[points, 2]` inside the panel's box of WIDTH × HEIGHT, from its top left."""
        from_left = _share(x, self.x_ticks) * WIDTH
        from_top = (1 - _share(y, self.y_ticks)) * HEIGHT
        return np.stack(np.broadcast_arrays(from_left, from_top), axis=-1)

    def x_places(self) -> Floats:
        """Pixels `[ticks, 2]` of the ticks along x."""
        return self.place(np.array(self.x_ticks), np.zeros(1))

    def y_places(self) -> Floats:
        """Pixels `[ticks, 2]` of the ticks along y."""
        return self.place(np.zeros(1), np.array(self.y_ticks))


def _share(values: Floats, ticks: tuple[float, ...]) -> Floats:
    """Where values lie along an axis that reaches a little past its ticks: 0 at its start, 1 at its
    end.
    """
    span = ticks[-1] - ticks[0]
    length = span * (1 + 2 * PADDING)
    return (values - ticks[0] + PADDING * span) / length


def draw_panels(panels: Sequence[Panel], heading: str, remark: str) -> Image.Image:
    """The panels side by side on white, under a heading."""
    width = 2 * MARGIN + LEFT + len(panels) * (WIDTH + BETWEEN) - BETWEEN
    height = TOP + HEIGHT + BOTTOM + MARGIN // 2
    canvas = Image.new("RGB", (width, height), WHITE)
    draw = ImageDraw.Draw(canvas)
    write_header(draw, heading, remark)
    _write_key(draw, panels[0], right=width - MARGIN, top=MARGIN + 27)
    for number, panel in enumerate(panels):
        left = MARGIN + LEFT + number * (WIDTH + BETWEEN)
        _draw_panel(canvas, panel, (left, TOP))
    return canvas


def _draw_panel(canvas: Image.Image, panel: Panel, corner: tuple[int, int]) -> None:
    x, y = corner
    draw = ImageDraw.Draw(canvas)
    canvas.paste(_draw_marks(panel), corner)
    draw.rectangle((x, y, x + WIDTH, y + HEIGHT), outline=RULE)
    draw.text((x, y - 26), panel.title, INK, font(17))
    draw.text((x + WIDTH / 2, y + HEIGHT + 34), panel.x_title, QUIET, font(15), anchor="ma")
    _write_sideways(canvas, panel.y_title, (x - LEFT - 6, y + HEIGHT // 2))
    for tick, (left, _) in zip(panel.x_ticks, panel.x_places(), strict=True):
        draw.text((x + left, y + HEIGHT + 10), f"{tick:g}", QUIET, font(14), anchor="ma")
    for tick, (_, top) in zip(panel.y_ticks, panel.y_places(), strict=True):
        draw.text((x - 8, y + top), f"{tick:g}", QUIET, font(14), anchor="rm")


def _draw_marks(panel: Panel) -> Image.Image:
    """Grid, points and the true line of a panel, smoothed."""
    large = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), WHITE)
    draw = ImageDraw.Draw(large)
    for left, _ in panel.x_places() * FINE:
        draw.line((left, 0, left, large.height), GRID, FINE)
    for _, top in panel.y_places() * FINE:
        draw.line((0, top, large.width, top), GRID, FINE)
    x, y = np.array(panel.truth).T
    truth = [tuple(point) for point in panel.place(x, y) * FINE]
    draw.line(truth, LINE, FINE + 1)
    for point, colour, radius in _mixed_points(panel):
        draw.circle(tuple(point * FINE), radius * FINE, fill=colour)
    return large.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _mixed_points(panel: Panel) -> Iterator[tuple[Floats, Colour, float]]:
    """Every point of every series in a mixed order, so that no series hides another."""
    marks: list[tuple[Floats, Colour, float]] = []
    for series in panel.series:
        points = panel.place(series.x, series.y)
        marks += [(point, series.colour, series.radius) for point in points]
    generator = np.random.Generator(np.random.PCG64(0))
    for number in generator.permutation(len(marks)):
        yield marks[number]


def _write_key(draw: ImageDraw.ImageDraw, panel: Panel, *, right: int, top: int) -> None:
    for series in reversed(panel.series):
        draw.text((right, top + 9), series.name, INK, font(15), anchor="rm")
        right -= int(font(15).getlength(series.name)) + 14
        draw.circle((right, top + 9), 5, fill=series.colour)
        right -= 24


def _write_sideways(canvas: Image.Image, text: str, middle: tuple[int, int]) -> None:
    _, _, right, bottom = font(15).getbbox(text)
    size = (int(right) + 2, int(bottom) + 2)
    label = Image.new("RGB", size, WHITE)
    ImageDraw.Draw(label).text((0, 0), text, QUIET, font(15))
    upright = label.rotate(90, expand=True)
    left, centre = middle
    canvas.paste(upright, (left, centre - upright.height // 2))
