"""Which picture a run, or a row of it, gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.specs.baselines import ConstantBaseline
from integrand.schemas.specs.inputs import ImageInput
from integrand.schemas.specs.part import Part, kind_of
from integrand.schemas.tables import PREFIX, WITHOUT_ATTRIBUTION, tensor_shape
from integrand.service.reports.pictures.bars import bars_of, draw_bars
from integrand.service.reports.pictures.heat import draw_heat, heat_of
from integrand.service.reports.pictures.swarm import draw_swarm, swarm_of
from integrand.service.reports.pictures.waterfall import draw_waterfall, waterfall_of
from integrand.service.reports.rows import largest_attributions
from integrand.service.runs.frames import stored_id
from integrand.workers.data.pictures import pixels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from integrand.service.runs.query import Run


MOST_ROWS = 20_000
"""Rows of a swarm: of a longer run some shards are read."""


def bars_of_run(run: Run) -> Figure:
    """Mean |attribution| of the features that have the largest."""
    return draw_bars(bars_of(run, f"{run.plan.spec.name}, against {baseline_of(run)}"))


def picture_of_run(run: Run) -> Figure:
    """A swarm of the run's features. Raises SpecError for runs without named ones."""
    named = [f for f in run.schema if f.name.startswith(PREFIX) and not pa.types.is_nested(f.type)]
    if not named:
        raise SpecError(
            "--png",
            expected="a run of named features",
            seen="lists of attributions",
            next_step="draw a row of it: --row ID, or means: --bars",
        )
    title = f"{run.plan.spec.name}, against {baseline_of(run)}"
    return draw_swarm(swarm_of(run.some(MOST_ROWS), title, run.manifest.rows_out))


def picture_of_row(run: Run, row_id: str) -> Figure:
    """A heat map where an input has two axes in space, else a waterfall of the largest features;
    of several targets the first.
    """
    kind = run.schema.field("row_id").type
    frame = run.to_pandas(filters=pc.field("row_id") == stored_id(row_id, kind), inputs=True)
    if frame.empty:
        raise DataError(f"row {row_id}", expected="the id of a committed row", seen="none such")
    record = frame.iloc[0]
    if record["status"] in WITHOUT_ATTRIBUTION:
        raise DataError(
            f"row {row_id}",
            expected="a row with attributions",
            seen=f"{record['status']}: {record['reason']}",
        )
    spatial = [f for f in run.schema if _is_map(f)]
    if not spatial:
        largest = largest_attributions(run, record)
        return draw_waterfall(waterfall_of(record, largest, baseline_of(run)))
    field = spatial[0]
    shape = tensor_shape(field) or ()
    values = np.asarray(record[field.name], float).reshape(shape)
    return draw_heat(heat_of(record, values, _pixels(run, record, field, shape), baseline_of(run)))


def baseline_of(run: Run) -> str:
    """What rows are compared with, in a word or two."""
    kinds = [_in_words(one) for one in run.plan.spec.baselines]
    words = ", ".join(dict.fromkeys(kinds))
    return f"{words} baseline"


def _in_words(baseline: Part) -> str:
    """Its kind, and the number of a constant that is one."""
    kind = str(kind_of(type(baseline))).replace("_", " ")
    if isinstance(baseline, ConstantBaseline) and not isinstance(baseline.value, tuple):
        return f"{kind} {baseline.value:g}"
    return kind


def _is_map(field: pa.Field) -> bool:
    shape = tensor_shape(field) if field.name.startswith(PREFIX) else None
    return shape is not None and len(shape) >= 2


def _pixels(
    run: Run, record: pd.Series[Any], field: pa.Field, shape: tuple[int, ...]
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """The input's own numbers as the source holds them, where they have the shape of what is
    attributed, or channels more.
    """
    name = field.name.removeprefix(PREFIX)
    part = next((one for one in run.plan.spec.inputs if one.name == name), None)
    if isinstance(part, ImageInput):
        return _decoded(part, record)
    own = next((one for one in run.plan.inputs if one.name == name), None)
    if own is None or len(own.columns) != 1 or own.columns[0] not in record.index:
        return None
    try:
        flat = np.asarray(record[own.columns[0]], float).reshape(-1)
        return flat.reshape(-1, *shape[-2:])
    except (TypeError, ValueError):  # sums over patches
        return None


def _decoded(
    part: ImageInput, record: pd.Series[Any]
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """What the model gets of an encoded picture, cropped and not yet scaled; None where the source
    holds paths.
    """
    column = f"input.{part.image}" if f"input.{part.image}" in record.index else part.image
    cell: Any = record[column]
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        return None
    return pixels_of(data, part).reshape(part.shape).astype(np.float64)
