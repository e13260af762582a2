"""The checks of a shard's rows, in the order in which their remarks are shown."""

from __future__ import annotations

from integrand.service.checks.findings import Check
from integrand.service.checks.rows.counters import CHECK as COUNTERS
from integrand.service.checks.rows.encoding import CHECK as ENCODING
from integrand.service.checks.rows.nulls import CHECK as NULLS
from integrand.service.checks.rows.row_ids import CHECK as ROW_IDS
from integrand.service.checks.rows.stored import ShardEvidence
from integrand.service.checks.rows.sums import CHECK as SUMS
from integrand.service.checks.rows.targets import CHECK as TARGETS

ROW_CHECKS: tuple[Check[ShardEvidence], ...] = (COUNTERS, NULLS, SUMS, TARGETS, ROW_IDS, ENCODING)
"""Asked where footer and columns let the rows be read at all."""
