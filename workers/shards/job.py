"""What the shards of a run share in one worker."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.records import Plan
from integrand.schemas.uris import Uri
from integrand.workers.engine.prepared import Prepared
from integrand.workers.models.outputs import Forward
from integrand.workers.storage.store import Store


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """What every shard of a run shares: the plan, the loaded model and where things go."""

    plan: Plan
    plan_sha256: str
    store: Store
    run: Uri
    forward: Forward
    prepared: Prepared
    means: tuple[NDArray[np.float64], ...] | None
    device: str
    versions: dict[str, str]
    row_id_type: pa.DataType | None = None
    same_build: bool = True
