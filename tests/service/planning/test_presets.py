"""Files that say how pictures are prepared: done as Hugging Face, timm and torchvision do it, or
refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.inputs import ImageInput
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.service.planning.presets import with_presets
from integrand.workers.data.pictures import BadPicture, decoder, pixels_of
from integrand.workers.storage.store import Store
from tests.workers.data import odd_pictures

HALF = [0.5, 0.5, 0.5]


def spec(**fields: Any) -> AttributeSpec:
    return parse_spec(
        {
            "name": "t",
            "source": {"uri": "/d"},
            "model": {"kind": "factory", "entrypoint": "m:f"},
            "inputs": [{"name": "image", "image": "bytes"} | fields],
            "output": {"uri": "/o"},
        }
    )


def resolved(**fields: Any) -> ImageInput:
    (found,) = with_presets(Store(), spec(**fields), "/").inputs
    assert isinstance(found, ImageInput)
    return found


def from_file(folder: Path, content: dict[str, Any], **fields: Any) -> ImageInput:
    place = folder / "config.json"
    place.write_text(json.dumps(content))
    return resolved(preprocess=str(place), **fields)


@pytest.mark.parametrize("name", list(odd_pictures.PROCESSORS))
def test_odd_pictures_are_those_of_hugging_faces_processors(tmp_path: Path, name: str) -> None:
    content = {"image_processor_type": f"{name}ImageProcessor"} | odd_pictures.PROCESSORS[name]
    steps = from_file(tmp_path, content)
    table = pq.read_table(odd_pictures.PLACE)
    same = str(decoder()).encode() == table.schema.metadata[b"decoder"]
    assert table.num_rows >= 20
    for row in table.to_pylist():
        found = pixels_of(row["image"], steps).astype(int)
        expected = np.array(row[name], int).reshape(3, 16, 14)
        # another libjpeg decodes a little otherwise
        assert np.abs(found - expected).max() <= (0 if same else 3), row["name"]


def test_a_file_of_hugging_face_in_full(tmp_path: Path) -> None:
    found = from_file(
        tmp_path,
        {
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "BitImageProcessor",
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 256},
        },
    )
    assert found.in_words == (
        "decoded to rgb, upright by EXIF",
        "shorter side resized to 256 (bicubic)",
        "middle 224×224 cropped",
        "divided by 255",
        "minus 0.485, 0.456, 0.406",
        "divided by 0.229, 0.224, 0.225",
    )


def test_defaults_are_those_of_the_class(tmp_path: Path) -> None:
    vit = from_file(tmp_path, {"feature_extractor_type": "ViTFeatureExtractor", "size": 384})
    assert (vit.resize, vit.resample, vit.crop, vit.mean) == (
        (384, 384),
        "bilinear",
        None,
        (0.5,) * 3,
    )
    clip = from_file(tmp_path, {"image_processor_type": "CLIPImageProcessorFast", "size": 336})
    assert (clip.resize, clip.resample, clip.crop) == (336, "bicubic", (224, 224))


OPEN = {"do_resize": True, "size": {"height": 8, "width": 8}, "image_mean": HALF, "image_std": HALF}


def test_what_a_file_leaves_open_is_asked_for_and_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="`resample: bilinear` or `resample: bicubic`"):
        from_file(tmp_path, OPEN)
    with pytest.raises(SpecError, match="the processor SomeImageProcessor"):
        from_file(tmp_path, OPEN | {"image_processor_type": "SomeImageProcessor"})
    assert from_file(tmp_path, OPEN, resample="bicubic").resample == "bicubic"
    with pytest.raises(SpecError, match=r"`resize: 8` \(the shorter side\) or `resize: \[8, 8\]`"):
        from_file(tmp_path, OPEN | {"size": 8, "resample": 2})
    without = {"do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2}
    with pytest.raises(SpecError, match="image_mean"):
        from_file(tmp_path, without)
    assert from_file(tmp_path, without, mean=0.5, std=0.25).std == 0.25


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("do_pad", True),
        ("size_divisor", 32),
        ("rescale_offset", True),
        ("include_top", True),
        ("crop_pct", 0.9),
        ("do_thumbnail", True),
    ],
)
def test_steps_that_are_not_done_are_refused_by_name(
    tmp_path: Path, field: str, value: Any
) -> None:
    content = OPEN | {"resample": 2}
    with pytest.raises(SpecError, match=field):
        from_file(tmp_path, content | {field: value})
    assert from_file(tmp_path, content | {field: None}).resize == (8, 8)
    assert from_file(tmp_path, content | {field: False}).resize == (8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"longest_edge": 9}}, "longest_edge"),
        ({"size": {"max_height": 9, "max_width": 9}}, "max_height"),
        ({"resample": 9}, "resample: 9"),
        ({"rescale_factor": 0}, "rescale_factor: 0"),
        ({"crop_size": 9}, "`crop` is larger"),
        ({"image_processor_type": "EfficientNetImageProcessor"}, "include_top"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "crop_pct"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        from_file(tmp_path, OPEN | {"resample": 2} | change)


def test_steps_that_are_switched_off_are_not_done(tmp_path: Path) -> None:
    off = {"do_normalize": False, "do_rescale": False, "resample": 0}
    found = from_file(tmp_path, OPEN | off)
    assert (found.divide, found.mean, found.std, found.resample) == (1, 0, 1, "nearest")


TIMM = {
    "input_size": [3, 224, 224],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": HALF,
    "std": HALF,
    "num_classes": 1000,
    "classifier": "head",
}


def test_files_of_timm_old_and_new(tmp_path: Path) -> None:
    for content in (TIMM, {"architecture": "vit", "pretrained_cfg": TIMM}):
        found = from_file(tmp_path, content)
        assert (found.resize, found.crop, found.resample) == (248, (224, 224), "bicubic")
        assert found.crop_rounding == "even"
    squashed = from_file(tmp_path, TIMM | {"crop_mode": "squash", "crop_pct": 1.0})
    assert squashed.resize == (224, 224)
    default = from_file(tmp_path, {"input_size": [1, 28, 28], "mean": 0.5, "std": 0.5})
    assert (default.resize, default.shape) == (32, (1, 28, 28))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_mode": "border"}, "border"),
        ({"interpolation": "random"}, "random"),
        ({"input_size": [4, 8, 8]}, "input_size"),
        ({"input_size": [3, 8, 9]}, "8×9"),
    ],
)
def test_what_timm_does_and_we_do_not(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        from_file(tmp_path, TIMM | change)


def test_imagenet_is_known_by_name() -> None:
    found = resolved(preprocess="imagenet")
    assert (found.resize, found.crop, found.resample) == (256, 224, "bilinear")
    assert found.preprocess is None
    assert resolved(preprocess="imagenet", resample="bicubic").resample == "bicubic"


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="fields model_type"):
        from_file(tmp_path, {"model_type": "vit"})
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(SpecError, match="no JSON object"):
        resolved(preprocess=str(tmp_path / "list.json"))
    with pytest.raises(SpecError, match=r"`imagenet`|imagenet, or a"):
        resolved(preprocess="image-net")


def test_a_picture_too_small_to_crop_is_a_bad_row() -> None:
    steps = resolved(crop=8)
    with pytest.raises(BadPicture, match="smaller than the crop"):
        pixels_of(odd_pictures.pictures()["a single pixel"], steps)
