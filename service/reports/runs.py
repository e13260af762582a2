"""What a terminal shows of a run: how far it is, what became of its rows, whether it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich.console import Console

from integrand.schemas.quantiles import Quantiles
from integrand.schemas.records import (
    RunManifest,
)
from integrand.schemas.sidecars import (
    DriverProgress,
)
from integrand.service.progress import duration, pace
from integrand.service.reports.tables import Facts, show_facts

if TYPE_CHECKING:
    from integrand.service.checks.verify import Verification
    from integrand.service.runs.query import Run


MOST_FINDINGS = 50


def show_manifest(console: Console, manifest: RunManifest) -> None:
    """Completeness of the run first, then statuses, diagnostics and what was given up."""
    show_facts(console, f"run {manifest.run_id} ({manifest.name})", manifest_facts(manifest))
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


def manifest_facts(manifest: RunManifest) -> Facts:
    """Names and values, completeness first; statuses are indented."""
    return [
        ("state", _state(manifest)),
        ("shards", f"{manifest.shards_done:,} of {manifest.shards_planned:,}"),
        ("rows in", f"{manifest.rows_in:,} of {manifest.rows_planned:,}"),
        ("rows out", f"{manifest.rows_out:,}"),
        *_statuses(manifest),
        ("converged", f"{manifest.converged_share:.1%}"),
        *_reasons(manifest),
        ("evaluations/row", f"{manifest.evaluations_per_row:,.1f}"),
        ("|gap|", quantiles(manifest.gap)),
        ("error estimate", quantiles(manifest.error)),
        ("determinism", "; ".join([manifest.determinism, *manifest.determinism_reasons])),
        ("digest", manifest.digest[:16]),
    ]


def _state(manifest: RunManifest) -> str:
    if manifest.complete:
        return "complete"
    return "partial" if manifest.quarantined else "unfinished"


def _statuses(manifest: RunManifest) -> Facts:
    rows = max(1, manifest.rows_out)
    facts = []
    for status, count in manifest.statuses.items():
        share = count / rows
        facts.append((f"  {status}", f"{count:,} ({share:.1%})"))
    return facts


def _reasons(manifest: RunManifest) -> Facts:
    rows = sum(manifest.reasons.values())
    facts = [("reasons", f"{rows:,} rows")] if rows else []
    for status, count in manifest.reasons.items():
        facts.append((f"  {status}", f"{count:,} ({count / rows:.1%})"))
    return facts


def show_verification(console: Console, found: Verification) -> None:
    """What does not hold first, then what could not be checked."""
    count = len(found.findings)
    for finding in found.findings[:MOST_FINDINGS]:
        console.print(str(finding), style="red", highlight=False)
    if count > MOST_FINDINGS:
        console.print(f"and {count - MOST_FINDINGS} more findings", style="red")
    for unchecked in found.unchecked:
        console.print(f"not checked: {unchecked}", style="yellow", highlight=False)
    held = "holds" if found.holds else f"does not hold: {count} findings"
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
