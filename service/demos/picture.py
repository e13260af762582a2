"""Pictures of attributions as PNG, drawn with Pillow: heat maps beside the images that they explain."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

WHITE, INK, QUIET, RULE = (255, 255, 255), (33, 37, 41), (98, 107, 115), (206, 212, 218)
BLUE, RED = (33, 102, 172), (178, 24, 43)
# ColorBrewer's RdBu, which people with any common colour blindness can read.
STOPS = (-1.0, -0.55, 0.0, 0.55, 1.0)
COLOURS = np.array([(5, 48, 97), (67, 147, 195), (255, 255, 255), (214, 96, 77), (103, 0, 31)], dtype=np.float64)
CAP_PERCENTILE = 99
MARGIN, GAP, SEAM, SCALE = 36, 28, 4, 4
HEADER, CAPTION, FOOTER = 76, 62, 74


@dataclass(frozen=True)
class Tile:
    """One explained image: `image` `[h, w]` uint8 and `attribution` `[h, w]`, with two lines of caption."""

    image: Bytes
    attribution: Floats
    title: str
    note: str


def colour_values(values: Floats, limit: float) -> Bytes:
    """Diverging colours of values in [−limit, limit], clipped: `[..., 3]` uint8, white at 0."""
    scaled = np.clip(values / limit, -1, 1)
    channels = [np.interp(scaled, STOPS, COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def colour_limit(values: Floats) -> float:
    """The 99th percentile of |attribution|: a few extreme pixels must not pale the rest. 1 for a map of zeros."""
    return float(np.percentile(np.abs(values), CAP_PERCENTILE)) or 1.0


def draw_heat_maps(tiles: Sequence[Tile], heading: str, remark: str, *, columns: int = 5) -> Image.Image:
    """Pairs of image and heat map, `columns` pairs a line, over a colour bar. Every map has its own limit."""
    height, width = (extent * SCALE for extent in tiles[0].image.shape)
    across, down = 2 * width + SEAM + GAP, height + CAPTION
    lines = -(-len(tiles) // columns)
    size = (2 * MARGIN + columns * across - GAP, MARGIN + HEADER + lines * down + FOOTER)
    canvas = Image.new("RGB", size, WHITE)
    write_header(ImageDraw.Draw(canvas), heading, remark)
    for number, tile in enumerate(tiles):
        line, column = divmod(number, columns)
        _draw_pair(canvas, tile, (MARGIN + column * across, MARGIN + HEADER + line * down))
    _draw_colour_bar(canvas, top=size[1] - FOOTER + 8)
    return canvas


def _draw_pair(canvas: Image.Image, tile: Tile, corner: tuple[int, int]) -> None:
    (x, y), draw = corner, ImageDraw.Draw(canvas)
    height, width = (extent * SCALE for extent in tile.image.shape)
    heat = colour_values(tile.attribution, colour_limit(tile.attribution))
    for left, picture in ((x, tile.image), (x + width + SEAM, heat)):
        large = Image.fromarray(picture).convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(large, (left, y))
        draw.rectangle((left - 1, y - 1, left + width, y + height), outline=RULE)
    draw.text((x, y + height + 6), tile.title, INK, font(16))
    draw.text((x, y + height + 27), tile.note, QUIET, font(14))


def _draw_colour_bar(canvas: Image.Image, top: int, *, width: int = 320, height: int = 14) -> None:
    left, draw = (canvas.width - width) // 2, ImageDraw.Draw(canvas)
    ramp = colour_values(np.linspace(-1, 1, width), 1)
    canvas.paste(Image.fromarray(np.repeat(ramp[None], height, axis=0)), (left, top))
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=RULE)
    for share, text in ((0.0, "-limit"), (0.5, "0"), (1.0, "+limit")):
        draw.text((left + share * width, top + height + 7), text, QUIET, font(14), anchor="ma")
    draw.text((left - 16, top + height / 2), "lowers it", BLUE, font(16), anchor="rm")
    draw.text((left + width + 16, top + height / 2), "raises it", RED, font(16), anchor="lm")


def write_header(draw: ImageDraw.ImageDraw, heading: str, remark: str) -> None:
    """Two lines at the top left: what the picture shows, and how to read it."""
    draw.text((MARGIN, MARGIN - 10), heading, INK, font(26))
    draw.text((MARGIN, MARGIN + 28), remark, QUIET, font(16))


def font(size: int) -> Font:
    """Pillow's own font: it needs no file, and has no minus sign or Greek."""
    return ImageFont.load_default(size=size)


def encode_png(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG", optimize=True)
    return sink.getvalue()
