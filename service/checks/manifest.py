"""The manifest against the footers: it is what they amount to. That of a partial run may be older
than some of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import eq

from integrand.schemas.records import RunManifest
from integrand.schemas.stats import COUNTERS
from integrand.service.checks.evidence import Evidence
from integrand.service.checks.findings import Check, Finding, Remark, Unchecked, finding_of
from integrand.service.runs.manifest import MANIFEST, fold
from integrand.service.runs.totals import Committed

_AT_FOLDING = {"name", "created", "logical_date"}
"""What a manifest knows of its driver, not of the footers."""


def _remarks(run: Evidence) -> Iterator[Remark]:
    if run.manifests.error:
        yield finding_of(run.manifests.error)
    stored, missing = run.manifests.complete or _after_releases(run), _missing(run)
    yield from _missing_remarks(run, stored, missing)
    if stored is None:
        return
    if not stored.complete and stored.shards_done < len(run.counted.shards):
        return
    if run.counted.unreadable or (missing and stored.complete):
        yield Unchecked("the manifest against the footers", "not every object can be read")
        return
    yield from _field_remarks(run, stored)


CHECK = Check("manifest", "the manifest is what the footers amount to", _remarks)


def _after_releases(run: Evidence) -> RunManifest | None:
    """The partial manifest as it were had it been written after a retry that came to nothing."""
    partial = run.manifests.partial
    if partial is None:
        return None
    released = run.releases.shards - {q.shard for q in run.quarantine.records}
    quarantined = tuple(q for q in partial.quarantined if q.shard not in released)
    return partial.model_copy(update={"quarantined": quarantined})


def _missing(run: Evidence) -> list[str]:
    there = run.counted.shards | run.counted.unreadable
    return [shard for shard in run.folder.shards if shard not in there]


def _missing_remarks(
    run: Evidence, stored: RunManifest | None, missing: list[str]
) -> Iterator[Remark]:
    if not missing:
        return
    if stored is None or not stored.complete:
        yield Unchecked(
            f"{len(missing)} of {len(run.folder.shards)} shards", "they are not committed"
        )
        return
    yield Finding(
        f"{run.folder.uri}/data",
        f"an object for each planned shard, as {MANIFEST} tells",
        f"none for {len(missing)}, the first of them {missing[0]}",
        f"move {MANIFEST} away and run again: they are redone",
    )


def _field_remarks(run: Evidence, stored: RunManifest) -> Iterator[Remark]:
    folder, counted = run.folder, run.counted
    folded = fold(
        folder.plan,
        folder.plan_sha256,
        Committed(counted.shards, counted.stats),
        run.quarantine.records,
        created=stored.created,
    )
    for name in sorted(stored.model_fields_set - _AT_FOLDING):  # later versions may tell more
        expected, seen = getattr(stored, name), getattr(folded, name)
        alike = COUNTERS[name].alike if name in COUNTERS else eq
        if not alike(expected, seen):
            yield Finding(
                f"{folder.uri} manifest, {name}",
                f"{expected}, as it tells",
                f"{seen} in the footers",
                "move the manifest away and run again: it is written anew",
            )
