"""`attribution_sum` is the sum of the stored attributions, and `gap` what is left of f(x) − f(x'),
up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from integrand.service.checks.findings import Check, Finding, Remark
from integrand.service.checks.rows.stored import ShardEvidence
from integrand.workers.engine.row_results import RowResults
from integrand.workers.shards.output import results_table

Floats = NDArray[np.float64]


def _remarks(shard: ShardEvidence) -> Iterator[Remark]:
    rows = shard.results.rows
    stored = shard.stored.table["attribution_sum"].to_numpy()
    total = results_table(shard.plan, shard.results)["attribution_sum"].to_numpy()
    with np.errstate(invalid="ignore"):  # rows without attributions may have any f
        left = rows.gap - (stored - (rows.f_input - rows.f_baseline))
    double, single = _rounding(rows)
    yield from _off_remarks(shard, "attribution_sum", stored - total, double)
    # the gap was taken before the attributions were rounded to the type of their columns
    yield from _off_remarks(shard, "gap", left, double + single)


CHECK = Check("sums", "sums and gaps are what the other columns amount to", _remarks)


def _off_remarks(shard: ShardEvidence, name: str, off: Floats, allowed: Floats) -> Iterator[Remark]:
    wrong = shard.results.rows.attributed & ~(np.abs(off) <= allowed)
    if wrong.any():
        row = int(wrong.argmax())
        value = shard.stored.table[name][row].as_py()
        yield Finding(
            f"{shard.where} column {name}",
            "what the row's other columns amount to, up to rounding",
            f"{value!r} in row {row}, off by {off[row]:.3g}; {int(wrong.sum())} rows",
        )


def _rounding(rows: RowResults) -> tuple[Floats, Floats]:
    """What sums of each row may be off by: taken in float64, and of values rounded to the type of
    their columns.
    """
    flat = [a.reshape(len(a), -1) for a in rows.attributions]
    sizes = [np.abs(a).astype(np.float64).sum(1) for a in flat]
    size = np.sum(sizes, axis=0)
    count = float(sum(a.shape[1] for a in flat))
    ends = np.abs(rows.f_input) + np.abs(rows.f_baseline)
    widest = max(np.finfo(a.dtype).eps for a in rows.attributions)
    epsilon = np.finfo(np.float64).eps
    tiny = np.finfo(np.float32).tiny
    double = (count + 4) * epsilon * (size + ends)
    single = widest * size + tiny * count
    return double, single
