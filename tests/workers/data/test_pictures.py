"""What files of pictures hold, as pixels: one explicit rule for each oddity."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image
from pydantic import ValidationError

from integrand.schemas.specs.images import PixelSteps
from integrand.workers.data.pictures import BadPicture, decoder, pixels_of
from tests.plugins.pictures import encoded, noise, smooth


def steps(**fields: Any) -> PixelSteps:
    return PixelSteps(**{"size": (9, 7)} | fields)


def test_a_picture_without_loss_is_its_pixels_channels_first() -> None:
    values = noise()
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        found = pixels_of(encoded(values, form, **options), steps())
        assert np.array_equal(found, values.transpose(2, 0, 1))
    assert pixels_of(encoded(values, "JPEG"), steps()).shape == (3, 9, 7)


def test_it_is_turned_upright() -> None:
    values = noise(7, 9)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to view
    found = pixels_of(encoded(values, exif=exif), steps())
    assert np.array_equal(found.transpose(1, 2, 0), np.rot90(values, -1))


def test_grey_palette_and_bilevel_pictures_have_three_channels() -> None:
    grey = noise(channels=1)
    found = pixels_of(encoded(grey), steps())
    assert all(np.array_equal(channel, grey) for channel in found)
    palette = Image.fromarray(noise()).quantize(16)
    found = pixels_of(encoded(palette), steps())
    assert np.array_equal(found.transpose(1, 2, 0), np.asarray(palette.convert("RGB")))
    found = pixels_of(encoded(Image.fromarray(grey > 127)), steps())
    assert np.array_equal(found[0], np.where(grey > 127, 255, 0))


def test_grey_is_asked_for() -> None:
    image = Image.fromarray(noise())
    found = pixels_of(encoded(image), steps(color="grey"))
    assert np.array_equal(found, np.asarray(image.convert("L"))[None])


def test_alpha_is_dropped_laid_over_a_colour_or_refused() -> None:
    values = noise(channels=4)
    values[..., 3] = np.where(values[..., 3] > 127, 255, 0)
    data, opaque = encoded(values), values[..., 3:] == 255
    for asked, expected in (
        ("drop", values[..., :3]),
        ("white", np.where(opaque, values[..., :3], 255)),
        ("black", np.where(opaque, values[..., :3], 0)),
    ):
        assert np.array_equal(pixels_of(data, steps(alpha=asked)).transpose(1, 2, 0), expected)
    with pytest.raises(BadPicture, match="alpha channel"):
        pixels_of(data, steps(alpha="refuse"))
    assert pixels_of(encoded(noise()), steps(alpha="refuse")).shape == (3, 9, 7)


def test_of_16_bits_the_upper_8_are_taken() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (9, 7)).astype(np.uint16)
    found = pixels_of(encoded(values), steps())
    assert all(np.array_equal(channel, values >> 8) for channel in found)


def test_cmyk_is_converted_without_a_profile() -> None:
    image = Image.fromarray(noise()).convert("CMYK")
    data = encoded(image, "JPEG", quality=100, subsampling=0)
    found = pixels_of(data, steps()).astype(int)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(found - expected).max() <= 6


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(form: str) -> None:
    frames = [Image.fromarray(noise(seed=k)) for k in range(3)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
    found = pixels_of(data, steps())
    assert np.array_equal(found.transpose(1, 2, 0), np.asarray(frames[0]))


def bomb(width: int, height: int) -> bytes:
    """A PNG of 70 bytes that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"no picture", "is no PNG, JPEG or WebP"),
        (b"GIF89a" + bytes(20), "is no PNG, JPEG or WebP"),
        (encoded(noise(40, 40), "JPEG")[:500], "does not decode: OSError"),
        (encoded(noise())[:60], "does not decode"),
        (encoded(noise(9, 8)), "is 9×8, expected 9×7"),
        (bomb(10_000, 9_000), "above max_pixels"),
        (bomb(100_000, 100_000), "pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_wrong_is_said(data: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        pixels_of(data, steps())


def test_a_lower_limit_of_pixels_holds() -> None:
    with pytest.raises(BadPicture, match="has 9×7 pixels as stored, above max_pixels, 62"):
        pixels_of(encoded(noise()), steps(max_pixels=62))


@given(st.binary(max_size=200), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_any_bytes_are_a_picture_or_a_bad_one(tail: bytes, form: str) -> None:
    data = encoded(noise(), form)
    for broken in (tail, data[: len(tail)] + tail, data[:-30] + tail):
        with suppress(BadPicture):
            assert pixels_of(broken, steps()).shape == (3, 9, 7)


def test_resizing_goes_by_the_shorter_side_and_crops_the_middle() -> None:
    image = smooth(30, 47)
    found = pixels_of(
        encoded(image), steps(size=None, resize=16, resample="bicubic", crop=(16, 11))
    )
    resized = image.resize((25, 16), Image.Resampling.BICUBIC)  # floor of 16 × 47 / 30
    assert np.array_equal(found.transpose(1, 2, 0), np.asarray(resized)[:, 7:18])
    squashed = pixels_of(encoded(image), steps(size=None, resize=(8, 6), resample="lanczos"))
    expected = image.resize((6, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(squashed.transpose(1, 2, 0), np.asarray(expected))


def test_half_a_pixel_goes_down_or_to_even() -> None:
    values = noise(3, 6)
    down = pixels_of(encoded(values), steps(size=None, crop=(3, 3)))
    even = pixels_of(encoded(values), steps(size=None, crop=(3, 3), crop_rounding="even"))
    assert np.array_equal(down.transpose(1, 2, 0), values[:, 1:4])
    assert np.array_equal(even.transpose(1, 2, 0), values[:, 2:5])


def test_a_crop_beyond_the_picture_is_refused() -> None:
    with pytest.raises(BadPicture, match="is 9×7, smaller than the crop of 8×8"):
        pixels_of(encoded(noise()), steps(size=None, crop=8))
    with pytest.raises(ValidationError, match="`crop` is larger"):
        steps(size=None, crop=8, resize=7)


def test_the_decoder_is_named_with_its_jpeg_library() -> None:
    assert "libjpeg" in str(decoder())
