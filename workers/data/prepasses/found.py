"""What the pre-passes of a plan found."""

from __future__ import annotations

from integrand.schemas.records import Plan
from integrand.workers.data.prepasses.base import Arrays, read_arrays
from integrand.workers.storage.store import Store


def read_prepasses(store: Store, plan: Plan) -> dict[str, Arrays]:
    """What the plan's pre-passes found, by name. IntegrityError for an object that is not the one
    planned.
    """
    return {
        name: read_arrays(store, store.parse(file.uri), file.sha256)
        for name, file in plan.prepasses.items()
    }
