"""What the operator of a cluster allows those who run jobs on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from integrand.workers.storage.store import Access


@dataclass(frozen=True)
class Operator:
    """The operator's settings after flags were added.

    trusted                    module prefixes whose model code may run
    access                     which places may be read and written, and how
    allow_unauthenticated_ray  use a cluster off loopback although it takes anybody's calls
    """

    trusted: tuple[str, ...] = ()
    access: Access = field(default_factory=Access)
    allow_unauthenticated_ray: bool = False
