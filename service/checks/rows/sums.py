"""`attribution_sum` is the sum of the stored attributions, and `gap` what is left of f(x) − f(x'),
up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from integrand.schemas.specs.output import TopKStore
from integrand.service.checks.findings import Check, Finding, Remark
from integrand.service.checks.rows.stored import ShardEvidence
from integrand.workers.shards.output import (
    attributed,
    attribution_sums,
    blocks,
    input_sums,
    loses,
    stored_dtype,
)

Floats = NDArray[np.float64]


def _remarks(shard: ShardEvidence) -> Iterator[Remark]:
    rows = shard.results.rows
    stored = shard.stored.table["attribution_sum"].to_numpy()
    with np.errstate(invalid="ignore"):  # rows without attributions may have any f
        left = rows.gap - (stored - (rows.f_input - rows.f_baseline))
    double, single = _rounding(shard)
    if not isinstance(shard.plan.spec.output.store, TopKStore):
        total = attribution_sums(shard.plan, shard.results)
        # of attributions as they were before they were rounded to another type, where they were
        rounded = single if loses(shard.plan) else 0.0
        yield from _off_remarks(shard, "attribution_sum", stored - total, double + rounded)
    of_groups = _group_sums(shard)
    if of_groups is not None:
        off = stored - of_groups
        yield from _off_remarks(shard, "attribution_sum", off, double + single, "groups")
    # the gap was taken before the attributions were rounded to the type of their columns
    yield from _off_remarks(shard, "gap", left, double + single)


CHECK = Check("sums", "sums and gaps are what the other columns amount to", _remarks)


def _group_sums(shard: ShardEvidence) -> Floats | None:
    """Σ of the groups that stand beside their features; None where none do."""
    results = shard.results
    pairs = zip_longest(results.rows.attributions, results.lengths)
    roles = [block.role for block in blocks(shard.plan)]
    grouped = [pair for role, pair in zip(roles, pairs, strict=True) if role == "group"]
    if not grouped:
        return None
    sums = [input_sums(values, lengths) for values, lengths in grouped]
    return np.asarray(np.sum(sums, axis=0))


def _off_remarks(
    shard: ShardEvidence, name: str, off: Floats, allowed: Floats, others: str = "other columns"
) -> Iterator[Remark]:
    wrong = shard.results.rows.attributed & ~(np.abs(off) <= allowed)
    if wrong.any():
        row = int(wrong.argmax())
        value = shard.stored.table[name][row].as_py()
        yield Finding(
            f"{shard.where} column {name}",
            f"what the row's {others} amount to, up to rounding",
            f"{value!r} in row {row}, off by {off[row]:.3g}; {int(wrong.sum())} rows",
        )


def _rounding(shard: ShardEvidence) -> tuple[Floats, Floats]:
    """What sums of each row may be off by: taken in float64, and of values rounded to the type of
    their columns, or of the job.
    """
    rows, store = shard.results.rows, shard.plan.spec.output.store
    own = rows.attributions[: attributed(shard.plan)]
    flat = [a.reshape(len(a), -1) for a in own]
    sizes = [np.abs(a).astype(np.float64).sum(1) for a in flat]
    size = np.sum(sizes, axis=0)
    count = float(sum(a.shape[1] for a in flat))
    if isinstance(store, TopKStore):
        size = size * (1 + count / store.k)  # what is not stored is smaller than that
    # the mean is of attributions that were rounded before, and may be larger
    size = size * (1 + np.nan_to_num(rows.optional.get("baseline_spread", 0.0)))
    ends = np.abs(rows.f_input) + np.abs(rows.f_baseline)
    types = {stored_dtype(shard.plan), shard.plan.numerics.precision}
    widest = max(np.finfo(name).eps for name in types)
    epsilon = np.finfo(np.float64).eps
    smallest = "float16" if "float16" in types else "float32"
    tiny = np.finfo(smallest).tiny
    double = (count + 4) * epsilon * (size + ends)
    single = widest * size + tiny * count
    return double, single
