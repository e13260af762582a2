"""Rows of a source as they are read, with what inputs decode of them."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from integrand.schemas.specs.job import AttributeSpec
from integrand.workers.data.inputs.table import kind_of_input
from integrand.workers.storage.store import Store


def decoded(
    store: Store,
    spec: AttributeSpec,
    table: pa.Table,
    tick: Callable[[], None] = lambda: None,
) -> pa.Table:
    """The table as `to_rows` takes it, itself where no input is encoded; ticks as rows are
    decoded.
    """
    for one in spec.inputs:
        table = kind_of_input(one).decode(store, table, one, tick)
    return table
