"""Parquet, which is read as it lies."""

from __future__ import annotations

from integrand.workers.data.formats.base import SourceFormat
from integrand.workers.data.inspection import MAGIC


class Parquet(SourceFormat):
    """Footers while planning, columns of row groups while running: see `data.reading`."""

    name = "parquet"
    title = "Parquet"
    extensions = (".parquet", ".pq")
    signature = MAGIC
