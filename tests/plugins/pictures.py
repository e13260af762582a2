"""Encoded pictures to test with."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def noise(height: int = 9, width: int = 7, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """`[height, width, channels]`, or `[height, width]` of one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image: Image.Image | NDArray[Any], form: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file of it; by default one without loss."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    """A photograph, nearly: slow colours under some grain."""
    values = np.random.default_rng(seed).normal(size=(5, 5, 3)) * 60 + 128
    small = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    grain = np.random.default_rng(seed + 1).integers(-12, 12, large.shape)
    return Image.fromarray((large + grain).clip(0, 255).astype(np.uint8))
