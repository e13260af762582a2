"""What a terminal shows of output rows and their attributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console

from integrand.schemas.errors import DataError
from integrand.schemas.records import RunManifest
from integrand.schemas.tables import (
    COLUMNS,
    PREFIX,
    REASON,
    WITHOUT_ATTRIBUTION,
    feature_names,
    places_column,
)
from integrand.service.reports.tables import cell, show_facts, show_frame
from integrand.service.reports.tokens import show_tokens

if TYPE_CHECKING:
    from integrand.service.runs.query import Run


LEAST_ERROR = 1e-5
"""Relative error below which no row of a closed form is worth a look: it is float32's own."""
ROW_COLUMNS = [
    "row_id",
    "target",
    "status",
    "f_input",
    "gap",
    "error_estimate",
    "evaluations",
    "worst_by",
    "reason",
]


def show_worst(console: Console, run: Run, top: int) -> None:
    """The rows of largest error and gap; one line where rounding is all there is."""
    quiet = nothing_to_see(run.manifest)
    if quiet is None:
        show_rows(console, run.worst(top), "worst rows", 2 * top)
    else:
        console.print(f"worst rows: {quiet}", highlight=False)


def nothing_to_see(manifest: RunManifest) -> str | None:
    """Why no row stands out, in words; None where one may."""
    exact, largest = manifest.numerics is not None and manifest.numerics.exact, manifest.error.max
    if not exact or largest is None or largest > LEAST_ERROR:
        return None
    return (
        "none is worth a look: the integral was taken in closed form, and no error estimate is"
        f" above {largest:.1e}"
    )


def show_rows(console: Console, frame: pd.DataFrame, title: str, most: int) -> None:
    """Output rows with what fits a terminal; columns without a single value are left out."""
    show_frame(console, columns_with_values(frame), title, most)


def columns_with_values(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of output rows that fit a page and hold a value."""
    shown = [name for name in ROW_COLUMNS if name in frame.columns]
    if not frame.empty:
        shown = [name for name in shown if frame[name].notna().any()]
    return frame[shown]


def show_row(console: Console, run: Run, row_id: str, most: int) -> None:
    """Every target of one row: its diagnostics, its reasons where it has some, and its largest
    attributions by name.
    """
    frame = run.rows(row_id)
    if frame.empty:
        raise DataError(
            f"row {row_id}",
            expected="the id of a row that is committed",
            seen="none such",
            next_step=(
                f"see the ids with --where, or pd.read_parquet({str(run.uri.child('data'))!r})"
            ),
        )
    for _, record in frame.iterrows():
        told = [name for name in (*COLUMNS, "reasons_status") if name in frame.columns]
        facts = [(name, cell(record[name])) for name in told]
        show_facts(console, f"row {row_id}", facts)
        if record["status"] in WITHOUT_ATTRIBUTION:
            continue
        if record.get("reasons") is not None:
            reasons = pd.DataFrame(list(record["reasons"]), columns=REASON.names)
            show_frame(console, reasons, "reasons", most)
        show_tokens(console, record)
        show_frame(
            console, largest_attributions(run, record).head(most), "largest attributions", most
        )


def largest_attributions(run: Run, record: pd.Series[Any]) -> pd.DataFrame:
    """Feature and attribution of one output row, the largest by absolute value first."""
    features, values = [], []
    for field in run.schema:
        if field.name.startswith(PREFIX):
            flat = np.atleast_1d(np.asarray(record[field.name], float)).ravel()
            values.append(flat)
            features += _names(field, flat, record)
    found = pd.DataFrame({"feature": features, "attribution": np.concatenate(values)})
    return found.sort_values("attribution", key=abs, ascending=False, kind="stable")


def _names(field: pa.Field, flat: NDArray[np.float64], record: pd.Series[Any]) -> list[str]:
    """Of the features that a row has values of: all, or those that are the largest."""
    index = places_column(field)
    if index is None:
        return feature_names(field, len(flat))
    places = [int(place) for place in record[index]]
    names = feature_names(field, 1 + max(places, default=-1))
    return [names[place] for place in places]
