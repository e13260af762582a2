"""The pre-passes by name: a new one is listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from integrand.schemas.records import Plan
from integrand.workers.data.prepasses.base import Arrays, PrePass, read_arrays
from integrand.workers.data.prepasses.means import Means
from integrand.workers.storage.store import Store

PREPASSES: Mapping[str, PrePass[Any]] = MappingProxyType({one.name: one for one in (Means(),)})


def read_prepasses(store: Store, plan: Plan) -> dict[str, Arrays]:
    """What the plan's pre-passes found, by name. IntegrityError for an object that is not the one
    planned.
    """
    return {
        name: read_arrays(store, store.parse(file.uri), file.sha256)
        for name, file in plan.prepasses.items()
    }
