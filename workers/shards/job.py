"""What the shards of a run share in one worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from integrand.schemas.records import Plan
from integrand.schemas.uris import Uri
from integrand.workers.data.prepasses.base import Arrays
from integrand.workers.engine.prepared import Prepared
from integrand.workers.models.outputs import Forward
from integrand.workers.storage.store import Store


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """What every shard of a run shares: the plan, the loaded model and where things go.

    counted  what the plan's pre-passes found over all the data, by name
    """

    plan: Plan
    plan_sha256: str
    store: Store
    run: Uri
    forward: Forward
    prepared: Prepared
    counted: Mapping[str, Arrays]
    device: str
    versions: dict[str, str]
    row_id_type: pa.DataType | None = None
    same_build: bool = True
