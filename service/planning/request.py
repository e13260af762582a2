"""One call of plan or run: a spec and all that stands beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from integrand.schemas.specs.job import AnySpec, AttributeSpec
from integrand.workers.storage.store import Store

SomeSpec = TypeVar("SomeSpec", bound=AnySpec)


@dataclass(frozen=True)
class AnyRequest(Generic[SomeSpec]):
    """One call of plan or run: the spec and all that stands beside it."""

    spec: SomeSpec
    base: str
    store: Store
    trusted: tuple[str, ...]
    salt: str = ""
    ingest: bool = True


Request = AnyRequest[AttributeSpec]
