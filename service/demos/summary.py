"""What a demonstration prints when its run is done."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table

from integrand.schemas.records import RunManifest
from integrand.schemas.tables import WITHOUT_ATTRIBUTION

BAD_SHOWN = 5
QUANTILES = (0.5, 0.9, 0.99, 1.0)
Lines = tuple[tuple[str, str], ...]

PANDAS = """\
from integrand.service import open_run

run = open_run("{run}")
rows = run.to_pandas()                          # or pd.read_parquet("{run}/data")
rows["status"].value_counts()
rows.nlargest(5, "error_estimate")[["row_id", "status", "gap", "error_estimate", "evaluations"]]
run.to_pandas(inputs=True)                      # the source's columns beside the attributions
"""


def show(
    console: Console, manifest: RunManifest, sections: Sequence[Lines], *, run: str, picture: str
) -> None:
    """Print what was found, section by section, the lines to copy, and where the picture is."""
    title = f"{manifest.name}: {manifest.rows_out:,} rows, run {manifest.run_id}"
    table = Table("", "", title=title, show_header=False)
    for section in sections:
        for name, value in section:
            table.add_row(name, value)
        table.add_section()
    console.print(table)
    console.print("\nIn Python:\n", style="bold")
    console.print(PANDAS.format(run=run), soft_wrap=True)
    console.print(f"picture: {picture}", soft_wrap=True)


def run_sections(manifest: RunManifest, rows: pd.DataFrame, tolerance: float) -> tuple[Lines, ...]:
    """Statuses, accuracy and cost of a run that was asked for rows within `tolerance`."""
    return (
        status_lines(manifest),
        reason_lines(rows),
        error_lines(rows, tolerance),
        cost_lines(manifest),
    )


def status_lines(manifest: RunManifest) -> Lines:
    """Rows by status, most frequent first."""
    counts = sorted(manifest.statuses.items(), key=lambda item: -item[1])
    return tuple((f"rows {status}", f"{count:,}") for status, count in counts if count)


def reason_lines(rows: pd.DataFrame) -> Lines:
    """The first few rows without attributions, and why."""
    without = [str(status) for status in WITHOUT_ATTRIBUTION]
    bad = rows[rows["status"].isin(without)].head(BAD_SHOWN)
    return tuple(
        (f"row {row_id}", str(reason))
        for row_id, reason in zip(bad["row_id"], bad["reason"], strict=True)
    )


def error_lines(rows: pd.DataFrame, tolerance: float) -> Lines:
    """Shares of attributed rows within bounds about the tolerance, and quantiles of error_estimate
    and |gap|.
    """
    errors = rows["error_estimate"].dropna()
    gaps = rows["gap"].dropna().abs()
    bounds = {
        f"{10 * tolerance:g}": 10 * tolerance,
        f"{tolerance:g}, as asked": tolerance,
        f"{tolerance / 10:g}": tolerance / 10,
    }
    shares = tuple(
        (f"error within {name}", f"{(errors <= bound).mean():.1%}")
        for name, bound in bounds.items()
    )
    return (
        *shares,
        ("error_estimate p50 p90 p99 max", _quantiles(errors)),
        ("|gap| p50 p90 p99 max", _quantiles(gaps)),
    )


def cost_lines(manifest: RunManifest) -> Lines:
    return (("gradient evaluations per row", f"{manifest.evaluations_per_row:.1f}"),)


def _quantiles(values: pd.Series[float]) -> str:
    return "  ".join(f"{values.quantile(share):.2g}" for share in QUANTILES)
