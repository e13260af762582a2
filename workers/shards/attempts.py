"""Clean rows through the method, in pieces where the model raises on some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from integrand.schemas.redaction import redact
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.batching import targets_at_once
from integrand.workers.engine.results import Attribution, numpy_dtype, row_results
from integrand.workers.engine.row_results import RowResults
from integrand.workers.isolation import isolate
from integrand.workers.methods.attribution import attribute
from integrand.workers.shards.job import Job


@dataclass(frozen=True, eq=False)
class Attributed:
    """Results of rows that the model got, `[rows × targets]`, and what their step batches were.

    padded  gradient evaluations that only filled step batches up
    halved  rows of the smallest step batch where memory ran out; None where it did not
    """

    rows: RowResults
    padded: int = 0
    halved: int | None = None


def attribute_clean(
    job: Job,
    xs: tuple[Tensor, ...],
    bs: tuple[Tensor, ...],
    args: tuple[Tensor, ...],
    table: Tensor | None,
    tick: Callable[[], None],
) -> Attributed:
    """Results of all rows in order; `failed` where the model raises on a row alone.

    table  output indices `[rows, targets, depth]`, None for scalar outputs
    """
    count, planned = xs[0].shape[0], job.plan.numerics.batch_rows
    groups = [None] if table is None else list(table.unbind(1))
    if not count:
        return Attributed(_nothing(0, xs))
    at_once = targets_at_once(planned, sum(x[0].numel() for x in xs))

    def attempt(rows: slice) -> Attributed:
        calls = []
        for start in range(0, len(groups), at_once):
            some = groups[start : start + at_once]
            found = attribute(
                job.prepared,
                tuple(x[rows] for x in xs),
                baselines=tuple(b if b.shape[0] == 1 else b[rows] for b in bs),
                target=None if table is None else [t[rows] for t in some if t is not None],
                forward_args=tuple(a[rows] for a in args),
                accuracy=job.plan.spec.accuracy,
                batch_rows=planned,
                tick=tick,
                checked=True,
            )
            calls.append(found)
        return side_by_side(calls, planned)

    def failed(error: Exception) -> Attributed:
        return Attributed(_failed(len(groups), xs, error))

    return _joined(isolate(attempt, failed, slice(0, count)))


def side_by_side(calls: Sequence[Attribution], planned: int) -> Attributed:
    """Calls about the same rows for a target after the other, as one."""
    rows = RowResults.concat([row_results(call) for call in calls], axis=1)
    smallest = min(call.batch_rows for call in calls)
    return Attributed(
        rows.flat(),
        padded=sum(call.padded for call in calls),
        halved=smallest if smallest < planned else None,
    )


def _joined(parts: Sequence[Attributed]) -> Attributed:
    halved = [part.halved for part in parts if part.halved is not None]
    return Attributed(
        RowResults.concat([part.rows for part in parts]),
        padded=sum(part.padded for part in parts),
        halved=min(halved, default=None),
    )


def _failed(targets: int, xs: Sequence[Tensor], error: Exception) -> RowResults:
    rows = _nothing(targets, xs)
    rows.status.fill(RowStatus.failed)
    rows.reason.fill(f"the model raised {type(error).__name__}: {redact(str(error))[:300]}")
    return rows


def _nothing(rows: int, xs: Sequence[Tensor]) -> RowResults:
    shapes = [tuple(x.shape[1:]) for x in xs]
    return RowResults.empty((rows,), shapes, [numpy_dtype(x) for x in xs])
