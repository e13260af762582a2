"""Encoded pictures as pixels. Pillow alone decodes and resizes: one decoder, one set of bits.

Rules, by what a file holds:

    EXIF        turned upright, as its orientation says
    palette     its colours, with their transparency
    alpha       dropped, laid over a colour, or refused: `alpha` of the input
    CMYK        converted without a colour profile
    16 bits     the upper 8, in grey as in colour
    animation   its first frame
    too large   refused by the size in its header, before a pixel is decoded
"""

from __future__ import annotations

import io
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.images import PixelSteps, Sides, square

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")


class BadPicture(Exception):
    """Why bytes are no picture of the wanted kind, in words for whoever owns them."""


def pillow() -> ModuleType:
    """Pillow's `Image`. Raises SpecError where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise SpecError(
            "inputs: image",
            expected="Pillow, which decodes pictures",
            seen="it is not installed",
            next_step="pip install 'integrand[image]', here and on the workers",
        ) from None
    return Image


def decoder() -> str | None:
    """Pillow's version and its libjpeg's, on which the pixels depend; None where it is not
    installed.
    """
    try:
        from PIL import features
    except ImportError:
        return None
    turbo = features.version_feature("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
    return f"{version('pillow')} with {jpeg}"


def pixels_of(data: bytes, steps: PixelSteps) -> NDArray[np.uint8]:
    """`[channels, height, width]` of an encoded picture. Raises BadPicture, and nothing else for
    whatever the bytes are.
    """
    try:
        return _arranged(_shaped(_decoded(data, steps), steps), steps)
    except (BadPicture, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - decoders fed with any bytes raise what they like
        text = str(error).split("\n", 1)[0][:160]
        raise BadPicture(f"does not decode: {type(error).__name__}: {text}") from None


def _decoded(data: bytes, steps: PixelSteps) -> Image:
    """The first frame, upright, in the wanted colours."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise BadPicture("is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadPicture("is no PNG, JPEG or WebP") from None
    except Image.DecompressionBombError:
        raise BadPicture(f"has more pixels as stored than max_pixels, {steps.max_pixels}") from None
    width, height = image.size
    if width * height > steps.max_pixels:
        raise BadPicture(
            f"has {height}×{width} pixels as stored, above max_pixels, {steps.max_pixels}"
        )
    image.load()
    return _colored(ImageOps.exif_transpose(image), steps)


def _colored(image: Image, steps: PixelSteps) -> Image:
    from PIL import Image

    mode = "RGB" if steps.color == "rgb" else "L"
    if image.mode.startswith("I"):
        upper = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(upper.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = _opaque(image.convert("RGBA"), steps)
    return image if image.mode == mode else image.convert(mode)


def _opaque(image: Image, steps: PixelSteps) -> Image:
    """A picture in RGBA without its alpha."""
    from PIL import Image

    if steps.alpha == "refuse":
        raise BadPicture("has an alpha channel, expected none")
    if steps.alpha != "drop":
        image = Image.alpha_composite(Image.new("RGBA", image.size, steps.alpha), image)
    return image.convert("RGB")


def _shaped(image: Image, steps: PixelSteps) -> Image:
    """Resized and cropped."""
    from PIL import Image

    sides = _resized_to(image, steps)
    if sides is not None:
        image = image.resize(sides[::-1], Image.Resampling[_filter(steps)])
    crop = square(steps.crop)
    if crop is None:
        return image
    height, width = image.height, image.width
    if crop[0] > height or crop[1] > width:
        raise BadPicture(f"is {height}×{width}, smaller than the crop of {crop[0]}×{crop[1]}")
    top, left = _half(height - crop[0], steps), _half(width - crop[1], steps)
    return image.crop((left, top, left + crop[1], top + crop[0]))


def _half(rest: int, steps: PixelSteps) -> int:
    return round(rest / 2) if steps.crop_rounding == "even" else rest // 2


def _resized_to(image: Image, steps: PixelSteps) -> Sides | None:
    """Height and width; the longer side is cut off to whole pixels, as torchvision and Hugging
    Face do.
    """
    asked = steps.resize
    if not isinstance(asked, int):
        return asked
    height, width = image.height, image.width
    shorter = min(height, width)
    longer = int(asked * max(height, width) / shorter)
    if longer * asked > steps.max_pixels:
        raise BadPicture(f"is {height}×{width}: resized it has more than max_pixels")
    return (asked, longer) if height <= width else (longer, asked)


def _filter(steps: PixelSteps) -> str:
    return steps.resample.upper()


def _arranged(image: Image, steps: PixelSteps) -> NDArray[np.uint8]:
    sides = steps.sides
    if (image.height, image.width) != sides:
        expected = "×".join(map(str, sides or ()))
        raise BadPicture(f"is {image.height}×{image.width}, expected {expected}")
    found: NDArray[Any] = np.asarray(image, np.uint8)
    channels_last = found.reshape(image.height, image.width, steps.channels)
    return np.ascontiguousarray(channels_last.transpose(2, 0, 1))
