"""Each row has the targets that are planned, or none twice where rows or the model choose them."""

from __future__ import annotations

from collections.abc import Iterator

from integrand.schemas.records import Plan
from integrand.service.checks.findings import Check, Finding, Remark
from integrand.service.checks.rows.stored import ShardEvidence
from integrand.workers.shards.output import repeated_targets


def _remarks(shard: ShardEvidence) -> Iterator[Remark]:
    if not shard.has_planned_rows:
        return
    where = f"{shard.where} column target"
    times = shard.plan.targets_per_row
    targets = shard.results.target.to_pylist()
    planned = _planned_targets(shard.plan)
    if planned is not None:
        expected = planned * (len(targets) // times)
        wrong = [row for row, target in enumerate(targets) if target != expected[row]]
        if wrong:
            row = wrong[0]
            yield Finding(where, f"{expected[row]!r} in row {row}", repr(targets[row]))
    pairs = [(i // times, target) for i, target in enumerate(targets) if target is not None]
    twice = len(pairs) - len(set(pairs))
    if twice:
        yield Finding(where, "each target of a row once", f"{twice} twice")


CHECK = Check("targets", "each row has its targets, each of them once", _remarks)


def _planned_targets(plan: Plan) -> list[object] | None:
    """The targets of each input row; None where the rows or the model choose them."""
    places = plan.spec.target.places(plan.numerics.outputs)
    if places is None:
        return None
    targets = repeated_targets(places, len(places))
    return list(targets.to_pylist())
