"""What a terminal shows of a plan, and of what other step batches would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.filesize import decimal

from integrand.schemas.records import Numerics, Plan
from integrand.schemas.specs.inputs import ImageInput
from integrand.schemas.specs.methods import IntegratedGradients
from integrand.service.progress import duration
from integrand.service.reports.tables import Facts, show_facts, show_frame

if TYPE_CHECKING:
    from integrand.service.planning.tuning import Tuning


def show_plan(console: Console, plan: Plan) -> None:
    """Shards, rows, cost and the frozen numerical choices."""
    facts = [
        *_amounts(plan),
        *_pictures(plan),
        *_baselines(plan),
        *_costs(plan),
        *_step_batch(plan.numerics),
        *_integral(plan),
        ("determinism", _determinism(plan)),
        ("kernels", plan.numerics.kernels or "not recorded"),
        ("torch", plan.numerics.torch_build),
    ]
    show_facts(console, f"plan {plan.run_id} ({plan.spec.name})", facts)
    for warning in plan.warnings:
        console.print(f"warning: {warning}", style="yellow")


def _amounts(plan: Plan) -> Facts:
    """Before the source is split, rows are a guess, and there are neither shards nor files."""
    facts = [("rows", _planned_rows(plan)), ("shards", _shards(plan))]
    if plan.files:
        facts.append(("source files", f"{len(plan.files):,}"))
    facts.append(("targets per row", f"{plan.targets_per_row:,}"))
    if not isinstance(plan.spec.method, IntegratedGradients):
        facts.append(("method", plan.spec.method.title))
    return facts


def _baselines(plan: Plan) -> Facts:
    """How many a row has, and what was found for them over all the data."""
    facts = []
    if plan.spec.draws > 1:
        facts.append(("baselines per row", f"{plan.spec.draws:,}"))
    for name, file in plan.prepasses.items():
        exact = " (exact)" if name == "median" else ""
        facts.append(("found before", f"{name}{exact}, sha256 {file.sha256[:16]}…"))
    return facts


def _pictures(plan: Plan) -> Facts:
    """Each step from a file's bytes to what the model gets."""
    pictures = [one for one in plan.spec.inputs if isinstance(one, ImageInput)]
    return [(f"input {one.name}", "; ".join(one.in_words)) for one in pictures]


def _planned_rows(plan: Plan) -> str:
    if plan.shards:
        return f"{plan.rows:,}"
    guess = " (estimated: not split yet)" if plan.projection.estimated else ""
    return f"~{_rows(plan) // plan.targets_per_row:,}{guess}"


def _shards(plan: Plan) -> str:
    if not plan.shards:
        return "cut by run"
    most = max(shard.rows for shard in plan.shards)
    return f"{len(plan.shards):,} of at most {most:,} rows"


def _costs(plan: Plan) -> Facts:
    cost, workers = plan.projection, plan.spec.compute.worker_range.max
    milliseconds = cost.seconds_per_row * 1e3
    on_gpu = f", ~{decimal(cost.device_bytes)} on its GPU" if cost.device_bytes else ""
    device_hours = cost.seconds_per_row * _rows(plan) / 3600
    return [
        ("output", f"~{decimal(cost.output_bytes)}"),
        ("memory per worker", f"~{decimal(cost.memory_bytes)}{on_gpu}"),
        ("cost per row", f"{_evaluations(plan)}, {milliseconds:.3g} ms on one worker"),
        ("estimated time", f"{duration(cost.seconds)} with {workers} workers"),
        ("device hours", f"{device_hours:.3g}"),
    ]


def _evaluations(plan: Plan) -> str:
    if plan.numerics.exact:
        return "no gradient evaluation"
    return f"{plan.projection.evaluations_per_row:,.1f} evaluations"


def _determinism(plan: Plan) -> str:
    if plan.lowered:
        return f"tolerance: {plan.lowered}"
    return f"bitwise ({plan.spec.compute.reproducible})"


def _step_batch(chosen: Numerics) -> Facts:
    """Threads alone where there are no step batches: in closed form."""
    computed = f"{_precision(chosen)} on {chosen.device}"
    if chosen.exact:
        return [("threads", f"{chosen.threads}, {computed}")]
    at_once = f", given to the model {chosen.takes_rows} at a time" if chosen.takes_rows else ""
    fewer = f", down to {chosen.smaller_batches[-1]:,} at the end" if chosen.smaller_batches else ""
    rows = f"{chosen.batch_rows:,} rows{fewer}{at_once}"
    return [("step batch", f"{rows}, {chosen.threads} threads, {computed}")]


def _precision(chosen: Numerics) -> str:
    """In words, as in `float32 under bfloat16 autocast, compiled`."""
    reduced = f" under {chosen.autocast} autocast" if chosen.autocast else ""
    if chosen.tf32:
        reduced = " with TF32 products"
    compiled = ", compiled," if chosen.compile else ""
    return f"{chosen.precision}{reduced}{compiled}"


def _integral(plan: Plan) -> Facts:
    """How the integral is taken: in closed form, or with which savings, and why not with others."""
    chosen, accuracy = plan.numerics, plan.spec.accuracy
    if chosen.exact:
        from integrand.workers.methods.table import method_of  # whoever plans has torch

        way = "in closed form, without step batches"
        if not method_of(accuracy, plan.spec.method).needs_closed_form:
            way += f", as `{accuracy.kind}` does where there is one"
        return [("integral", way)]
    savings = ", ".join(chosen.savings) or "none"
    left_out = [("left out", f"{name}: {why}") for name, why in plan.left_out]
    return [("savings", savings), *left_out]


def show_tuning(console: Console, tuning: Tuning) -> None:
    """What each way to run step batches costs, and the fastest as lines for a spec."""
    if tuning.exact:
        console.print("The integral is taken in closed form: there are no step batches to tune.")
        return
    timings = [
        {
            "batch_rows": t.batch_rows,
            "threads": t.threads,
            "savings": t.savings,
            "ms per evaluation": t.seconds * 1e3,
            "evaluations/s": 1 / t.seconds,
        }
        for t in tuning.trials
    ]
    frame = pd.DataFrame(timings)
    show_frame(console, frame, f"step batches on this machine's {tuning.device}", len(frame))
    console.print("Lines for the spec, each the fastest of its kind:")
    for line in tuning.lines():
        console.print(line, highlight=False)


def _rows(plan: Plan) -> int:
    per_row = plan.projection.seconds_per_row
    return plan.rows * plan.targets_per_row or round(
        plan.projection.seconds * plan.spec.compute.side_by_side / per_row
    )
