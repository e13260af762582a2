"""Odd pictures with their pixels by Hugging Face's processors; run to make the file again.

pip install transformers; python -m tests.workers.data.odd_pictures
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from integrand.workers.data.pictures import decoder
from tests.plugins.pictures import encoded, noise, smooth

PLACE = Path(__file__).with_suffix(".parquet")
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {"size": {"height": 16, "width": 14}},
    "CLIP": {"size": {"shortest_edge": 17}, "crop_size": {"height": 16, "width": 14}},
    "DeiT": {"size": {"height": 20, "width": 23}, "crop_size": {"height": 16, "width": 14}},
}
"""With what their files say; the rest is as their classes have it."""


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(smooth(33, 25, orientation), "JPEG", exif=exif)


def palette(*, transparent: bool) -> bytes:
    image = smooth(30, 41, 3).quantize(8)
    return encoded(image, transparency=2) if transparent else encoded(image)


def frames(form: str) -> bytes:
    first, *rest = (smooth(30, 33, seed) for seed in (4, 5, 6))
    return encoded(first, form, save_all=True, append_images=rest, lossless=True)


def pictures() -> dict[str, bytes]:
    grey = smooth(31, 29, 7).convert("L")
    alpha = Image.fromarray(noise(24, 30, 4))
    return {
        "jpeg": encoded(smooth(40, 31), "JPEG"),
        "jpeg of low quality": encoded(smooth(40, 31, 1), "JPEG", quality=15),
        "jpeg, progressive": encoded(smooth(37, 37, 2), "JPEG", progressive=True),
        "jpeg without subsampling": encoded(smooth(29, 45, 2), "JPEG", subsampling=0),
        "grey jpeg": encoded(grey, "JPEG"),
        "cmyk jpeg": encoded(smooth(28, 27, 8).convert("CMYK"), "JPEG"),
        **{f"jpeg turned, {k}": turned(k) for k in (2, 3, 6, 8)},
        "png": encoded(smooth(20, 50, 9)),
        "grey png": encoded(grey),
        "bilevel png": encoded(grey.convert("1")),
        "grey png with alpha": encoded(alpha.convert("LA")),
        "png with alpha": encoded(alpha),
        "palette": palette(transparent=False),
        "palette with transparency": palette(transparent=True),
        "animated png": frames("PNG"),
        "webp": encoded(smooth(35, 26, 10), "WEBP"),
        "webp with alpha": encoded(alpha, "WEBP", lossless=True),
        "animated webp": frames("WEBP"),
        "smaller than its crop": encoded(smooth(6, 5, 11)),
        "a single pixel": encoded(noise(1, 1)),
        "a stripe": encoded(smooth(3, 60, 12)),
    }


def expected(name: str, data: bytes) -> np.ndarray:
    """Pixels by one of Hugging Face's processors, in front of what rescales and normalises."""
    import transformers
    from transformers.image_utils import load_image

    processor = getattr(transformers, f"{name}ImageProcessorPil")(
        **PROCESSORS[name], do_rescale=False, do_normalize=False
    )
    image = load_image(Image.open(io.BytesIO(data)))
    image.info.pop("transparency", None)  # left behind there, though the picture has none any more
    found = processor(image, return_tensors="np", input_data_format="channels_last")
    return np.asarray(found["pixel_values"][0])


def main() -> None:
    data = pictures()
    columns: dict[str, Any] = {"name": list(data), "image": list(data.values())}
    for name in PROCESSORS:
        pixels = [expected(name, one).astype(np.uint8).reshape(-1) for one in data.values()]
        columns[name] = pa.array(pixels, pa.list_(pa.uint8()))
    table = pa.table(columns).replace_schema_metadata({"decoder": str(decoder())})
    pq.write_table(table, PLACE, compression="zstd")


if __name__ == "__main__":
    main()
