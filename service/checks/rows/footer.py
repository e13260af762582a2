"""A shard's footer: it is of this run and shard, and its checksum fits."""

from __future__ import annotations

from collections.abc import Iterator

from integrand.schemas.ids import CHECKSUM_KEY, FOOTER_KEY
from integrand.service.checks.findings import Check, Finding, Remark, Unchecked, listed
from integrand.service.checks.rows.stored import ShardEvidence
from integrand.workers.shards.parquet import checksum


def _remarks(shard: ShardEvidence) -> Iterator[Remark]:
    yield from _identity_remarks(shard)
    yield from _checksum_remarks(shard)


CHECK = Check("footer", "the footer is of this run and shard, and its checksum fits", _remarks)


def _identity_remarks(shard: ShardEvidence) -> Iterator[Remark]:
    footer, plan, planned = shard.stored.footer, shard.plan, shard.planned
    sha256 = shard.folder.plan_sha256
    rows_out = planned.rows * plan.targets_per_row
    expected = (plan.run_id, planned.id, sha256[:12], planned.rows, rows_out)
    seen = (
        footer.run_id,
        footer.shard,
        footer.plan_sha256[:12],
        footer.rows_in,
        footer.rows_out,
    )
    if seen != expected or footer.plan_sha256 != sha256:
        yield Finding(
            shard.where,
            f"run, shard, plan, rows in, rows out: {listed(expected)}",
            listed(seen),
        )


def _checksum_remarks(shard: ShardEvidence) -> Iterator[Remark]:
    where, metadata = f"{shard.where} footer", shard.stored.metadata
    foreign = sorted(metadata.keys() - {FOOTER_KEY, CHECKSUM_KEY})
    expected = metadata.get(CHECKSUM_KEY)
    seen = checksum(metadata[FOOTER_KEY].encode())
    if foreign:
        yield Finding(where, f"{FOOTER_KEY} and {CHECKSUM_KEY}, nothing else", listed(foreign))
    elif expected is None:
        yield Unchecked(
            "bits of footers that no count covers",
            "an older version put no checksum beside them",
        )
    elif expected != seen:
        yield Finding(where, f"sha256 {expected[:16]}…, which stands beside it", f"{seen[:16]}…")
