"""What a shard's object says of its rows: their digest, their counts, how they were computed."""

from __future__ import annotations

import math
import socket
from collections import Counter

import numpy as np

from integrand.schemas.ids import digest_rows
from integrand.schemas.quantiles import Quantiles, histogram_quantiles
from integrand.schemas.records import Plan, Shard, ShardFooter
from integrand.workers.data.values import plain_values
from integrand.workers.engine.row_results import Floats, RowResults
from integrand.workers.shards.results import Results


def shard_digest(results: Results) -> str:
    """Logical digest of the rows: identity, target, status and every number, none of the timings or
    reasons.
    """
    rows = results.rows
    columns = [rows.f_input, rows.f_baseline, rows.gap, rows.error_estimate]
    numbers = np.stack(columns, 1)
    numbers[np.isnan(numbers)] = np.nan  # which NaN it is, a stored null does not tell
    optional = [column.tolist() for _, column in sorted(rows.optional.items())]
    names = plain_values(results.row_id)
    targets = results.target.to_pylist()
    there = rows.attributed

    def row(i: int) -> bytes:
        tail: bytes = numbers[i].tobytes()
        if there[i]:
            tail += b"".join(values.tobytes() for values in results.values(i))
        status, evaluations = rows.status[i], rows.evaluations[i]
        head = f"{names[i]!r}\0{targets[i]!r}\0{status}\0{evaluations}\0"
        behind = "".join(f"\0{column[i]!r}" for column in optional)
        return head.encode() + tail + behind.encode()

    return digest_rows(map(row, range(len(names))))


def shard_footer(
    plan: Plan,
    plan_sha256: str,
    shard: Shard,
    results: Results,
    *,
    seconds: dict[str, float],
    versions: dict[str, str],
    same_build: bool,
) -> ShardFooter:
    """What the object says of itself; folded into the manifest later."""
    rows = results.rows
    there = rows.attributed
    gap = np.abs(rows.gap[there])
    error = rows.error_estimate[there]
    error = error[~np.isnan(error)]
    gap_histogram = histogram(gap)
    error_histogram = histogram(error)
    lowered = _lowered(plan, results, same_build=same_build)
    return ShardFooter(
        run_id=plan.run_id,
        shard=shard.id,
        plan_sha256=plan_sha256,
        rows_in=shard.rows,
        rows_out=len(rows.status),
        statuses=dict(sorted(Counter(map(str, rows.status)).items())),
        gap=_quantiles(gap_histogram, gap),
        error=_quantiles(error_histogram, error),
        gap_histogram=gap_histogram,
        error_histogram=error_histogram,
        reasons=_reasons(rows),
        evaluations=int(rows.evaluations.sum()),
        padded_evaluations=results.padded,
        duplicates=results.duplicates,
        digest=shard_digest(results),
        determinism="tolerance" if lowered else "bitwise",
        lowered="; ".join(lowered) or None,
        batch_rows=results.halved or plan.numerics.batch_rows,
        seconds=seconds,
        node=socket.gethostname(),
        versions=versions,
    )


def _reasons(rows: RowResults) -> dict[str, int]:
    """Rows that get reasons, by status."""
    statuses = rows.optional.get("reasons_status", ())
    return dict(sorted(Counter(status for status in statuses if status is not None).items()))


def _lowered(plan: Plan, results: Results, *, same_build: bool) -> list[str]:
    """Why the shard's bits may be others elsewhere."""
    reasons = []
    if results.halved:
        reasons.append(f"halved its step batch to {results.halved} rows on out-of-memory")
    if not same_build:
        reasons.append(f"was planned with torch {plan.numerics.torch_build}")
    return reasons


def histogram(values: Floats) -> dict[str, int]:
    """Rows by tenth of a decimal exponent, rounded up: `-31` counts values ≤ 10**-3.1; zeros go to
    `-400`.
    """
    with np.errstate(divide="ignore"):
        exponents = np.ceil(10 * np.log10(np.abs(values)))
    counts: Counter[int] = Counter()
    for exponent in exponents.tolist():
        bounded = max(-400, min(400, exponent))
        counts[int(bounded)] += 1
    return {str(k): counts[k] for k in sorted(counts)}


def _quantiles(counts: dict[str, int], values: Floats) -> Quantiles:
    largest = float(values.max()) if len(values) else None
    if largest is not None and not math.isfinite(largest):
        largest = None
    return histogram_quantiles(counts, largest)
