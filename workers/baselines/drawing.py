"""By which keys baselines are drawn."""

from __future__ import annotations

from torch import Tensor

from integrand.schemas.specs.baselines import DrawnBaseline
from integrand.workers.baselines.base import PlaceRows
from integrand.workers.philox import keys_of

_ALL_ROWS = "all rows"


def keys_for(part: DrawnBaseline, rows: PlaceRows) -> Tensor:
    """`[rows, 2]` of rows that draw their own, `[1, 2]` where all rows share the draws."""
    if not part.by_key:
        return keys_of([_ALL_ROWS]).to(rows.values.device)
    assert rows.keys is not None, "rows that draw are handed their keys"
    return rows.keys
