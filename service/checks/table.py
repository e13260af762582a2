"""The checks of a run, in the order in which their remarks are shown."""

from __future__ import annotations

from integrand.service.checks.attempts import CHECK as ATTEMPTS
from integrand.service.checks.blocks import CHECK as BLOCKS
from integrand.service.checks.duplicates import CHECK as DUPLICATES
from integrand.service.checks.evidence import Evidence
from integrand.service.checks.findings import Check
from integrand.service.checks.foreign import CHECK as FOREIGN
from integrand.service.checks.manifest import CHECK as MANIFEST
from integrand.service.checks.objects import CHECK as OBJECTS
from integrand.service.checks.plan import CHECK as PLAN
from integrand.service.checks.pointers import CHECK as POINTERS
from integrand.service.checks.quarantine import CHECK as QUARANTINE
from integrand.service.checks.sample import CHECK as SAMPLE

CHECKS: tuple[Check[Evidence], ...] = (
    PLAN,
    FOREIGN,
    OBJECTS,
    DUPLICATES,
    MANIFEST,
    QUARANTINE,
    ATTEMPTS,
    BLOCKS,
    POINTERS,
    SAMPLE,
)
