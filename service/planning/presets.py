"""What happens to pictures before a model, read from the files that models come with.

Hugging Face's preprocessor_config.json leaves open what its class does by default: of the classes
listed here that is known, of others it is asked for. timm's config.json holds a `pretrained_cfg`,
or is one. Whatever such a file asks for and is not done here is refused by its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import floor
from types import MappingProxyType

from pydantic import JsonValue, ValidationError

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.inputs import ImageInput
from integrand.schemas.specs.job import AttributeSpec
from integrand.workers.storage.store import Store

Fields = Mapping[str, JsonValue]
"""A file's fields, or those of an input."""

_IMAGENET_MEAN: JsonValue = [0.485, 0.456, 0.406]
_IMAGENET_STD: JsonValue = [0.229, 0.224, 0.225]
_HALF: JsonValue = [0.5, 0.5, 0.5]

PRESETS: Mapping[str, Fields] = MappingProxyType(
    {
        # torchvision, IMAGENET1K_V1 weights of its classification models
        "imagenet": {
            "resize": 256,
            "resample": "bilinear",
            "crop": 224,
            "crop_rounding": "even",
            "divide": 255,
            "mean": _IMAGENET_MEAN,
            "std": _IMAGENET_STD,
        }
    }
)

_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By Pillow's numbers."""


def with_presets(store: Store, spec: AttributeSpec, base: str) -> AttributeSpec:
    """The spec with each `preprocess` spelled out, and roots as workers will see them. Raises
    SpecError for a file that says something that is not done here, or too little.
    """
    inputs = []
    for one in spec.inputs:
        if isinstance(one, ImageInput):
            one = _rooted(store, _spelled_out(store, one, base), base)
        inputs.append(one)
    return spec.model_copy(update={"inputs": tuple(inputs)})


def _rooted(store: Store, one: ImageInput, base: str) -> ImageInput:
    if one.root is None:
        return one
    return one.model_copy(update={"root": str(store.parse(one.root, base))})


def _spelled_out(store: Store, one: ImageInput, base: str) -> ImageInput:
    if one.preprocess is None:
        return one
    where = f"inputs.{one.name}.preprocess"
    own = one.model_dump(exclude_unset=True)
    found = PRESETS.get(one.preprocess)
    if found is None:
        read = _File(where, _content(store, where, one.preprocess, base), own)
        found = read.fields()
    try:
        return ImageInput.model_validate({**found, **own, "preprocess": None})
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecError(
            where,
            expected="steps that fit together",
            seen=str(first["msg"]),
            next_step="give the fields beside `preprocess`: these win",
        ) from None


def _content(store: Store, where: str, preset: str, base: str) -> Fields:
    place = store.parse(preset, base)
    known = ", ".join(PRESETS)
    expected = f"{known}, or a preprocessor_config.json or timm's config.json"
    try:
        content = json.loads(store.read(place))
    except FileNotFoundError:
        raise SpecError(where, expected=expected, seen=f"nothing at {place}") from None
    except ValueError as error:
        raise SpecError(where, expected=expected, seen=f"{place}: {error}") from None
    if not isinstance(content, dict):
        raise SpecError(where, expected=expected, seen=f"{place}, no JSON object")
    return content


_NO_STEPS = frozenset(
    {
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "auto_map",
        "_valid_processor_keys",
        "do_convert_rgb",
        "data_format",
        "input_data_format",
        "return_tensors",
        "device",
        "num_labels",
        "id2label",
        "label2id",
    }
)
"""Fields that change no pixel here: pictures are in three channels in any case."""
_STEPS = frozenset(
    {
        "do_resize",
        "size",
        "resample",
        "do_center_crop",
        "crop_size",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
    }
)


def _defaults(
    resample: int,
    size: JsonValue,
    crop: JsonValue,
    mean: JsonValue = _HALF,
    std: JsonValue = _HALF,
) -> Fields:
    return {
        "do_resize": True,
        "resample": resample,
        "size": size,
        "do_center_crop": crop is not None,
        "crop_size": crop,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


_CLIP_MEAN: JsonValue = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD: JsonValue = [0.26862954, 0.26130258, 0.27577711]
_SQUARE: JsonValue = {"height": 224, "width": 224}
_LARGER: JsonValue = {"height": 256, "width": 256}
_SHORTEST: JsonValue = {"shortest_edge": 224}

CLASSES: Mapping[str, Fields] = MappingProxyType(
    {
        "ViT": _defaults(2, _SQUARE, None),
        "CLIP": _defaults(3, _SHORTEST, 224, _CLIP_MEAN, _CLIP_STD),
        "Bit": _defaults(3, _SHORTEST, 224, _CLIP_MEAN, _CLIP_STD),
        "DeiT": _defaults(3, _LARGER, 224),
        "Siglip": _defaults(3, _SQUARE, None),
        "MobileNetV2": _defaults(2, {"shortest_edge": 256}, 224),
    }
)
"""What Hugging Face's image processors do unless the file says otherwise (transformers 5.24,
each `image_processing_*.py`).
"""
SHORTER = ("CLIP", "Bit", "Siglip", "MobileNetV2")
"""Of these a whole number as `size` is the shorter side (`default_to_square`), of others a square.
"""


class _File:
    """One file's fields, beside those that the input gives itself."""

    def __init__(self, where: str, content: Fields, own: Mapping[str, object]) -> None:
        self.where = where
        self.content = content
        self.own = own

    def fields(self) -> Fields:
        """Fields of an input. Raises SpecError."""
        inner = self.content.get("pretrained_cfg", self.content)
        if isinstance(inner, dict) and "input_size" in inner:
            return self._timm(inner)
        if self.content.keys() & _STEPS:
            return self._hugging_face()
        known = ", ".join(list(self.content)[:6])
        raise self._refusal(
            "a preprocessor_config.json, or a timm config.json with `pretrained_cfg`",
            f"fields {known or 'none'}",
        )

    # --- Hugging Face ----------------------------------------------------------------------------

    def _hugging_face(self) -> Fields:
        self._refuse_other_steps()
        kind = self._class()
        given = {k: v for k, v in self.content.items() if v is not None}
        defaults = CLASSES[kind] if kind in CLASSES else self._guessed(given)
        steps = {**defaults, **given}
        found: dict[str, JsonValue] = {"resize": None, "crop": None, "divide": 1}
        if steps["do_resize"]:
            found["resize"] = self._resize(steps, kind)
            found["resample"] = self._resample(steps)
        if steps["do_center_crop"]:
            found["crop"] = self._sides("crop_size", steps.get("crop_size"))
        if steps["do_rescale"]:
            found["divide"] = self._divisor(steps)
        if steps["do_normalize"]:
            found["mean"], found["std"] = steps.get("image_mean"), steps.get("image_std")
        return found

    def _refuse_other_steps(self) -> None:
        """A field that is null or false asks for nothing."""
        for name, value in self.content.items():
            if name not in _STEPS | _NO_STEPS and value not in (None, False):
                raise self._refusal(
                    "steps that are done here: resize, centre crop, rescale, normalise",
                    f"`{name}: {json.dumps(value)[:80]}`",
                )

    def _class(self) -> str:
        """The name of the processor without its ending; its default for `include_top` is a step."""
        named = self.content.get("image_processor_type") or self.content.get(
            "feature_extractor_type"
        )
        kind = str(named or "")
        for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
            kind = kind.removesuffix(ending)
        if kind == "EfficientNet" and self.content.get("include_top") is not False:
            seen = "EfficientNetImageProcessor, which does so unless `include_top: false`"
            raise self._refusal("a processor that normalises once", seen)
        if kind.startswith(("ConvNext", "PoolFormer", "Levit")):
            raise self._refusal("one of the processors known here", f"{named}, with `crop_pct`")
        return kind

    def _guessed(self, given: Fields) -> Fields:
        """Of a class that is not known: the steps whose numbers are there."""
        if given.get("do_normalize", True):
            for field, own in (("image_mean", "mean"), ("image_std", "std")):
                if field not in given:
                    self._need(own, field, f"`{own}`")
        return {
            "do_resize": "size" in given,
            "do_center_crop": "crop_size" in given,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
        }

    def _resample(self, steps: Fields) -> JsonValue:
        number = steps.get("resample")
        if number is None:
            self._need("resample", "resample", "`resample: bilinear` or `resample: bicubic`")
            return None
        if not isinstance(number, int) or not 0 <= number < len(_FILTERS):
            raise self._refusal("a filter of Pillow, 0 to 5", f"`resample: {number}`")
        return _FILTERS[number]

    def _resize(self, steps: Fields, kind: str) -> JsonValue:
        size = steps.get("size")
        if size is None:
            self._need("resize", "size", "`resize`")
            return None
        if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
            return size["shortest_edge"]
        if isinstance(size, int):
            if kind not in CLASSES:
                step = f"`resize: {size}` (the shorter side) or `resize: [{size}, {size}]`"
                self._need("resize", "size: {shortest_edge} or {height, width}", step)
            return size if kind in SHORTER else [size, size]
        return self._sides("size", size)

    def _sides(self, field: str, given: JsonValue) -> JsonValue:
        if isinstance(given, int):
            return [given, given]
        if isinstance(given, dict) and given.keys() == {"height", "width"}:
            return [given["height"], given["width"]]
        raise self._refusal(
            "a whole number, {height, width} or, of `size`, {shortest_edge}",
            f"`{field}: {json.dumps(given)}`",
        )

    def _divisor(self, steps: Fields) -> JsonValue:
        factor = steps["rescale_factor"]
        if not isinstance(factor, int | float) or not factor:
            raise self._refusal("a number other than 0", f"`rescale_factor: {factor}`")
        divide = 1 / factor
        return 255 if abs(divide - 255) < 1e-6 else divide

    # --- timm ------------------------------------------------------------------------------------

    def _timm(self, cfg: Fields) -> Fields:
        """As timm's `create_transform` has it for inference, at `input_size`."""
        channels, height, width = self._timm_size(cfg)
        mode = cfg.get("crop_mode") or "center"
        if mode not in ("center", "squash") or height != width:
            raise self._refusal(
                "a square `input_size` and `crop_mode` center or squash",
                f"`crop_mode: {mode}` at {height}×{width}",
            )
        filter_ = cfg.get("interpolation", "bicubic")
        if filter_ not in _FILTERS:
            raise self._refusal(f"one of {', '.join(_FILTERS)}", f"`interpolation: {filter_}`")
        part = cfg.get("crop_pct") or 0.875
        if not isinstance(part, int | float):
            raise self._refusal("a number", f"`crop_pct: {part}`")
        side = floor(height / part)
        return {
            "color": "grey" if channels == 1 else "rgb",
            "resize": [side, side] if mode == "squash" else side,
            "resample": filter_,
            "crop": [height, width],
            "crop_rounding": "even",
            "divide": 255,
            "mean": cfg.get("mean", _IMAGENET_MEAN),
            "std": cfg.get("std", _IMAGENET_STD),
        }

    def _timm_size(self, cfg: Fields) -> tuple[int, int, int]:
        size = cfg["input_size"]
        whole = [n for n in size if isinstance(n, int)] if isinstance(size, list) else []
        if len(whole) != 3 or whole[0] not in (1, 3):
            raise self._refusal("3 or 1 channels, height, width", f"`input_size: {size}`")
        return whole[0], whole[1], whole[2]

    # --- refusals --------------------------------------------------------------------------------

    def _need(self, own: str, field: str, choices: str) -> None:
        """SpecError for what neither the file nor the input's own field says."""
        if own in self.own:
            return
        known = ", ".join(CLASSES)
        raise SpecError(
            self.where,
            expected=f"`{field}` in the file, or a processor whose default is known ({known})",
            seen=f"no such field, of {self._named()}",
            next_step=f"give {choices} beside `preprocess`, as the model was trained",
        )

    def _named(self) -> str:
        named = self.content.get("image_processor_type")
        return f"the processor {named}" if named else "a processor that is not named"

    def _refusal(self, expected: str, seen: str) -> SpecError:
        return SpecError(
            self.where,
            expected=expected,
            seen=seen,
            next_step="prepare the pictures yourself, or spell the steps out without `preprocess`",
        )
