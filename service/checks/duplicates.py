"""Row ids that stand in two places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.ids import shard_object
from integrand.service.checks.evidence import Evidence
from integrand.service.checks.findings import Check, Finding, Remark
from integrand.service.checks.rows.stored import decoded
from integrand.workers.data.row_ids import hash_ids
from integrand.workers.data.values import plain_values


def _remarks(run: Evidence) -> Iterator[Remark]:
    suspects = _suspects(run)
    if not len(suspects):
        return
    seen = _occurrences(run, suspects)
    twice = [value for value, count in seen.items() if count > 1]
    if twice:
        yield Finding(
            f"{run.folder.uri}/data column row_id",
            "each row once",
            f"{len(twice)} ids more than once, for instance {twice[0]!r}",
            "see which objects are not as they were committed",
        )


CHECK = Check("duplicates", "no row id stands in two places", _remarks)


def _suspects(run: Evidence) -> NDArray[np.uint64]:
    """Hashes that come twice: they only tell which ids to look at."""
    none = np.empty(0, np.uint64)
    every = np.concatenate([none, *run.counted.hashes.values()])
    hashes, times = np.unique(every, return_counts=True)
    return hashes[times > 1]


def _occurrences(run: Evidence, suspects: NDArray[np.uint64]) -> Counter[object]:
    folder = run.folder
    seen: Counter[object] = Counter()
    shards = [shard for shard, hashes in run.counted.hashes.items() if len(hashes)]
    for shard in shards:
        data = folder.store.read(folder.uri.child(shard_object(shard)))
        ids = decoded(data).table["row_id"].combine_chunks()
        ids = ids[:: folder.plan.targets_per_row].drop_null()
        suspected = pa.array(np.isin(hash_ids(ids), suspects))
        seen.update(plain_values(ids.filter(suspected)))
    return seen
