"""Synthetic: an MLP fitted to 96 features with known coefficients, so that every attribution is
known too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import safetensors.torch
import torch
from torch import nn

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
from integrand.service.demos.models import synthetic_mlp

NAME = "synthetic"
RECIPE = 1
"""Raised whenever the prepared inputs change: older ones are then made anew."""
WEIGHTS = "synthetic.safetensors"
ROWS = 4000
STEPS, BATCH, PEAK_RATE = 500, 512, 5e-3

_RAMP = np.arange(1, 33) / 32
COEFFICIENTS: npt.NDArray[np.float64] = np.concatenate([_RAMP, -_RAMP, np.zeros(32)])
"""32 that raise the target, 32 that lower it, 32 of noise."""
SIGNAL = 64
GREY = (134, 142, 150)
UNIT_TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)
DRAWN = 100
HEADING = "Attributions against the truth"
REMARK = (
    "An MLP fitted to 96 features with known coefficients; the line is what a perfect model would"
    " give."
)
FEATURES = tuple(f"f{i:02d}" for i in range(len(COEFFICIENTS)))

SPEC = """\
kind: attribute
name: synthetic
source: {{uri: {source}, row_id: row_id}}
model:
  kind: factory
  entrypoint: integrand.service.demos.models:synthetic_mlp
  weights: {weights}
inputs: [{{name: features, columns: [FEATURES]}}]
target: {{kind: scalar}}
baseline: {{kind: zero}}
accuracy: {{kind: adaptive, tolerance: 1.0e-3, max_evaluations: 512}}
output: {{uri: {out}}}
compute: {{workers: 2, shard_rows: 500}}
""".replace("FEATURES", ", ".join(FEATURES))

Floats = npt.NDArray[np.float64]


def draw_rows(rows: int = ROWS, *, seed: int = 1) -> npt.NDArray[np.float32]:
    """Features uniform in [−1, 1], `[rows, 96]` float32."""
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = generator.uniform(-1, 1, (rows, len(COEFFICIENTS)))
    return drawn.astype(np.float32)


def train_regressor(*, seed: int = 0) -> nn.Module:
    """Fit the MLP to Σ coefficient · feature on fresh rows in each step; seconds. Returns it in
    eval mode.
    """
    truth = torch.from_numpy(COEFFICIENTS).float()
    with reproducible(seed):
        model = synthetic_mlp().train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS)
        for _ in range(STEPS):
            features = torch.rand(BATCH, len(truth)) * 2 - 1
            optimizer.zero_grad()
            predicted = model(features)[:, 0]
            loss = nn.functional.mse_loss(predicted, features @ truth)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return model.eval()


def r_squared(model: nn.Module, features: npt.NDArray[np.float32]) -> float:
    """Share of the target's variance that the model explains."""
    target = features @ COEFFICIENTS
    with torch.no_grad():
        predicted = model(torch.from_numpy(features))[:, 0].numpy()
    missed = predicted - target
    return float(1 - missed.var() / target.var())


def prepare(folder: DemoFolder) -> tuple[AttributeSpec, Facts]:
    """Train, and write source, weights, spec and facts into the folder; or reuse what is there."""
    text = fill_spec(SPEC, folder, source=NAME, weights=WEIGHTS)
    facts = folder.facts(RECIPE)
    if facts is None:
        model, features = train_regressor(), draw_rows()
        facts = Facts(
            recipe=RECIPE,
            measure=f"R² of the model on {ROWS} rows",
            value=r_squared(model, features),
        )
        folder.write_source(NAME, source_table(features), files=4)
        folder.write(WEIGHTS, safetensors.torch.save(model.state_dict()))
        folder.finish(text, facts)
    return read_spec(text), facts


def source_table(features: npt.NDArray[np.float32]) -> pa.Table:
    """Column row_id (0, 1, …), then one column per feature."""
    row_ids = pa.array(range(len(features)), pa.int64())
    columns = {name: features[:, i] for i, name in enumerate(FEATURES)}
    return pa.table({"row_id": row_ids, **columns})


def explain(rows: pd.DataFrame, folder: DemoFolder) -> Outcome:
    """Compare measured attributions with coefficient · feature, in numbers and as a scatter
    plot.
    """
    known = rows[rows["f_input"].notna()]
    features = known[list(FEATURES)].to_numpy(np.float64)
    measured = known[[PREFIX + name for name in FEATURES]].to_numpy(np.float64)
    correlation, leak = agreement(features * COEFFICIENTS, measured)
    findings = (
        ("signal: correlation with the truth", f"{correlation:.5f}"),
        ("noise: mean |attribution| over signal's", f"{leak:.2%}"),
    )
    return Outcome(findings, draw_agreement(features, measured))


def draw_agreement(features: Floats, measured: Floats) -> bytes:
    """PNG of two panels: every attribution against coefficient · x, and the slope of each
    feature's.
    """
    from integrand.service.demos import picture, scatter

    expected = features * COEFFICIENTS
    slopes = (measured * features).sum(axis=0) / np.square(features).sum(axis=0)
    numbers = np.arange(len(FEATURES), dtype=np.float64)
    kinds = (
        ("32 raise the target", picture.RED, slice(0, 32)),
        ("32 lower it", picture.BLUE, slice(32, SIGNAL)),
        ("32 are noise", GREY, slice(SIGNAL, None)),
    )
    each = scatter.Panel(
        f"Each attribution of {min(DRAWN, len(features))} rows",
        "coefficient * x (the truth)",
        "attribution",
        x_ticks=UNIT_TICKS,
        y_ticks=UNIT_TICKS,
        truth=((-1.0, -1.0), (1.0, 1.0)),
        series=tuple(
            scatter.Series(
                name, colour, expected[:DRAWN, part].ravel(), measured[:DRAWN, part].ravel()
            )
            for name, colour, part in kinds
        ),
    )
    per_feature = scatter.Panel(
        f"Each feature over {len(features)} rows",
        "feature",
        "attribution per unit of x",
        x_ticks=(0, 16, 32, 48, 64, 80, 96),
        y_ticks=UNIT_TICKS,
        truth=tuple(zip(numbers.tolist(), COEFFICIENTS.tolist(), strict=True)),
        series=tuple(
            scatter.Series(name, colour, numbers[part], slopes[part], radius=3)
            for name, colour, part in kinds
        ),
    )
    return picture.encode_png(scatter.draw_panels([each, per_feature], HEADING, REMARK))


def agreement(expected: Floats, measured: Floats) -> tuple[float, float]:
    """(correlation over the signal features, mean |noise| / mean |signal|), both arguments `[rows,
    96]`.
    """
    signal, noise = measured[:, :SIGNAL], measured[:, SIGNAL:]
    truth = expected[:, :SIGNAL]
    correlation = np.corrcoef(truth.ravel(), signal.ravel())[0, 1]
    leak = np.abs(noise).mean() / np.abs(signal).mean()
    return float(correlation), float(leak)
