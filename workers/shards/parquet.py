"""The bytes of a shard's one Parquet object, its footer included."""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

from integrand.schemas.ids import CHECKSUM_KEY, FOOTER_KEY
from integrand.schemas.records import ShardFooter

ROW_GROUP_BYTES = 32 << 20


def encode(table: pa.Table, footer: ShardFooter) -> bytes:
    """Parquet bytes: page checksums on, data pages the same for the same rows; what varies lies in
    the footer.
    """
    width = max(1, table.nbytes // max(1, table.num_rows))
    stored = footer.model_dump_json()
    return write_parquet(
        table,
        {FOOTER_KEY: stored, CHECKSUM_KEY: checksum(stored.encode())},
        max(1024, ROW_GROUP_BYTES // width),
    )


def write_parquet(table: pa.Table, metadata: dict[str, str], group_rows: int) -> bytes:
    """Parquet bytes, the same for the same rows, metadata and rows of a row group where pyarrow is
    the same.
    """
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_dictionary=["status", "reason"],
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=group_rows)
        writer.add_key_value_metadata(metadata)
    return sink.getvalue()


def checksum(footer: bytes) -> str:
    """sha256 of a footer's JSON, which stands beside it: page checksums do not cover it."""
    return hashlib.sha256(footer).hexdigest()
