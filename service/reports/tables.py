"""What the command line prints: plans, manifests, features and rows as tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from integrand.schemas.errors import DataError
from integrand.schemas.records import DriverProgress, Numerics, Plan, Quantiles, RunManifest
from integrand.schemas.tables import COLUMNS, PREFIX, WITHOUT_ATTRIBUTION, feature_names
from integrand.service.progress import duration, pace

if TYPE_CHECKING:
    from integrand.service.checks.verify import Verification
    from integrand.service.planning.tuning import Tuning
    from integrand.service.runs.query import Run


def _facts(console: Console, title: str, facts: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, value in facts:
        table.add_row(name, value)
    console.print(table)


def show_plan(console: Console, plan: Plan) -> None:
    """Shards, rows, cost and the frozen numerical choices."""
    cost, guess = (
        plan.projection,
        " (estimated: not split yet)" if plan.projection.estimated else "",
    )
    chosen = plan.numerics
    facts = [
        (
            "rows",
            f"{plan.rows:,}" if plan.shards else f"~{_rows(plan) // plan.targets_per_row:,}{guess}",
        ),
        (
            "shards",
            (
                f"{len(plan.shards):,} of at most {max(s.rows for s in plan.shards):,} rows"
                if plan.shards
                else "cut by run"
            ),
        ),
        *([("source files", f"{len(plan.files):,}")] if plan.files else []),
        ("targets per row", f"{plan.targets_per_row:,}"),
        ("output", f"~{size(cost.output_bytes)}"),
        ("memory per worker", f"~{size(cost.memory_bytes)}"),
        (
            "cost per row",
            f"{_evaluations(plan)}, {cost.seconds_per_row * 1e3:.3g} ms on one worker",
        ),
        (
            "estimated time",
            f"{duration(cost.seconds)} with {plan.spec.compute.worker_range.max} workers",
        ),
        ("device hours", f"{cost.seconds_per_row * _rows(plan) / 3600:.3g}"),
        *_step_batch(chosen),
        *_way(plan),
        (
            "determinism",
            (
                f"tolerance: {plan.lowered}"
                if plan.lowered
                else f"bitwise ({plan.spec.compute.reproducible})"
            ),
        ),
        ("kernels", chosen.kernels or "not recorded"),
        ("torch", chosen.torch_build),
    ]
    _facts(console, f"plan {plan.run_id} ({plan.spec.name})", facts)
    for warning in plan.warnings:
        console.print(f"warning: {warning}", style="yellow")


def _evaluations(plan: Plan) -> str:
    exact, mean = plan.numerics.exact, plan.projection.evaluations_per_row
    return "no gradient evaluation" if exact else f"{mean:,.1f} evaluations"


def _step_batch(chosen: Numerics) -> list[tuple[str, str]]:
    """Nothing where there are none: in closed form."""
    if chosen.exact:
        return [("threads", f"{chosen.threads}, {_precision(chosen)} on {chosen.device}")]
    at_once = f", given to the model {chosen.takes_rows} at a time" if chosen.takes_rows else ""
    told = (
        f"{chosen.batch_rows:,} rows{at_once}, {chosen.threads} threads, {_precision(chosen)} on"
        f" {chosen.device}"
    )
    return [("step batch", told)]


def _precision(chosen: Numerics) -> str:
    """In words, as in `float32 under bfloat16 autocast, compiled`."""
    autocast = f" under {chosen.autocast} autocast" if chosen.autocast else ""
    return chosen.precision + autocast + (", compiled," if chosen.compile else "")


def _way(plan: Plan) -> list[tuple[str, str]]:
    """How the integral is taken: in closed form, or with which savings, and why not with others."""
    chosen = plan.numerics
    if chosen.exact:
        from integrand.workers.methods.table import method_of  # whoever plans has torch

        accuracy, way = plan.spec.accuracy, "in closed form, without step batches"
        if not method_of(accuracy).needs_closed_form:
            way += f", as `{accuracy.kind}` does where there is one"
        return [("integral", way)]
    return [
        ("savings", ", ".join(chosen.savings) or "none"),
        *(("left out", f"{name}: {why}") for name, why in plan.left_out),
    ]


def show_tuning(console: Console, tuning: Tuning) -> None:
    """What each way to run step batches costs, and the fastest as lines for a spec."""
    if tuning.exact:
        console.print("The integral is taken in closed form: there are no step batches to tune.")
        return
    frame = pd.DataFrame(
        [
            {
                "batch_rows": t.batch_rows,
                "threads": t.threads,
                "savings": t.savings,
                "ms per evaluation": t.seconds * 1e3,
                "evaluations/s": 1 / t.seconds,
            }
            for t in tuning.trials
        ]
    )
    show_frame(console, frame, f"step batches on this machine's {tuning.device}", len(frame))
    console.print("Lines for the spec, each the fastest of its kind:")
    for line in tuning.lines():
        console.print(line, highlight=False)


def _rows(plan: Plan) -> int:
    per_row = plan.projection.seconds_per_row
    return plan.rows * plan.targets_per_row or round(
        plan.projection.seconds * plan.spec.compute.worker_range.max / per_row
    )


def show_manifest(console: Console, manifest: RunManifest) -> None:
    """Completeness of the run first, then statuses, diagnostics and what was given up."""
    _facts(console, f"run {manifest.run_id} ({manifest.name})", manifest_facts(manifest))
    for shard in manifest.quarantined:
        console.print(
            f"quarantined shard {shard.shard} ({shard.rows:,} rows, {shard.attempts} attempts):"
            f" {shard.reason}",
            style="red",
        )
    if manifest.quarantined:
        console.print("fix the cause, then `integrand retry-quarantined` this run", style="yellow")
    for warning in manifest.warnings:
        console.print(f"warning: {warning}", style="yellow")


def manifest_facts(manifest: RunManifest) -> list[tuple[str, str]]:
    """Names and values, completeness first; statuses are indented."""
    state = "complete" if manifest.complete else "partial" if manifest.quarantined else "unfinished"
    return [
        ("state", state),
        ("shards", f"{manifest.shards_done:,} of {manifest.shards_planned:,}"),
        ("rows in", f"{manifest.rows_in:,} of {manifest.rows_planned:,}"),
        ("rows out", f"{manifest.rows_out:,}"),
        *(
            (f"  {status}", f"{count:,} ({count / max(1, manifest.rows_out):.1%})")
            for status, count in manifest.statuses.items()
        ),
        ("converged", f"{manifest.converged_share:.1%}"),
        ("evaluations/row", f"{manifest.evaluations_per_row:,.1f}"),
        ("|gap|", quantiles(manifest.gap)),
        ("error estimate", quantiles(manifest.error)),
        ("determinism", "; ".join([manifest.determinism, *manifest.determinism_reasons])),
        ("digest", manifest.digest[:16]),
    ]


MOST_FINDINGS = 50


def show_verification(console: Console, found: Verification) -> None:
    """What does not hold first, then what could not be checked."""
    for finding in found.findings[:MOST_FINDINGS]:
        console.print(str(finding), style="red", highlight=False)
    if len(found.findings) > MOST_FINDINGS:
        console.print(f"and {len(found.findings) - MOST_FINDINGS} more findings", style="red")
    for unchecked in found.unchecked:
        console.print(f"not checked: {unchecked}", style="yellow", highlight=False)
    held = "holds" if found.holds else f"does not hold: {len(found.findings)} findings"
    console.print(f"{found.state} run {found.run}: what was checked {held}", highlight=False)
    console.print(
        f"{found.rows:,} output rows in {found.shards:,} shards were read; {found.sampled:,} input"
        f" rows were attributed again, {found.bitwise:,} of them compared in every bit",
        highlight=False,
    )


def show_heartbeat(console: Console, run: Run) -> None:
    """What the driver of an unfinished run last said of itself, if it said anything."""
    try:
        beat = DriverProgress.model_validate_json(run.store.read(run.uri.child("_progress.json")))
    except (FileNotFoundError, ValidationError):  # advice that is broken is none
        return
    console.print(
        f"driver last heard at {beat.at}: {beat.shards_done:,}/{beat.shards_planned:,} shards, "
        f"{pace(beat.rows_per_second)} rows/s, ETA {duration(beat.eta_s)}",
        highlight=False,
    )


def quantiles(found: Quantiles) -> str:
    """p50, p90, p99 (upper bounds, a tenth of a decade wide) and maximum."""
    if found.max is None:
        return "-"
    names = [("p50", found.p50), ("p90", found.p90), ("p99", found.p99), ("max", found.max)]
    return ", ".join(f"{name} {value:.2g}" for name, value in names if value is not None)


def size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


LEAST_TOLD = 1e-5
"""Relative error below which no row of a closed form is worth a look: it is float32's own."""


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
    if not exact or largest is None or largest > LEAST_TOLD:
        return None
    return (
        "none is worth a look: the integral was taken in closed form, and no error estimate is"
        f" above {largest:.1e}"
    )


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


def show_rows(console: Console, frame: pd.DataFrame, title: str, most: int) -> None:
    """Output rows with what fits a terminal; columns without a single value are left out."""
    show_frame(console, telling(frame), title, most)


def telling(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of output rows that fit a page and hold a value."""
    told = [
        c for c in ROW_COLUMNS if c in frame.columns and (frame.empty or frame[c].notna().any())
    ]
    return frame[told]


def show_frame(console: Console, frame: pd.DataFrame, title: str, most: int) -> None:
    """A frame's first rows as a table."""
    shown = f"{min(most, len(frame))} of {len(frame)}" if len(frame) > most else str(len(frame))
    table = Table(title=f"{title} ({shown})", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in frame.columns:
        table.add_column(
            str(column),
            overflow="fold",
            justify="left" if frame[column].dtype == object else "right",
        )
    for values in frame.head(most).itertuples(index=False):
        table.add_row(*(cell(v) for v in values))
    console.print(table)


def cell(value: object) -> str:
    """A value for people: four digits, a dash for none."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_row(console: Console, run: Run, row_id: str, most: int) -> None:
    """Every target of one row: its diagnostics, and its largest attributions by name."""
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
        _facts(console, f"row {row_id}", [(str(c), cell(record[c])) for c in COLUMNS])
        if record["status"] in WITHOUT_ATTRIBUTION:
            continue
        show_frame(
            console, largest_attributions(run, record).head(most), "largest attributions", most
        )


def largest_attributions(run: Run, record: pd.Series[Any]) -> pd.DataFrame:
    """Feature and attribution of one output row, the largest by absolute value first."""
    features, values = [], []
    for field in run.schema:
        if field.name.startswith(PREFIX):
            values.append(np.atleast_1d(np.asarray(record[field.name], float)).ravel())
            features += feature_names(field, len(values[-1]))
    found = pd.DataFrame({"feature": features, "attribution": np.concatenate(values)})
    return found.sort_values("attribution", key=abs, ascending=False, kind="stable")
