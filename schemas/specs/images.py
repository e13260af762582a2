"""How an encoded picture becomes pixels of one size: decoded, resized and cropped."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from integrand.schemas.specs.part import Count, Part

MOST_PIXELS = 89_478_485
"""Pillow's own limit: a quarter of a gigabyte of decoded bytes at three channels."""

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
Sides = tuple[Count, Count]
COLORS = {"rgb": 3, "grey": 1}
"""Channels of each."""


class PixelSteps(Part):
    """What happens to a picture before it is scaled, in the order of the fields."""

    color: Literal["rgb", "grey"] = Field(
        "rgb", description="Channels: 3 or 1. Palettes, CMYK and grey are converted by Pillow."
    )
    alpha: Literal["drop", "white", "black", "refuse"] = Field(
        "drop",
        description=(
            "Transparency: dropped, as `convert('RGB')` and Hugging Face's `load_image` do; laid"
            " over white or black; or bad_input."
        ),
    )
    resize: Count | Sides | None = Field(
        None, description="Length of the shorter side, or [height, width]."
    )
    resample: Resample = Field("bilinear", description="Pillow's filter for `resize`.")
    crop: Count | Sides | None = Field(
        None, description="Side of a square, or [height, width], cut from the middle."
    )
    crop_rounding: Literal["down", "even"] = Field(
        "down",
        description=(
            "Where the middle is half a pixel off: to the top left, as Hugging Face does, or to"
            " an even pixel, as torchvision and timm do."
        ),
    )
    size: Count | Sides | None = Field(
        None,
        description=(
            "[height, width] that pictures must have where neither `crop` nor `resize` gives it;"
            " others are bad_input."
        ),
    )
    max_pixels: int = Field(
        MOST_PIXELS,
        ge=1,
        le=MOST_PIXELS,
        description="Most pixels of a picture as stored; one beyond it is bad_input, undecoded.",
    )

    @property
    def sides(self) -> Sides | None:
        """Height and width in the end; None where no field gives them."""
        given = self.resize if isinstance(self.resize, tuple) else None
        return square(self.crop) or given or square(self.size)

    @property
    def channels(self) -> int:
        return COLORS[self.color]

    @model_validator(mode="after")
    def _croppable(self) -> PixelSteps:
        crop, resize = square(self.crop), square(self.resize)
        if crop and resize and (crop[0] > resize[0] or crop[1] > resize[1]):
            raise ValueError("`crop` is larger than what `resize` leaves")
        sides = self.sides
        if self.size is not None and sides != square(self.size):
            raise ValueError("`size` is not what `crop` or `resize` leaves: leave it out")
        return self

    @property
    def in_words(self) -> tuple[str, ...]:
        """Each step, as a plan tells it."""
        found = [f"decoded to {self.color}, upright by EXIF"]
        if self.alpha != "drop":
            found.append({"refuse": "no alpha"}.get(self.alpha, f"alpha over {self.alpha}"))
        if isinstance(self.resize, tuple):
            found.append(f"resized to {_by(self.resize)} ({self.resample})")
        elif self.resize is not None:
            found.append(f"shorter side resized to {self.resize} ({self.resample})")
        crop, size = square(self.crop), square(self.size)
        if crop is not None:
            found.append(f"middle {_by(crop)} cropped")
        if size is not None:
            found.append(f"{_by(size)} expected")
        return tuple(found)


def square(sides: int | Sides | None) -> Sides | None:
    """One side as both."""
    return (sides, sides) if isinstance(sides, int) else sides


def _by(sides: Sides) -> str:
    return f"{sides[0]}×{sides[1]}"
