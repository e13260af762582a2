"""What a footer counts, counted again in the rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from integrand.schemas.quantiles import Quantiles
from integrand.schemas.records import ShardFooter
from integrand.schemas.stats import COUNTERS
from integrand.service.checks.findings import Check, Finding, Remark
from integrand.service.checks.rows.stored import ShardEvidence
from integrand.workers.shards.footer import shard_footer


def _remarks(shard: ShardEvidence) -> Iterator[Remark]:
    stored = shard.stored.footer
    counted = _counted(shard)
    recounted = [name for name, rule in COUNTERS.items() if rule.recounted]
    for name in recounted:
        expected, seen = getattr(stored, name), getattr(counted, name)
        if expected != seen:
            yield Finding(
                f"{shard.where} footer, {name}", f"{expected}, as it tells", f"{seen} in its rows"
            )
    yield from _quantile_remarks(shard.where, "gap", stored.gap, counted.gap)
    yield from _quantile_remarks(shard.where, "error", stored.error, counted.error)


CHECK = Check("counters", "the rows amount to what their footer counts", _remarks)


def _counted(shard: ShardEvidence) -> ShardFooter:
    return shard_footer(
        shard.plan,
        shard.folder.plan_sha256,
        shard.planned,
        shard.results,
        seconds={},
        versions={},
        same_build=True,
    )


def _quantile_remarks(
    where: str, name: str, expected: Quantiles, seen: Quantiles
) -> Iterator[Remark]:
    for field in Quantiles.model_fields:
        if not _close(getattr(expected, field), getattr(seen, field)):
            yield Finding(f"{where} footer, {name}", str(expected), str(seen))
            return


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return one == other or bool(np.isclose(one, other, rtol=1e-12))
