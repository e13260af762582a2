"""Pictures of attributions as PNG, drawn with Pillow: strips of images and of the heat maps that
explain them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
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
COLOURS = np.array(
    [(5, 48, 97), (67, 147, 195), (255, 255, 255), (214, 96, 77), (103, 0, 31)], dtype=np.float64
)
CAP_PERCENTILE = 99
MARGIN, GAP, SCALE = 36, 12, 4
HEADER, STRIP_TITLE, STRIP_NOTE, FOOTER = 98, 28, 50, 66
NOTE = 13
"""Size of the letters under a picture: two lines fit."""


@dataclass(frozen=True)
class Strip:
    """Pictures of one size side by side, `[h, w]` grey or `[h, w, 3]` RGB, with a title above and a
    note under each.
    """

    title: str
    remark: str
    pictures: Sequence[Bytes]
    notes: Sequence[str]


def colour_values(values: Floats, limit: float) -> Bytes:
    """Diverging colours of values in [−limit, limit], clipped: `[..., 3]` uint8, white at 0."""
    scaled = np.clip(values / limit, -1, 1)
    channels = [np.interp(scaled, STOPS, COLOURS[:, channel]) for channel in range(3)]
    colours = np.stack(channels, axis=-1)
    return colours.round().astype(np.uint8)


def colour_limit(values: Floats) -> float:
    """The 99th percentile of |attribution|: a few extreme pixels must not pale the rest. 1 for a
    map of zeros.
    """
    return float(np.percentile(np.abs(values), CAP_PERCENTILE)) or 1.0


def draw_heat_maps(maps: Iterable[Floats]) -> list[Bytes]:
    """Colours of maps `[h, w]`, each within its own limit: `[h, w, 3]` uint8."""
    return [colour_values(values, colour_limit(values)) for values in maps]


def draw_strips(strips: Sequence[Strip], heading: str, remark: str) -> Image.Image:
    """The strips below each other, so that pictures of one thing make a column, over a
    colour bar.
    """
    height, width = (extent * SCALE for extent in strips[0].pictures[0].shape[:2])
    down = STRIP_TITLE + height + STRIP_NOTE
    across = 2 * MARGIN + len(strips[0].pictures) * (width + GAP) - GAP
    bottom = MARGIN + HEADER + len(strips) * down
    canvas = Image.new("RGB", (across, bottom + FOOTER), WHITE)
    write_header(ImageDraw.Draw(canvas), heading, remark)
    for line, strip in enumerate(strips):
        _draw_strip(canvas, strip, MARGIN + HEADER + line * down)
    _draw_colour_bar(canvas, top=bottom)
    return canvas


def _draw_strip(canvas: Image.Image, strip: Strip, top: int) -> None:
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, top), strip.title, INK, font(18))
    after_title = MARGIN + draw.textlength(strip.title, font(18)) + GAP
    draw.text((after_title, top + 3), strip.remark, QUIET, font(15))
    x, y = MARGIN, top + STRIP_TITLE
    for pixels, note in zip(strip.pictures, strip.notes, strict=True):
        height, width = (extent * SCALE for extent in pixels.shape[:2])
        small = Image.fromarray(pixels).convert("RGB")
        large = small.resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(large, (x, y))
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline=RULE)
        text = fitted(draw, note, width)
        draw.multiline_text((x, y + height + 5), text, QUIET, font(NOTE), spacing=2)
        x += width + GAP


def fitted(draw: ImageDraw.ImageDraw, note: str, width: int) -> str:
    """A note in as many lines as keep it within the width of its picture, where its words do."""
    lines: list[str] = []
    for word in note.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font(NOTE)) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _draw_colour_bar(canvas: Image.Image, top: int, *, width: int = 320, height: int = 14) -> None:
    draw = ImageDraw.Draw(canvas)
    left = (canvas.width - width) // 2
    ramp = colour_values(np.linspace(-1, 1, width), 1)
    bar = np.repeat(ramp[None], height, axis=0)
    canvas.paste(Image.fromarray(bar), (left, top))
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=RULE)
    for share, text in ((0.0, "-limit"), (0.5, "0"), (1.0, "+limit")):
        draw.text((left + share * width, top + height + 7), text, QUIET, font(14), anchor="ma")
    draw.text((left - 16, top + height / 2), "lowers it", BLUE, font(16), anchor="rm")
    draw.text((left + width + 16, top + height / 2), "raises it", RED, font(16), anchor="lm")


def write_header(draw: ImageDraw.ImageDraw, heading: str, remark: str) -> None:
    """Lines at the top left: what the picture shows, and how to read it."""
    draw.text((MARGIN, MARGIN - 10), heading, INK, font(26))
    draw.text((MARGIN, MARGIN + 28), remark, QUIET, font(16), spacing=6)


def font(size: int) -> Font:
    """Pillow's own font: it needs no file, and has no minus sign or Greek."""
    return ImageFont.load_default(size=size)


def encode_png(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG", optimize=True)
    return sink.getvalue()
